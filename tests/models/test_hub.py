"""Saved for the hub and loaded from a local folder: the same model, at every size, before and after resizing."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import load_model_config_from_hf, push_to_hf_hub, save_for_hf
from torch import nn

from s4nd.layers import GridLayer
from s4nd.weights import shipped_names
from tests.models.families import SMALL, build, image, size_of

# Twice the size; one whose maps are not whole multiples; one smaller, not square, after the first.
RESIZES = {'as built': [], 'twice': [2.0], 'uneven': [(1.5, 1.3)], 'again': [(1.4, 2.0), (1.1, 0.7)]}


def resize(model: nn.Module, base: int, factors: list) -> None:
    for factor in factors:
        height, width = factor if isinstance(factor, tuple) else (factor, factor)
        model.set_input_size(img_size=(max(32, round(base * height)), max(32, round(base * width))))


def train_a_little(model: nn.Module, base: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()(image(base)).square().mean().backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize('how', RESIZES)
@pytest.mark.parametrize('case', SMALL)
def test_a_loaded_model_computes_the_same_bits(case: str, how: str, tmp_path: Path) -> None:
    base = size_of(case)
    options = {} if 'conv2d' in case or 'ccnn' in case else dict(bandlimit=0.7)
    model = build(case, **options)
    train_a_little(model, base)
    resize(model, base, RESIZES[how])
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'model.safetensors']
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.img_size == model.img_size
    for ours, theirs in zip(model.modules(), loaded.modules(), strict=True):
        if isinstance(ours, GridLayer):
            assert ours.grid == theirs.grid
    with torch.no_grad():
        for size in (model.img_size, base, (2 * base, base + 24), (base + 37, base + 5)):
            assert torch.equal(loaded(image(size)), model(image(size)))


@pytest.mark.parametrize('case', ['convnext s4nd everywhere', 'vit s4nd stem', 'isotropic'])
def test_the_config_holds_what_the_model_was_trained_with(case: str, tmp_path: Path) -> None:
    model = build(case, bandlimit=0.7, in_chans=4, num_classes=11)
    size = (size_of(case) + 24, 2 * size_of(case))
    model.set_input_size(img_size=size)
    model.reset_classifier(3, 'max')
    data_config = dict(mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4, crop_pct=1.0)
    save_for_hf(model, tmp_path, safe_serialization=True, data_config=data_config)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == SMALL[case][0]
    assert config['model_args']['img_size'] == list(size)
    assert config['model_args']['bandlimit'] == 0.7
    assert config['pretrained_cfg']['input_size'] == [4, *size]
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert (loaded.num_classes, loaded.in_chans) == (3, 4)
    assert tuple(resolve_data_config(model=loaded)['mean']) == (0.1, 0.2, 0.3, 0.4)
    assert tuple(resolve_data_config(model=loaded)['input_size']) == (4, *size)
    with torch.no_grad():
        assert torch.equal(loaded(image(50, channels=4)), model(image(50, channels=4)))


@pytest.mark.parametrize('name', ['s4nd_convnext_micro', 's4nd_vit_tiny_patch16', 's4nd_isotropic_mini'])
def test_the_training_grid_is_named_where_it_is_the_default(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, d_state=4)
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['model_args']['img_size'] == list(model.img_size)


@pytest.mark.parametrize('case', SMALL)
def test_the_data_configuration_follows_the_training_size(case: str) -> None:
    model = build(case, img_size=(96, 128))
    assert resolve_data_config(model=model)['input_size'] == (3, 96, 128)
    model.set_input_size(img_size=64)
    assert resolve_data_config(model=model)['input_size'] == (3, 64, 64)
    name = SMALL[case][0]
    # Of a network without weights, whatever weights ship for it.
    untrained = timm.get_pretrained_cfg(f'{name}.untrained' if shipped_names(name) else name).to_dict()
    assert timm.create_model(name, device='meta').pretrained_cfg == untrained


@pytest.mark.parametrize('case', ['convnext', 'vit', 'isotropic'])
def test_other_classes_and_channels_from_a_folder(case: str, tmp_path: Path) -> None:
    model = build(case)
    save_for_hf(model, tmp_path, safe_serialization=True)
    adapted = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=3, in_chans=1).eval()
    torch.testing.assert_close(adapted.stem.proj.weight, model.stem.proj.weight.sum(1, keepdim=True))
    gray = image(size_of(case), channels=1)
    with torch.no_grad():
        expected = model.forward_features(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(adapted.forward_features(gray), expected, atol=1e-4, rtol=1e-4)
    assert adapted(gray).shape == (2, 3)
    features = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(image(size_of(case)), intermediates_only=True)
        for got, expected in zip(features(image(size_of(case))), maps, strict=True):
            assert torch.equal(got, expected)
    larger = timm.create_model(f'local-dir:{tmp_path}', pretrained=False, img_size=2 * size_of(case))
    assert larger.img_size == (2 * size_of(case),) * 2


@pytest.mark.parametrize('case', ['convnext', 'vit', 'isotropic'])
def test_a_resized_model_goes_through_a_plain_checkpoint(case: str, tmp_path: Path) -> None:
    model = build(case, bandlimit=0.7).to(torch.bfloat16)
    size = (2 * size_of(case), 2 * size_of(case))
    model.set_input_size(img_size=size)
    assert all(t.dtype == torch.bfloat16 for t in model.state_dict().values() if t.is_floating_point())
    model = model.float()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    name, options = SMALL[case]
    options = {**options, 'bandlimit': 0.7}
    loaded = timm.create_model(name, **options, checkpoint_path=str(tmp_path / 'weights.pth')).eval()
    with torch.no_grad():
        for test_size in (size, size_of(case)):
            assert torch.equal(loaded(image(test_size)), model(image(test_size)))


class FolderHub:
    """The hub's client, with a folder for a repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, **_: object) -> 'FolderHub':
        return self

    def create_repo(self, repo_id: str, **_: object) -> 'FolderHub':
        self.repo_id = repo_id
        return self

    def file_exists(self, **_: object) -> bool:
        return False

    def upload_folder(self, folder_path: str, **_: object) -> None:
        shutil.copytree(folder_path, self.folder)

    def download(self, repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == self.repo_id
        return str(self.folder / filename)


@pytest.mark.parametrize('case', ['convnext s4nd everywhere', 'vit', 'isotropic'])
def test_pushed_to_a_hub_and_loaded_from_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FolderHub(tmp_path / 'repository')
    monkeypatch.setattr('timm.models._hub.HfApi', hub)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', hub.download)
    model = build(case)
    model.set_input_size(img_size=(size_of(case) + 24, 2 * size_of(case)))
    push_to_hf_hub(model, 'someone/scenes', safe_serialization=True)
    assert (hub.folder / 'README.md').is_file()
    cfg, name, args = load_model_config_from_hf('someone/scenes')
    assert name == SMALL[case][0]
    assert tuple(args['img_size']) == model.img_size == tuple(cfg['input_size'][1:])
    loaded = timm.create_model('hf-hub:someone/scenes', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image(50)), model(image(50)))
