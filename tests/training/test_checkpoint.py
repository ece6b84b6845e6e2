"""Weights and states: whole or not at all, and never of another model."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from s4nd.files import write_atomically
from s4nd.training.checkpoint import (
    CheckpointError,
    load_state,
    load_weights,
    read_metadata,
    save_state,
    save_weights,
    stored_args,
)


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
