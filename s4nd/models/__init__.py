"""timm model families. Importing this package registers them: `timm.create_model('s4nd_convnext_tiny')`."""

from s4nd.models import s4nd_convnext, s4nd_isotropic, s4nd_vit

__all__ = ['s4nd_convnext', 's4nd_isotropic', 's4nd_vit']
