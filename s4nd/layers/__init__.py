"""Layers: signal -> signal."""

from s4nd.layers.s4 import S4
from s4nd.layers.s4nd import S4ND

__all__ = ['S4', 'S4ND']
