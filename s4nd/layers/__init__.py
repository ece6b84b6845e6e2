"""Layers: signal -> signal."""

from s4nd.layers.attention import LocalAttention
from s4nd.layers.base import GridLayer, forget
from s4nd.layers.block import GatedLayer, Residual, S5Gate
from s4nd.layers.ckconv import CKConv
from s4nd.layers.gss import GSS, GSSHybrid
from s4nd.layers.liquid import LiquidS4
from s4nd.layers.lmu import LMU
from s4nd.layers.mega import Mega, MovingAverage, NormalizedFeedForward
from s4nd.layers.s4 import S4
from s4nd.layers.s4nd import S4ND
from s4nd.layers.s5 import S5

__all__ = [
    'GSS',
    'LMU',
    'S4',
    'S4ND',
    'S5',
    'CKConv',
    'GSSHybrid',
    'GatedLayer',
    'GridLayer',
    'LiquidS4',
    'LocalAttention',
    'Mega',
    'MovingAverage',
    'NormalizedFeedForward',
    'Residual',
    'S5Gate',
    'forget',
]
