"""Whole SaShiMi checkpoints: logits, stepping, generation and sizes, under old and new names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import s4nd
from audio.generation.engine import Engine
from audio.models.sashimi import SaShiMi
from s4nd.models.s4_block import S4Block
from tests.reference.cases import Case, check_covered, load, of_kind

FILE = 'sashimi_checkpoint'
KIND = 'SaShiMi checkpoint'


def model_of(case: Case, dtype: torch.dtype = torch.float64) -> SaShiMi:
    return s4nd.load_published(case.param, dt_transform=case.meta['dt_transform'], dtype=dtype)


def stepped(model: SaShiMi, tokens: Tensor) -> Tensor:
    state, system, logits = model.init_state(len(tokens)), model.system(), []
    for code in tokens.unbind(1):
        y, state = model.step(code, state, system)
        logits.append(y)
    return torch.stack(logits, 1)


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_logits(case: Case) -> None:
    tokens, meta = case.given['tokens'], case.meta
    model = model_of(case)
    assert 2**model.bits == meta['vocab'] and model.backbone.pool == tuple(meta['pool'])
    assert model.published.format == 'sashimi' and model.published.tensors == len(case.param)
    case.check('logits', model(tokens))
    case.check('logits', stepped(model, tokens))
    single = model_of(case, torch.float32)
    case.check_float32('logits', single(tokens), 2e-4)
    case.check_float32('logits', stepped(single, tokens), 2e-4)


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_generation(case: Case) -> None:
    """The compiled loop gives the logits of the reference too: a loaded model generates."""
    model, tokens = model_of(case, torch.float32), case.given['tokens']
    engine = Engine(model, len(tokens))
    logits = torch.stack([engine.step(code) for code in tokens.unbind(1)], 1)
    case.check_float32('logits', logits, 2e-4)


@of_kind(FILE, KIND)
def test_reference_parts(case: Case) -> None:
    """Norms and pools are those of the checkpoint, and nothing is folded together: as many parameters."""
    model = model_of(case)
    norms = {type(block.norm).__name__ for block in model.modules() if isinstance(block, S4Block)}
    assert norms == {'ScalarNorm' if any(name.endswith('norm.m') for name in case.param) else 'LayerNorm'}
    buffers = ('l_kernel', '.L')
    published = sum(value.numel() for name, value in case.param.items() if not name.endswith(buffers))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@of_kind(FILE, 'trainable parameters')
def test_reference_sizes(case: Case) -> None:
    for name, counts in case.meta['values'].items():
        unet, width, layers, n_ssm = re.fullmatch(r'(sashimi|unet)_d(\d+)_n(\d+)_nssm(\d+|None)', name).groups()
        model = SaShiMi(
            d_model=int(width),
            n_layers=int(layers),
            unet=unet == 'unet',
            n_ssm='d_model' if n_ssm == 'None' else int(n_ssm),
            norm='scalar',
            weight_norm=unet != 'unet',
            device='meta',
        )
        found = sum(parameter.numel() for parameter in model.parameters())
        assert found == counts['with_embedding_and_head_256'], name
        assert sum(parameter.numel() for parameter in model.backbone.parameters()) == counts['backbone'], name


def test_reference_is_covered() -> None:
    check_covered(FILE, {KIND: {'logits'}, 'trainable parameters': set()})


def a_case() -> Case:
    case = next((case for case in load(FILE).values() if 'tokens' in case.given), None)
    if case is None:
        pytest.skip('the folder of golden files holds no SaShiMi')
    return case


@torch.no_grad()
def test_reference_files_load(tmp_path: Path) -> None:
    """From .npz, from a checkpoint of torch with other numbers around it, and from one of parallel training."""
    case = a_case()
    options = {'dt_transform': case.meta['dt_transform'], 'dtype': torch.float64}
    np.savez(tmp_path / 'a.npz', **{name: value.numpy() for name, value in case.param.items()})
    torch.save({'state_dict': case.param, 'epoch': 3}, tmp_path / 'a.ckpt')
    torch.save({f'module.{name}': value for name, value in case.param.items()}, tmp_path / 'a.pt')
    for name in ('a.npz', 'a.ckpt', 'a.pt'):
        case.check('logits', s4nd.load_published(tmp_path / name, **options)(case.given['tokens']))
    said = str(s4nd.load_published(tmp_path / 'a.npz', **options).published)
    assert f'all {len(case.param)} tensors' in said and 'dt_transform=' in said and 'SaShiMi' in said


@pytest.mark.parametrize(('edit', 'says'), [
    ('missing', 'norm'), ('left over', 'model.more has no place'), ('shape', r'backbone.norm.weight: expected shape'),
    ('format', 'no published format has the names'), ('option', "takes no option 'dt_transfrom'"),
])  # fmt: skip
def test_reference_errors_name_the_key(edit: str, says: str) -> None:
    weights, options = dict(a_case().param), {}
    if edit == 'missing':
        del weights['model.norm.bias']
    elif edit == 'left over':
        weights['model.more'] = torch.zeros(1)
    elif edit == 'shape':
        weights['model.norm.weight'] = torch.zeros(1)
    elif edit == 'format':
        weights = {'some.weight': torch.zeros(1)}
    else:
        options = {'dt_transfrom': 'exp'}
    with pytest.raises(ValueError, match=says):
        s4nd.load_published(weights, **options)


def test_reference_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no such file'):
        s4nd.load_published(tmp_path / 'none.npz')
    (tmp_path / 'a.pt').write_text('no weights')
    with pytest.raises(ValueError, match=r'a\.pt cannot be read'):
        s4nd.load_published(tmp_path / 'a.pt')
    with pytest.raises(ValueError, match="'epoch' is a int"):
        s4nd.load_published({'epoch': 3})
    with pytest.raises(ValueError, match="unknown format 'sashmi'"):
        s4nd.load_published({'a': torch.zeros(1)}, format='sashmi')
