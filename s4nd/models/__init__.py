"""timm model families. Importing this package registers them: `timm.create_model('s4nd_convnext_tiny')`."""

from timm.models import register_notrace_module

from s4nd.layers import S4ND
from s4nd.models import s4nd_convnext, s4nd_isotropic, s4nd_vit
from s4nd.models._load import is_ours, load_checkpoint
from s4nd.models.weights import WeightsReport, load_timm_weights

__all__ = [
    'WeightsReport',
    'is_ours',
    'load_checkpoint',
    'load_timm_weights',
    's4nd_convnext',
    's4nd_isotropic',
    's4nd_vit',
]

# torch.fx passes over it: its taps depend on sizes that a Proxy does not know.
register_notrace_module(S4ND)
