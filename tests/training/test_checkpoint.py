"""Weights and states: whole or not at all, and never of another model."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf as timm_save_for_hf
from torch import nn

from s4nd.files import write_atomically
from s4nd.models import load_checkpoint
from s4nd.training.checkpoint import (
    CheckpointError,
    find_weights,
    load_state,
    load_weights,
    read_metadata,
    save_state,
    save_weights,
    stored_args,
)
from s4nd.training.hub import save_for_hf
from tests.models.families import build, image


def make(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_weights_buffers_and_metadata_come_back(tmp_path: Path) -> None:
    saved, other = make(), make()
    save_weights(tmp_path / 'w.safetensors', saved, {'model': 'small', 'args': '{}'})
    metadata = load_weights(tmp_path / 'w.safetensors', other, expect='small')
    assert metadata == read_metadata(tmp_path / 'w.safetensors') == {'model': 'small', 'args': '{}', 'format': '1'}
    for name, value in saved.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    model = nn.ModuleDict({'a': nn.Linear(2, 2), 'b': nn.Linear(2, 2)})
    model['b'].weight = model['a'].weight
    save_weights(tmp_path / 'w.safetensors', model, {'model': 'tied'})
    load_weights(tmp_path / 'w.safetensors', model, 'tied')


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / 'file.txt'
    write_atomically(path, lambda temporary: temporary.write_text('old'))

    def write_half(temporary: Path) -> None:
        temporary.write_text('ne')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write_half)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_another_name(tmp_path: Path) -> None:
    save_weights(tmp_path / 'w.safetensors', make(), {'model': 'small'})
    with pytest.raises(CheckpointError, match=r'w.safetensors holds the weights of small, expected large'):
        load_weights(tmp_path / 'w.safetensors', make(), expect='large')


def test_weights_of_another_shape_change_nothing(tmp_path: Path) -> None:
    save_weights(tmp_path / 'w.safetensors', make(3), {'model': 'small'})
    other = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'not fit small: 2 missing \(2.bias, 2.weight\); 6 of another shape'):
        load_weights(tmp_path / 'w.safetensors', other, expect='small')
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize('content', [None, b'', b'not a checkpoint at all'])
def test_missing_and_damaged_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / 'w.safetensors'
    if content is not None:
        path.write_bytes(content)
    expected = 'no such' if content is None else 'damaged'
    with pytest.raises(CheckpointError, match=expected):
        load_weights(path, make())
    with pytest.raises(CheckpointError, match=expected):
        load_state(path)


def test_metadata_must_name_the_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold 'model'"):
        save_weights(tmp_path / 'w.safetensors', make(), {})


def test_a_state_comes_back_and_runs_no_code(tmp_path: Path) -> None:
    state = {'epoch': 3, 'best': None, 'history': [{'loss': 0.5}], 'model': make().state_dict()}
    save_state(tmp_path / 's.pt', state)
    loaded = load_state(tmp_path / 's.pt')
    assert loaded['history'] == state['history']
    assert torch.equal(loaded['model']['0.weight'], state['model']['0.weight'])
    torch.save({'evil': Path}, tmp_path / 'evil.pt')
    with pytest.raises(CheckpointError, match='not a training state'):
        load_state(tmp_path / 'evil.pt')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    model, other = make(), make()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    save_weights(tmp_path / 'w.safetensors', model, {'model': 'small'})
    name = next(iter(dict(model.named_parameters())))
    with pytest.raises(CheckpointError, match=rf'w\.safetensors: {re.escape(name)} holds values that are not finite'):
        load_weights(tmp_path / 'w.safetensors', other)
    assert all(parameter.isfinite().all() for parameter in other.parameters())


@pytest.mark.parametrize(
    'args',
    [
        {'pretrained': True}, {'pretrained_cfg': {'url': 'http://127.0.0.1:9/x'}},
        {'pretrained_cfg_overlay': {'file': 'a'}},
        {'checkpoint_path': '/etc/passwd'}, {'cache_dir': '/tmp'}, {'encoder_pretrained': True}, {'scriptable': True},
        {'encoder_args': {'pretrained': True}}, {'mixer_args': [{'hub_id': 'a'}]}, {'kernel': '/etc/passwd'},
        {'kernel': 'http://127.0.0.1/x'}, {'kernel': '${oc.env:HOME}'}, [1], 'text',
        {'depths': [10**6]}, {'n_layers': 10**6},
    ],
)  # fmt: skip
def test_weights_choose_no_keyword_that_opens_something(tmp_path: Path, args: object) -> None:
    with pytest.raises(CheckpointError, match='its metadata'):
        stored_args('w.safetensors', {'args': json.dumps(args)})
    fine = {
        'drop_path_rate': 0.1,
        'img_size': [8, 8],
        'kernel': 's4d',
        'kernel_args': {'n_ssm': 2},
        'pretrained': False,
    }
    assert stored_args('w.safetensors', {'args': json.dumps(fine)}) == fine


def test_metadata_that_are_nested_without_end(tmp_path: Path) -> None:
    for key in ('args', 'classes', 'quantizer'):
        save_weights(tmp_path / 'w.safetensors', make(), {'model': 'small', key: '[' * 100_000})
        with pytest.raises(CheckpointError, match='they hold more than 900 lists'):
            read_metadata(tmp_path / 'w.safetensors')


class TestFromElsewhere:
    """A run, a hub folder, a checkpoint of timm's train.py and a plain safetensors file hold the same model."""

    @pytest.fixture
    def model(self) -> nn.Module:
        return build('isotropic', bandlimit=0.7, img_size=20)

    @pytest.mark.parametrize('kind', ['ours', 'timm', 'plain'])
    def test_hub_folders(self, model: nn.Module, kind: str, tmp_path: Path) -> None:
        if kind == 'ours':
            save_for_hf(model, tmp_path, list('abcde'))
        else:
            timm_save_for_hf(model, tmp_path, safe_serialization=kind == 'plain')
        config = json.loads((tmp_path / 'config.json').read_text())
        assert ('num_classes' in config['model_args']) == (kind != 'ours')
        path = tmp_path / 'model.safetensors' if kind == 'plain' else tmp_path
        self.check(path, model)
        if kind == 'ours':
            assert json.loads(read_metadata(find_weights(path))['classes']) == list('abcde')
            loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
            torch.testing.assert_close(loaded(image(24)), model(image(24)), atol=0, rtol=0)

    @pytest.mark.parametrize('ema', [False, True])
    def test_checkpoints_of_timm(self, model: nn.Module, ema: bool, tmp_path: Path) -> None:
        args = Namespace(
            model='s4nd_isotropic_mini', num_classes=5, gp=None, in_chans=None,
            model_kwargs={'img_size': 20, 'dim': 16, 'depths': (1, 1, 1), 'd_state': 8, 'bandlimit': 0.7},
        )  # fmt: skip
        state = {f'module.{key}': value for key, value in model.state_dict().items()}
        found = {'arch': args.model, 'args': args, 'state_dict': state, 'version': 2}
        if ema:
            found |= {'state_dict': {key: 2 * value for key, value in state.items()}, 'state_dict_ema': state}
        torch.save(found, tmp_path / 'last.pth.tar')
        self.check(tmp_path, model)

    def test_pickles_run_no_code(self, tmp_path: Path) -> None:
        torch.save({'state_dict': {}, 'arch': print}, tmp_path / 'last.pth.tar')
        with pytest.raises(CheckpointError, match=r'last\.pth\.tar: damaged, or not a file of weights'):
            load_checkpoint(tmp_path)

    def check(self, path: Path, model: nn.Module) -> None:
        loaded = load_checkpoint(path)
        assert loaded.img_size == (20, 20)
        assert read_metadata(find_weights(path))['size'] == '20'
        with torch.no_grad():
            for size in (20, 30):
                torch.testing.assert_close(loaded(image(size)), model(image(size)), atol=0, rtol=0)
