"""The S4 block of state-spaces/s4: kernels, two-sided layers, channels, lengths, states, C as it is after a call."""

import pytest
import torch
from torch import Tensor

from s4nd.interop.s4_block import load_s4_block, load_s4_classifier, load_s4d_example
from s4nd.layers.block import GatedLayer
from s4nd.models.sequence import padding_of
from tests.reference.cases import Case, check_covered, load, of_kind


def block_of(case: Case, dtype: torch.dtype, weights: dict[str, Tensor] | None = None) -> GatedLayer:
    meta = case.meta
    block = load_s4_block(
        case.param if weights is None else weights,
        l_max=meta.get('l_max'),
        discretization=meta.get('disc', 'bilinear'),
        dt_transform=meta.get('dt_transform', 'exp'),
        dtype=dtype,
    )
    layer = block.layer
    assert layer.bidirectional[0] == meta.get('bidirectional', False)
    assert layer.channels == meta.get('channels', 1)
    assert (block.linear is None) == (meta['final_act_used'] is None)
    return block


def to_ours(block: GatedLayer, state: Tensor) -> dict[str, Tensor]:
    """The released state (B, H, n), one of each conjugate pair."""
    pairs = torch.view_as_real(state)
    return {'x': pairs if hasattr(block.layer.kernels[0], 'discretization') else torch.cat(pairs.unbind(-1), -1)}


def to_theirs(block: GatedLayer, state: dict[str, Tensor]) -> Tensor:
    x = state['x']
    return x if hasattr(block.layer.kernels[0], 'discretization') else torch.stack(x.chunk(2, -1), -1)


@of_kind('s4_block', 'S4Block')
@torch.no_grad()
def test_reference_blocks(case: Case) -> None:
    lengths = case.given['lengths']
    for dtype in (torch.float64, torch.float32):
        block, x = block_of(case, dtype), case.given['x'].to(dtype)
        check = case.check if dtype == torch.float64 else case.check_float32
        check('y', block(x))
        check('y_lengths', block(x, padding=padding_of(lengths, len(x), x.shape[2])))


@of_kind('s4_block', 'S4Block')
@torch.no_grad()
def test_reference_states(case: Case) -> None:
    if 'y_state' not in case.out:
        assert not {'state_final', 'state_half'} & case.out.keys()
        return
    block, x = block_of(case, torch.float64), case.given['x']
    half = x.shape[2] // 2
    before = to_ours(block, case.given['state'])
    y, after = block(x, before)
    case.check('y_state', y)
    case.check('state_final', to_theirs(block, after))
    _, after = block(x[..., :half], block.init_state(len(x)))
    case.check('state_half', to_theirs(block, after))
    system, outputs = block.system(), []
    for x_t in x.unbind(-1):
        y_t, before = block.step(x_t, before, system)
        outputs.append(y_t)
    case.check('y_state', torch.stack(outputs, -1))
    case.check('state_final', to_theirs(block, before))


@of_kind('s4_block', 'S4Block')
@torch.no_grad()
def test_reference_after_the_first_call(case: Case) -> None:
    """C is then stored as C (I - Āˡ), which is undone in loading: equal outputs, and our C makes their C̃."""
    after = {name.removeprefix('after.'): value for name, value in case.out.items() if name.startswith('after.')}
    if not after:
        return
    assert after.keys() == {'layer.kernel.C', 'layer.kernel.l_kernel'}
    block = block_of(case, torch.float64, case.param | after)
    case.check('y', block(case.given['x']))
    fresh, kernel = block_of(case, torch.float64), block.layer.kernels[0]
    torch.testing.assert_close(kernel.C, fresh.layer.kernels[0].C, atol=1e-8, rtol=1e-8)
    length = int(after['layer.kernel.l_kernel'])
    assert length == min(case.meta.get('l_max') or case.given['x'].shape[2], case.given['x'].shape[2])


@of_kind('s4_block', 'encoder linear, SequenceModel')
@torch.no_grad()
def test_reference_classifiers(case: Case) -> None:
    """Norms of all kinds before and after layers, pools, lengths."""
    for dtype in (torch.float64, torch.float32):
        pool = {'pool': 'mean', 'last': 'last'}[case.meta['pool']]
        model = load_s4_classifier(case.param, pool=pool, dtype=dtype).eval()
        x, lengths = case.given['x'].to(dtype), case.given.get('lengths')
        assert (lengths is not None) == case.meta['use_lengths']
        if dtype == torch.float32:
            case.check_float32('y', model(x, lengths=lengths), 2e-4)
            continue
        case.check('y', model(x, lengths=lengths))
        hidden, true = model.features(x, lengths), case.out['hidden']
        # (Theirs lets the encoder see the padding.)
        padding = None if lengths is None else padding_of(lengths, len(x), x.shape[1])
        case.check('hidden', hidden if padding is None else torch.where(padding[..., None], true, hidden))


@of_kind('s4_block', 'example.py classifier')
@torch.no_grad()
def test_reference_examples(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        model = load_s4d_example(case.param, prenorm=case.meta['prenorm'], dtype=dtype)
        y = model(case.given['x'].to(dtype))
        case.check('y', y) if dtype == torch.float64 else case.check_float32('y', y, 2e-4)


def test_reference_is_covered() -> None:
    blocks = {'y', 'y_lengths', 'y_state', 'state_final', 'state_half'}
    blocks |= {'after.layer.kernel.C', 'after.layer.kernel.l_kernel'}
    check_covered('s4_block', {
        'S4Block': blocks, 'encoder linear, SequenceModel': {'y', 'hidden'}, 'example.py classifier': {'y'},
    })  # fmt: skip


def test_reference_errors_name_the_key() -> None:
    case = next((case for case in load('s4_block').values() if 'layer.kernel.P' in case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no block with P')
    weights = {name: value for name, value in case.param.items() if name != 'layer.kernel.B'}
    with pytest.raises(ValueError, match='no B in the published weights'):
        load_s4_block(weights)
    with pytest.raises(ValueError, match='more has no place'):
        load_s4_block(case.param | {'more': torch.zeros(1)})
