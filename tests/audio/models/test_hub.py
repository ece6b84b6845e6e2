"""Models of sound go through the Hub's client with quantizer, rate and classes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from audio.generation.generator import generate, load_generator
from audio.models import DiffusionSaShiMi, SaShiMi, SpectrogramClassifier, WaveClassifier
from audio.models.hub import HubModel
from audio.quantization import Quantizer

SMALL = {'d_model': 8, 'n_layers': 1, 'pool': (2,), 'd_state': 4}
WAVES = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
CODES = torch.arange(24).reshape(2, 12) % 16


def sashimi() -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(4, num_classes=2, kernel='s4', n_ssm=2, **SMALL).eval()


def build(name: str) -> tuple[HubModel, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    if name == 'sashimi':
        return sashimi(), (CODES,)
    if name == 'diffusion':
        model = DiffusionSaShiMi(condition=8, steps=5, **SMALL).eval()
        nn.init.normal_(model.leave[-1].weight)
        return model, (WAVES, torch.tensor([1, 3]))
    if name == 'waves':
        return WaveClassifier(5, 64, dims=(4, 8), depths=(1,), pool=(4,), reach=16, d_state=4).eval(), (WAVES,)
    return SpectrogramClassifier(5, 4000, 8000).eval(), (torch.randn(2, 4000),)


@pytest.mark.parametrize('name', ['sashimi', 'diffusion', 'waves', 'spectrogram'])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    model.describe_sound(8000, Quantizer(bits=4).to_json(), ['low', 'high'])
    model.save_pretrained(tmp_path)
    assert {'config.json', 'model.safetensors', 'README.md'} <= {path.name for path in tmp_path.iterdir()}
    card = (tmp_path / 'README.md').read_text()
    assert 'apache-2.0' in card and '8000 Hz' in card and 'low, high' in card and type(model).__name__ in card
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.sound == model.sound
    options = {'label': torch.tensor([0, 1])} if name == 'sashimi' else {}
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs, **options), model(*inputs, **options), atol=0, rtol=0)
    again = tmp_path / 'again'
    loaded.save_pretrained(again)
    assert (again / 'config.json').read_text() == (tmp_path / 'config.json').read_text()


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sashimi().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / 'model.safetensors')
    del tensors['head.bias']
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(RuntimeError, match=r'head\.bias'):
        SaShiMi.from_pretrained(tmp_path)


def test_a_folder_generates(tmp_path: Path) -> None:
    model = sashimi()
    model.save_pretrained(tmp_path / 'bare')
    with pytest.raises(ValueError, match='lacks sample_rate, quantizer'):
        load_generator(tmp_path / 'bare')
    model.describe_sound(8000, Quantizer(bits=4).to_json(), ['low', 'high'])
    model.save_pretrained(tmp_path)
    found = load_generator(tmp_path)
    assert (found.sample_rate, found.quantizer, found.classes) == (8000, Quantizer(bits=4), ('low', 'high'))
    assert generate(found, length=20, label='high', method='eager').shape == (1, 20)


def test_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = {}

    class Api:
        def __init__(self, **_: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type('Url', (), {'repo_id': repo_id})

        def upload_folder(self, repo_id: str, folder_path: str, **_: object) -> str:
            pushed.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f'https://huggingface.co/{repo_id}'

    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    model = sashimi()
    model.describe_sound(8000, Quantizer(bits=4).to_json())
    model.push_to_hub('someone/piano')
    assert b"from_pretrained('someone/piano')" in pushed['README.md']
    assert b'"sample_rate": 8000' in pushed['config.json']
