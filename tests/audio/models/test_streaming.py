"""Stretches of any lengths from any state equal the whole clip, and stepping through it."""

import itertools

import pytest
import torch
from torch import Tensor

from audio.models import backbone
from audio.models.sashimi import SaShiMi
from s4nd.layers.streaming import State, Streaming
from s4nd.ops.recurrence import CHUNK


def build(pool: tuple[int, ...] = (3, 2), unet: bool = False, **options: object) -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(4, d_model=4, n_layers=1, pool=pool, d_state=8, unet=unet, dtype=torch.float64, **options).eval()


def stepped(model: SaShiMi, codes: Tensor, label: Tensor | None = None) -> tuple[Tensor, State]:
    state, system, outputs = model.init_state(len(codes)), model.system(), []
    for code in codes.unbind(1):
        logits, state = model.step(code, state, system, label=label)
        outputs.append(logits)
    return torch.stack(outputs, 1), state


def check(model: SaShiMi, codes: Tensor, found: tuple[Tensor, State], label: Tensor | None = None) -> None:
    logits, state = stepped(model, codes, label)
    torch.testing.assert_close(found[0], logits[:, -found[0].shape[1] :], atol=1e-10, rtol=0)
    assert found[1].keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[1][name], value, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(('pool', 'unet'), [*itertools.product([(), (2,), (3, 2), (4, 1)], [False, True])])
@pytest.mark.parametrize('length', [1, 2, 5, 6, 7, 47, 6 * CHUNK + 13])
@torch.no_grad()
def test_it_equals_stepping(pool: tuple[int, ...], unet: bool, length: int) -> None:
    model = build(pool, unet)
    codes = torch.randint(16, (2, length))
    found = model(codes, model.init_state(2))
    check(model, codes, found)
    torch.testing.assert_close(found[0], model(codes), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    'options', [{'kernel': 's4d'}, {'kernel': 'ema'}, {'glu': False}, {'ff': 0}, {'init': 'legt'}], ids=str
)
@torch.no_grad()
def test_options(options: dict[str, object]) -> None:
    model = build(**options)
    codes = torch.randint(16, (1, 3 * CHUNK + 1))
    check(model, codes, model(codes, model.init_state(1)))


@torch.no_grad()
def test_it_goes_on_from_any_state_and_leaves_it_as_it_was() -> None:
    model = build(unet=True, num_classes=3)
    codes, label = torch.randint(16, (2, 100)), torch.tensor([2, 0])
    for cut in (1, 5, 6, 37):
        _, state = model(codes[:, :cut], model.init_state(2), label=label)
        kept = {name: value.clone() for name, value in state.items()}
        for _ in range(2):
            check(model, codes, model(codes[:, cut:], state, label=label), label)
        assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)


@torch.no_grad()
def test_a_long_stretch_is_cut_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    codes = torch.randint(16, (1, 200))
    whole = model(codes)
    monkeypatch.setattr(backbone, '_SEGMENT', 30)
    check(model, codes, model(codes, model.init_state(1)))
    monkeypatch.setattr(backbone, '_SEGMENT', 1)  # less than a period: one period at a time
    torch.testing.assert_close(model(codes, model.init_state(1))[0], whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_bad_stretches() -> None:
    model = build(num_classes=2)
    with pytest.raises(ValueError, match=r'length >= 1, 4\), got \(1, 0, 4\)'):
        model(torch.zeros(1, 0, dtype=torch.int64), model.init_state(1), label=torch.tensor([0]))
    with pytest.raises(ValueError, match='a label is needed'):
        model(torch.zeros(1, 3, dtype=torch.int64), model.init_state(1))
    label = torch.tensor([0, 1])
    _, state = model(torch.zeros(2, 3, dtype=torch.int64), model.init_state(2), label=label)
    state['phase'] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match='same phase'):
        model(torch.zeros(2, 3, dtype=torch.int64), state, label=label)


@pytest.mark.parametrize('unet', [False, True])
@pytest.mark.parametrize('sizes', [[1] * 40, [7, 1, 12, 20], [6, 6, 28], [39, 1]], ids=str)
@torch.no_grad()
def test_chunks_of_any_sizes_equal_the_whole(unet: bool, sizes: list[int]) -> None:
    model = build(unet=unet)
    codes = torch.randint(16, (2, 40))
    state, outputs = model.init_state(2), []
    for part in codes.split(sizes, 1):
        logits, state = model(part, state)
        outputs.append(logits)
    check(model, codes, (torch.cat(outputs, 1), state))


def test_a_stretch_has_the_gradients_of_the_whole() -> None:
    model = build(unet=True)
    x = torch.randn(1, 150, 4, dtype=torch.float64)
    weight = torch.randn(1, 150, 4, dtype=torch.float64)
    (model.backbone(x) * weight).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.backbone.named_parameters()}
    model.zero_grad()
    head, state = model.backbone(x[:, :50], model.backbone.init_state(1))
    tail, _ = model.backbone(x[:, 50:], state)
    (torch.cat([head, tail], 1) * weight).sum().backward()
    for name, p in model.backbone.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-8, rtol=1e-8, msg=name)


def test_models_fulfil_the_contract() -> None:
    model = build()
    assert isinstance(model, Streaming) and isinstance(model.backbone, Streaming)
    assert isinstance(model.backbone.center[0], Streaming)
