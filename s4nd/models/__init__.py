"""timm model families. Importing this package registers them: `timm.create_model('s4nd_convnext_tiny')`."""

from timm.models import register_notrace_module

from s4nd.layers import S4, S4ND, CKConv
from s4nd.models import ccnn, s4nd_convnext, s4nd_isotropic, s4nd_vit, vis4mer
from s4nd.models._load import class_names, is_ours, load_checkpoint, probabilities
from s4nd.models._mixers import ClipS4ND
from s4nd.models.inflate import inflate

__all__ = [
    'ccnn',
    'class_names',
    'inflate',
    'is_ours',
    'load_checkpoint',
    'probabilities',
    's4nd_convnext',
    's4nd_isotropic',
    's4nd_vit',
    'vis4mer',
]

# torch.fx passes over them: their taps depend on sizes that a Proxy does not know.
for layer in (S4ND, ClipS4ND, S4, CKConv):
    register_notrace_module(layer)
