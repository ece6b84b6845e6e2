"""Layers: signal -> signal."""

from s4nd.layers.attention import LocalAttention
from s4nd.layers.base import GridLayer, forget
from s4nd.layers.ckconv import CKConv
from s4nd.layers.gss import GSS, GSSHybrid
from s4nd.layers.liquid import LiquidS4
from s4nd.layers.mega import Mega
from s4nd.layers.s4 import S4
from s4nd.layers.s4nd import S4ND
from s4nd.layers.s5 import S5

__all__ = [
    'GSS',
    'S4',
    'S4ND',
    'S5',
    'CKConv',
    'GSSHybrid',
    'GridLayer',
    'LiquidS4',
    'LocalAttention',
    'Mega',
    'forget',
]
