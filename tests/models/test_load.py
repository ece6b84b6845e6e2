"""Image models rebuilt from the checkpoints that training leaves."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from s4nd.models import is_ours, load_checkpoint
from s4nd.training.checkpoint import CheckpointError, read_metadata, save_weights
from tests.models.families import SMALL, build, image, size_of


def save(folder: Path, case: str = 'isotropic', file: str = 'last', **args: object) -> nn.Module:
    model = build(case, **args)
    name, base = SMALL[case]
    metadata = {'model': name, 'args': json.dumps({**base, **args})}
    save_weights(folder / f'{file}.safetensors', model, metadata)
    return model


@pytest.mark.parametrize('case', ['convnext s4nd everywhere', 'vit', 'isotropic batchnorm'])
@torch.no_grad()
def test_the_loaded_model_is_the_saved_one_at_every_size(case: str, tmp_path: Path) -> None:
    model = save(tmp_path, case, num_classes=3)
    for path in (tmp_path, tmp_path / 'last.safetensors', str(tmp_path)):
        loaded = load_checkpoint(path)
        assert not loaded.training
        for size in (size_of(case), 2 * size_of(case)):
            assert torch.equal(loaded(image(size)), model(image(size)))


@torch.no_grad()
def test_a_folder_gives_its_best_weights(tmp_path: Path) -> None:
    save(tmp_path)
    model = build('isotropic')
    model.head.fc.bias += 1
    name, args = SMALL['isotropic']
    save_weights(tmp_path / 'best.safetensors', model, {'model': name, 'args': json.dumps(args)})
    assert torch.equal(load_checkpoint(tmp_path)(image(16)), model(image(16)))


@torch.no_grad()
def test_the_size_that_a_model_was_trained_at_comes_with_its_weights(tmp_path: Path) -> None:
    model = save(tmp_path, 'vit')
    model.set_input_size((64, 48))
    save_weights(tmp_path / 'best.safetensors', model, read_metadata(tmp_path / 'last.safetensors'))
    loaded = load_checkpoint(tmp_path)
    assert loaded.img_size == (64, 48)
    assert torch.equal(loaded(image((64, 48))), model(image((64, 48))))


def test_other_timm_models_load_too(tmp_path: Path) -> None:
    model = timm.create_model('test_vit', num_classes=3)
    save_weights(tmp_path / 'last.safetensors', model, {'model': 'test_vit', 'args': '{"num_classes": 3}'})
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert not is_ours('test_vit') and not is_ours('sashimi') and is_ours('s4nd_isotropic_mini')


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        ({'model': 'sashimi', 'args': '{}'}, 'holds the weights of sashimi, which is no image model'),
        ({'model': 's4nd_isotropic_mini'}, 'metadata lacks args'),
        ({'model': 's4nd_isotropic_mini', 'args': '{"dims": 3}'}, "cannot be built with its arguments {'dims': 3}"),
        ({'model': 's4nd_isotropic_mini', 'args': '{"d_state": 3}'}, 'd_state must be even'),
        ({'model': 's4nd_isotropic_mini', 'args': '{"dim": 8}'}, 'does not fit s4nd_isotropic_mini'),
    ],
)
def test_bad_checkpoints(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    save_weights(tmp_path / 'last.safetensors', nn.Linear(2, 2), metadata)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_bad_paths(tmp_path: Path) -> None:
    for path, message in ((tmp_path, 'no best.safetensors or last'), (tmp_path / 'x', 'no checkpoint at')):
        with pytest.raises(FileNotFoundError, match=message):
            load_checkpoint(path)
    (tmp_path / 'broken.safetensors').write_bytes(b'nothing')
    with pytest.raises(CheckpointError, match=r'broken\.safetensors: damaged'):
        load_checkpoint(tmp_path / 'broken.safetensors')
