"""Layers: signal -> signal."""

from timm.layers import register_notrace_module

from s4nd.layers.s4 import S4
from s4nd.layers.s4nd import S4ND

__all__ = ['S4', 'S4ND']

# torch.fx passes through these: their taps depend on sizes that a Proxy does not know.
register_notrace_module(S4ND)
register_notrace_module(S4)
