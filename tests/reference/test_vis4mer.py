"""The head of ViS4mer against its released code: logits at all lengths, the first S4 layer, sizes."""

import re

import pytest
import torch

import s4nd
from s4nd.models.vis4mer_head import ViS4merHead
from tests.reference.cases import Case, check_covered, load, of_kind

FILE = 'vis4mer'
KIND = 'ViS4mer head'


def model_of(case: Case, dtype: torch.dtype) -> ViS4merHead:
    meta = case.meta
    return s4nd.load_published(case.param, l_max=meta['l_max'], prenorm=meta['prenorm'], dtype=dtype)


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_logits(case: Case) -> None:
    """Training clips, shorter ones, and odd ones, whose last step is dropped."""
    for dtype in (torch.float64, torch.float32):
        model = model_of(case, dtype)
        assert model.published.format == FILE
        for name, x in case.given.items():
            if name.startswith('x_'):
                y = model(x.to(dtype))
                name = name.replace('x', 'y')
                case.check(name, y) if dtype == torch.float64 else case.check_float32(name, y, 2e-4)


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_first_layer(case: Case) -> None:
    block = model_of(case, torch.float64).blocks[0]
    y = torch.nn.functional.gelu(block.mixer(case.given['s4_x'])).transpose(1, 2)
    case.check('s4_y', block.out(y).transpose(1, 2))
    case.check('s4_kernel', block.mixer.kernels[0](case.out['s4_kernel'].shape[-1])[0])


@of_kind(FILE, KIND)
def test_reference_encoder(case: Case) -> None:
    """The first map is not applied where the widths agree, but its weights are there."""
    model, meta = model_of(case, torch.float64), case.meta
    x = next(x for name, x in case.given.items() if name.startswith('x_'))
    with torch.no_grad():
        before = model(x)
        model.proj.weight.add_(1.0)
        is_used = not torch.equal(model(x), before)
        model.proj.weight.sub_(1.0)
    assert is_used == model.proj.weight.requires_grad == meta['encoder_used'] == (meta['d_input'] != meta['d_model'])
    assert torch.equal(model.proj.weight, case.param['encoder.weight'])
    published = sum(value.numel() for value in case.param.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@of_kind(FILE, 'trainable parameters')
def test_reference_sizes(case: Case) -> None:
    for name, count in case.meta['values'].items():
        d_input, part = re.fullmatch(r'd_input(\d+)_lmax\d+_(10classes_trainable|encoder_part)', name).groups()
        model = ViS4merHead(int(d_input), 10, device='meta')
        model = model.proj if part == 'encoder_part' else model
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name


def test_reference_is_covered() -> None:
    lengths = {name for case in load(FILE).values() for name in case.out if re.fullmatch(r'y_\d+', name)}
    assert all(
        name.replace('y', 'x') in case.given for case in load(FILE).values() for name in lengths & case.out.keys()
    )
    check_covered(FILE, {KIND: lengths | {'s4_y', 's4_kernel'}, 'trainable parameters': set()})


@pytest.mark.parametrize('edit', ['missing', 'left over', 'shape'])
def test_reference_errors_name_the_key(edit: str) -> None:
    case = next((case for case in load(FILE).values() if case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no ViS4mer')
    weights = dict(case.param)
    name = {'missing': 'linears.0.bias', 'left over': 's4_layers.0.more', 'shape': 'decoder.bias'}[edit]
    if edit == 'missing':
        del weights[name]
    else:
        weights[name] = torch.zeros(1)
    with pytest.raises(ValueError, match='fc.bias: expected shape' if edit == 'shape' else name):
        s4nd.load_published(weights)
