"""timm model families. Importing this package registers them: `timm.create_model('s4nd_convnext_tiny')`."""

from timm.models import register_notrace_module

from s4nd.layers import S4ND, CKConv
from s4nd.models import ccnn, s4nd_convnext, s4nd_convnext3d, s4nd_isotropic, s4nd_isotropic3d, s4nd_vit, vis4mer
from s4nd.models._load import is_ours, load_checkpoint
from s4nd.models.inflate import inflate
from s4nd.models.weights import WeightsReport, load_timm_weights

__all__ = [
    'WeightsReport',
    'ccnn',
    'inflate',
    'is_ours',
    'load_checkpoint',
    'load_timm_weights',
    's4nd_convnext',
    's4nd_convnext3d',
    's4nd_isotropic',
    's4nd_isotropic3d',
    's4nd_vit',
    'vis4mer',
]

# torch.fx passes over them: their taps depend on sizes that a Proxy does not know.
register_notrace_module(S4ND)
register_notrace_module(CKConv)
