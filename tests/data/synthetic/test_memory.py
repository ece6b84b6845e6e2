"""Tests of memory ask for what their inputs hold, and nothing else."""

import pytest
import torch

from s4nd.data.sequences.sets import IGNORED, SequenceSet
from s4nd.data.synthetic.memory import adding, copying, delay, induction, selective_copying

DRAWS = {
    'copying': lambda seed: copying(300, 40, seed, memory=5, symbols=6),
    'selective_copying': lambda seed: selective_copying(300, 40, seed, memory=5, symbols=6),
    'induction': lambda seed: induction(300, 20, seed, symbols=6),
    'delay': lambda seed: delay(300, 256, seed, lag=100, cycles=5),
    'adding': lambda seed: adding(300, 30, seed),
}


@pytest.mark.parametrize('name', DRAWS)
def test_a_set_follows_from_its_seed(name: str) -> None:
    first, again, other = (DRAWS[name](seed) for seed in (3, 3, 4))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(
        first.targets.nan_to_num(), again.targets.nan_to_num()
    )
    assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize('name', ['copying', 'selective_copying'])
def test_the_symbols_are_asked_in_their_order(name: str) -> None:
    drawn = DRAWS[name](0)
    assert (drawn.tokens, drawn.classes, drawn.per_step) == (8, 8, True)
    for inputs, targets in zip(drawn.inputs, drawn.targets, strict=True):
        assert (inputs[-5:] == 7).all() and not (inputs[:-5] == 7).any()
        assert torch.equal(inputs[:-5][inputs[:-5] > 0], targets[-5:])  # blanks left out
        assert (targets[:-5] == IGNORED).all()
    counts = torch.bincount(drawn.targets[:, -5:].flatten(), minlength=7)[1:]
    assert counts.min() > 0.8 * counts.float().mean() and counts.sum() == 1500  # any symbol alike
    if name == 'copying':
        assert (drawn.inputs[:, :5] > 0).all()
    else:
        share = (drawn.inputs[:, :-5] > 0).float().mean(0)
        assert share.min() > 0.06 and share.max() < 0.25  # anywhere: 5 of 35


def test_induction_asks_for_what_followed_the_marker() -> None:
    drawn = DRAWS['induction'](0)
    for inputs, targets in zip(drawn.inputs, drawn.targets, strict=True):
        first, last = (inputs == 7).nonzero().flatten().tolist()
        assert last == 19 and targets[-1] == inputs[first + 1] and (targets[:-1] == IGNORED).all()
    places = (drawn.inputs[:, :-1] == 7).float().argmax(1)
    assert places.unique().tolist() == list(range(18))


def test_delay_is_noise_of_unit_variance_that_comes_late() -> None:
    drawn = DRAWS['delay'](0)
    signal, targets = drawn.inputs[..., 0], drawn.targets[..., 0]
    assert torch.equal(targets[:, 100:], signal[:, :-100]) and targets[:, :100].isnan().all()
    assert signal.var().item() == pytest.approx(1, abs=0.05) and signal.mean().abs() < 1e-6
    power = torch.fft.rfft(signal).abs().square().mean(0)
    assert power[6:].max() < 1e-6 * power[1:6].min()


def test_adding_sums_two_numbers_of_either_half() -> None:
    drawn = DRAWS['adding'](0)
    assert not drawn.per_step and drawn.outputs == 1
    for inputs, target in zip(drawn.inputs, drawn.targets, strict=True):
        marked = inputs[:, 1].nonzero().flatten()
        assert len(marked) == 2 and marked[0] < 15 <= marked[1]
        assert torch.allclose(inputs[marked, 0].sum(), target[0])
    assert drawn.targets.var().item() == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize(
    ('draw', 'message'),
    [
        (lambda: copying(1, 8, 0, memory=5), 'at most half of the length 8, got 5'),
        (lambda: selective_copying(1, 8, 0, memory=0), 'memory must be at least 1'),
        (lambda: induction(1, 3, 0), 'length must be at least 4, got 3'),
        (lambda: delay(1, 8, 0, lag=8), 'less than the length 8, got 8'),
        (lambda: adding(1, 1, 0), 'length must be at least 2, got 1'),
    ],
)
def test_bad_input(draw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_parts_are_held_out_at_random() -> None:
    drawn = SequenceSet(torch.arange(20)[:, None], torch.arange(20), tokens=20, classes=20)
    rest, held = drawn.hold_out(0.25, torch.Generator().manual_seed(0))
    assert (
        held is not None
        and len(held) == 5
        and torch.cat([rest.targets, held.targets]).sort().values.equal(drawn.targets)
    )
    assert torch.equal(held.inputs[:, 0], held.targets) and not held.targets.equal(torch.arange(15, 20))
    assert drawn.hold_out(0.0, torch.Generator()) == (drawn, None)
