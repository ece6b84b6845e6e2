"""S4ND: resolution-agnostic state-space models for images, video and audio. Importing it registers the timm models."""

from s4nd import hippo, kernels, layers, models, ops, resolution
from s4nd.interop import load_published, load_timm_weights
from s4nd.kernels import make_kernel
from s4nd.layers import GSS, S4, S4ND, S5, GSSHybrid, LiquidS4, LocalAttention, Mega, forget
from s4nd.models import inflate
from s4nd.models.sequence import SequenceModel
from s4nd.optim import param_groups, ssm_parameter_patterns
from s4nd.training.hub import save_for_hf

__version__ = '0.2.0'

__all__ = [
    'GSS',
    'S4',
    'S4ND',
    'S5',
    'GSSHybrid',
    'LiquidS4',
    'LocalAttention',
    'Mega',
    'SequenceModel',
    'forget',
    'hippo',
    'inflate',
    'kernels',
    'layers',
    'load_published',
    'load_timm_weights',
    'make_kernel',
    'models',
    'ops',
    'param_groups',
    'resolution',
    'save_for_hf',
    'ssm_parameter_patterns',
]
