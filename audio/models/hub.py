"""Models of sound on the Hugging Face Hub: `save_pretrained`, `from_pretrained`, `push_to_hub`, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from torch import nn

_CARD = """---
{{ card_data }}
---

# {{ name }}

{{ summary }}

- sample rate: {{ sample_rate or 'not noted' }}{% if sample_rate %} Hz{% endif %}
- quantizer: {{ quantizer or 'none' }}
- classes: {{ classes | join(', ') or 'none' }}
- parameters: {{ parameters }}

```python
from s4nd.audio.models import {{ name }}

model = {{ name }}.from_pretrained('{{ repo }}').eval()
model.sound                                     # sample rate, quantizer and classes
```
"""


class HubModel(
    PyTorchModelHubMixin,
    nn.Module,
    library_name='s4nd',
    license='apache-2.0',
    tags=['audio', 'state-space-model'],
    model_card_template=_CARD,
):
    """Base of the models of sound.

    `sound` holds what their numbers mean: 'sample_rate' in Hz, 'quantizer' (the JSON of a `Quantizer`) and 'classes'.
    It is stored with the arguments of the constructor in `config.json`.
    """

    sound: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.sound = {}

    def describe_sound(
        self, sample_rate: int | None = None, quantizer: str | None = None, classes: Sequence[str] = ()
    ) -> None:
        """Note what is stored beside the weights: rate in Hz, JSON of the quantizer, names of the classes."""
        self.sound = {'sample_rate': sample_rate, 'quantizer': quantizer, 'classes': list(classes)}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and README.md; options: as of `huggingface_hub.ModelHubMixin`."""
        if options.get('config') is None:
            options['config'] = {**(self._hub_mixin_config or {}), 'sound': self.sound}  # type: ignore[dict-item]
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        # Buffers may be views of larger ones, which safetensors refuses.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        save_file(tensors, save_directory / 'model.safetensors', metadata={'format': 'pt'})

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes; options: as of `huggingface_hub.ModelHubMixin`."""
        return super().push_to_hub(repo_id, **{'model_card_kwargs': {'repo': repo_id}, **options})

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        model.load_state_dict(load_file(model_file, device=map_location), strict=strict)
        return model

    @classmethod
    def _from_pretrained(cls, *, config: dict[str, Any] | None = None, **options: Any) -> Self:
        options.pop('sound', None)
        # Weights that lack a tensor would be completed at random.
        model = super()._from_pretrained(**{**options, 'strict': True})
        model.sound = dict((config or {}).get('sound', {}))
        return model

    def generate_model_card(self, *args: Any, **options: Any) -> Any:
        """The model card, with what `sound` says."""
        return super().generate_model_card(
            *args,
            **{
                'name': type(self).__name__,
                'summary': (type(self).__doc__ or '').strip().partition('\n')[0],
                'parameters': f'{sum(p.numel() for p in self.parameters()):,}',
                'repo': 'FOLDER',
                **{key: self.sound.get(key) for key in ('sample_rate', 'quantizer')},
                'classes': self.sound.get('classes', []),
                **options,
            },
        )
