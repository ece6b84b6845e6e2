"""A prompt taken in by convolution equals a prompt taken in step by step."""

import itertools

import pytest
import torch
from torch import Tensor

from audio import backbone
from audio.backbone import State
from audio.sashimi import SaShiMi
from s4nd.ops.recurrence import CHUNK


def build(pool: tuple[int, ...] = (3, 2), unet: bool = False, **options: object) -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(4, 4, 1, pool, d_state=8, unet=unet, dtype=torch.float64, **options).eval()


def stepped(model: SaShiMi, codes: Tensor, label: Tensor | None = None) -> tuple[Tensor, State]:
    state, system = model.init_state(len(codes)), model.system()
    for code in codes.unbind(1):
        logits, state = model.step(code, state, label=label, system=system)
    return logits, state


def check(model: SaShiMi, codes: Tensor, found: tuple[Tensor, State], label: Tensor | None = None) -> None:
    logits, state = stepped(model, codes, label)
    torch.testing.assert_close(found[0], logits, atol=1e-10, rtol=0)
    assert found[1].keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[1][name], value, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(('pool', 'unet'), [*itertools.product([(), (2,), (3, 2), (4, 1)], [False, True])])
@pytest.mark.parametrize('length', [1, 2, 5, 6, 7, 47, 6 * CHUNK + 13])
@torch.no_grad()
def test_it_equals_stepping(pool: tuple[int, ...], unet: bool, length: int) -> None:
    model = build(pool, unet)
    codes = torch.randint(16, (2, length))
    check(model, codes, model.prefill(codes))
    torch.testing.assert_close(model.prefill(codes)[0], model(codes)[:, -1], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    'options', [{'kernel': 's4d'}, {'kernel': 'ema'}, {'glu': False}, {'ff': 0}, {'init': 'legt'}], ids=str
)
@torch.no_grad()
def test_options(options: dict[str, object]) -> None:
    model = build(**options)
    codes = torch.randint(16, (1, 3 * CHUNK + 1))
    check(model, codes, model.prefill(codes))


@torch.no_grad()
def test_it_goes_on_from_any_state_and_leaves_it_as_it_was() -> None:
    model = build(unet=True, num_classes=3)
    codes, label = torch.randint(16, (2, 100)), torch.tensor([2, 0])
    for cut in (1, 5, 6, 37):
        _, state = model.prefill(codes[:, :cut], label)
        kept = {name: value.clone() for name, value in state.items()}
        for _ in range(2):
            check(model, codes, model.prefill(codes[:, cut:], label, state), label)
        assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)


@torch.no_grad()
def test_a_long_prompt_is_cut_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    codes = torch.randint(16, (1, 200))
    whole = model.prefill(codes)[0]
    monkeypatch.setattr(backbone, '_SEGMENT', 30)
    check(model, codes, model.prefill(codes))
    monkeypatch.setattr(backbone, '_SEGMENT', 1)  # less than a period: one period at a time
    torch.testing.assert_close(model.prefill(codes)[0], whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_bad_prompts() -> None:
    model = build(num_classes=2)
    with pytest.raises(ValueError, match=r'length >= 1, 4\), got \(1, 0, 4\)'):
        model.prefill(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match='a label is needed'):
        model.prefill(torch.zeros(1, 3, dtype=torch.int64))
    _, state = model.prefill(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]))
    state['phase'] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match='same phase'):
        model.prefill(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), state)
