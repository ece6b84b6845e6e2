"""SaShiMi: any length, stepping, causality, state, sizes and bad input."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from audio.models.backbone import SaShiMiBackbone
from audio.models.keywords import model_keywords
from audio.models.sashimi import SaShiMi, ordered_codes
from s4nd import hippo
from s4nd.layers import S4


def backbone(
    n_layers: int = 1, pool: tuple[int, ...] = (2, 2), ff: int = 2, unet: bool = False, **rest: object
) -> SaShiMiBackbone:
    torch.manual_seed(0)
    dtype = rest.pop('dtype', torch.float64)
    given = {'d_model': 4, 'n_layers': n_layers, 'pool': pool, 'ff': ff, 'unet': unet, 'd_state': 8} | rest
    return SaShiMiBackbone(**model_keywords(SaShiMiBackbone, given, owner='it', layer=S4), dtype=dtype).eval()


def run_steps(model: SaShiMiBackbone, x: Tensor, prepared: bool = False) -> Tensor:
    state, out = model.init_state(len(x)), []
    system = model.system() if prepared else None
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state, system, phase=t % model.period if prepared else None)
        out.append(y)
    return torch.stack(out, 1)


GRID = [
    *itertools.product((1, 2), ((), (2,), (2, 2), (3, 2)), (0, 2), (False, True)),
    (3, (2, 2), 2, True),
    (2, (2, 2, 2), 2, True),
    (1, (4, 1), 1, False),
]


@pytest.mark.parametrize(('n_layers', 'pool', 'ff', 'unet'), GRID)
@torch.no_grad()
def test_step_equals_forward(n_layers: int, pool: tuple[int, ...], ff: int, unet: bool) -> None:
    model = backbone(n_layers, pool, ff, unet)
    x = torch.randn(2, 2 * model.period + 3, 4, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(run_steps(model, x, prepared=True), expected, atol=1e-10, rtol=0)
    single = model.float()
    torch.testing.assert_close(run_steps(single, x.float()), single(x.float()), atol=1e-4, rtol=0)


@pytest.mark.parametrize('kernel', ['s4', 's4d'])
@torch.no_grad()
def test_float32_steps_over_a_thousand_samples(kernel: str) -> None:
    model = backbone(pool=(4, 4), kernel=kernel, d_state=64, dtype=torch.float32)
    x = torch.randn(1, 1000, 4)
    torch.testing.assert_close(run_steps(model, x, prepared=True), model(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize('unet', [False, True])
@torch.no_grad()
def test_every_length_is_the_prefix_of_a_longer_run(unet: bool) -> None:
    model = backbone(pool=(3, 2), unet=unet)
    x = torch.randn(2, 2 * model.period + 1, 4, dtype=torch.float64)
    longest = model(x)
    for length in range(1, x.shape[1]):
        torch.testing.assert_close(model(x[:, :length]), longest[:, :length], atol=1e-12, rtol=0)


@pytest.mark.parametrize('unet', [False, True])
def test_causality_by_gradients(unet: bool) -> None:
    model = backbone(unet=unet)
    x = torch.randn(1, 10, 4, dtype=torch.float64, requires_grad=True)
    y = model(x)
    for t in range(10):
        (gradient,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        # Exactly zero ahead in the mathematics; the FFT leaves rounding.
        assert gradient[0, t + 1 :].abs().max() <= 1e-12 if t < 9 else True
        assert gradient[0, t].abs().max() > 1e-6


def test_a_bidirectional_model_looks_ahead_and_does_not_step() -> None:
    model = backbone(bidirectional=True)
    x = torch.randn(1, 8, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0, 0].square().sum(), x)
    assert gradient[0, -1].abs().max() > 1e-9
    for call in (model.system, lambda: model.init_state(1), lambda: model.step(torch.zeros(1, 4), {})):
        with pytest.raises(ValueError, match=r'bidirectional model .* cannot step'):
            call()


@torch.no_grad()
def test_a_state_can_be_used_twice_and_stays_as_it_was() -> None:
    model = backbone(unet=True)
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    state = model.init_state(3)
    for t in range(9):
        kept = {key: value.clone() for key, value in state.items()}
        first, following = model.step(x[:, t], state)
        second, again = model.step(x[:, t], state)
        assert torch.equal(first, second)
        assert all(torch.equal(following[key], again[key]) for key in again)
        assert state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)
        state = following


@torch.no_grad()
def test_state_is_flat_batch_first_and_follows_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        state = backbone(unet=True, dtype=dtype).init_state(5)
        assert all(isinstance(value, Tensor) and value.shape[0] == 5 for value in state.values())
        assert {value.dtype for key, value in state.items() if key != 'phase'} == {dtype}
    model = backbone()
    x = torch.randn(4, 7, 4, dtype=torch.float64)
    state, alone = model.init_state(4), model.init_state(1)
    for t in range(7):
        y, state = model.step(x[:, t], state)
        y2, alone = model.step(x[2:3, t], alone)
        torch.testing.assert_close(y[2:3], y2, atol=1e-12, rtol=0)
        # A row of the batch is the state of that row.
        torch.testing.assert_close(state['center.0.x'][2:3], alone['center.0.x'], atol=1e-12, rtol=0)


@torch.no_grad()
def test_rows_at_different_phases_are_refused() -> None:
    model = backbone()
    state = model.init_state(2)
    state['phase'] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r'same phase, got \[0, 1\]'):
        model.step(torch.zeros(2, 4, dtype=torch.float64), state)


@torch.no_grad()
def test_stepping_follows_new_weights() -> None:
    model = backbone()
    x = torch.randn(1, 5, 4, dtype=torch.float64)
    run_steps(model, x)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(run_steps(model, x), model(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    'options', [{'glu': False}, {'n_ssm': 'd_model'}, {'n_ssm': 2}, {'init': 'fout'}, {'dropout': 0.5}]
)
@torch.no_grad()
def test_options_step_as_they_run(options: dict[str, object]) -> None:
    model = backbone(**options)
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(run_steps(model, x), model(x), atol=1e-9, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    model, x = backbone(dropout=0.5), torch.randn(1, 8, 4, dtype=torch.float64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize('unet', [False, True])
def test_every_parameter_has_a_gradient(unet: bool) -> None:
    torch.manual_seed(0)
    model = SaShiMi(4, d_model=4, n_layers=1, pool=(2, 2), d_state=8, unet=unet)
    model(torch.randint(16, (2, 12))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ('options', 'count'),
    [
        ({}, 4_764_160),
        ({'n_ssm': 'd_model'}, 5_447_680),
        ({'glu': False}, 4_072_448),
        ({'n_ssm': 'd_model', 'unet': True}, 6_840_832),  # published as 6.8M
    ],
)
def test_published_parameter_counts(options: dict[str, object], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Thousands of rows begin alike; their decomposition is not what is counted.
    monkeypatch.setattr(hippo, 'nplr', functools.lru_cache(hippo.nplr))
    model = SaShiMi(8, device='meta', **options)
    assert sum(p.numel() for p in model.parameters()) == count


@torch.no_grad()
def test_tokens_step_as_they_run() -> None:
    torch.manual_seed(0)
    model = SaShiMi(5, d_model=8, n_layers=1, pool=(2, 3), d_state=8).eval()
    tokens = torch.randint(32, (2, 15))
    logits, state = model(tokens), model.init_state(2)
    assert logits.shape == (2, 15, 32)
    for t in range(15):
        step, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(step, logits[:, t], atol=1e-4, rtol=0)


@torch.no_grad()
def test_classes_step_as_they_run_and_change_the_prediction() -> None:
    torch.manual_seed(0)
    model = SaShiMi(5, d_model=8, n_layers=1, pool=(2, 3), d_state=8, num_classes=3).eval()
    tokens, label = torch.randint(32, (2, 15)), torch.tensor([2, 0])
    logits, state = model(tokens, label=label), model.init_state(2)
    for t in range(15):
        step, state = model.step(tokens[:, t], state, label=label)
        torch.testing.assert_close(step, logits[:, t], atol=1e-4, rtol=0)
    other = model(tokens, label=torch.tensor([2, 1]))
    torch.testing.assert_close(other[0], logits[0], atol=1e-5, rtol=0)
    assert (other[1] - logits[1]).abs().amax(-1).min() > 1e-3  # at every sample


def test_the_class_is_a_learnt_shift_of_the_token() -> None:
    model = SaShiMi(4, d_model=4, n_layers=1, pool=(2,), d_state=8, num_classes=3)
    tokens, label = torch.randint(16, (2, 6)), torch.tensor([2, 0])
    expected = model.embedding(tokens) + model.class_embedding.weight[label][:, None]
    torch.testing.assert_close(model.embed(tokens, label), expected)
    torch.testing.assert_close(model.embed(tokens[:, 1], label), expected[:, 1])
    model(tokens, label=label).square().sum().backward()
    rows = model.class_embedding.weight.grad.abs().sum(1)
    assert rows[0] > 0 and rows[2] > 0 and rows[1] == 0
    # Without classes the model is what it was: no parameter more.
    assert not any(
        'class' in name for name, _ in SaShiMi(4, d_model=4, n_layers=1, pool=(2,), d_state=8).named_parameters()
    )


@pytest.mark.parametrize(
    ('num_classes', 'label', 'message'),
    [
        (3, None, 'has 3 classes: a label is needed for each of 2 clips'),
        (None, torch.tensor([0, 1]), 'built without classes'),
        (3, torch.tensor([0, 3]), r'from 0 to 2, got \[0, 3\]'),
        (3, torch.tensor([-1, 0]), r'from 0 to 2, got \[-1, 0\]'),
        (3, torch.tensor([0]), r'whole numbers \(2,\), got \(1,\)'),
        (3, torch.tensor([0.0, 1.0]), 'whole numbers .* torch.float32'),
    ],
)
def test_bad_labels(num_classes: int | None, label: Tensor | None, message: str) -> None:
    model, tokens = (
        SaShiMi(4, d_model=4, n_layers=1, pool=(2,), d_state=8, num_classes=num_classes),
        torch.zeros(2, 6, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=message):
        model(tokens, label=label)
    with pytest.raises(ValueError, match=message):
        model.check_label(label, 2)
    if 'from 0' not in message:
        with pytest.raises(ValueError, match=message):
            model.step(tokens[:, 0], model.init_state(2), label=label)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'d_model': 0}, 'd_model must be at least 1, got 0'),
        ({'n_layers': 0}, 'n_layers must be at least 1, got 0'),
        ({'pool': (4, 0)}, r'pool factors must be at least 1, got \(4, 0\)'),
        ({'expand': 0}, 'expand must be at least 1, got 0'),
        ({'ff': -1}, 'ff must be at least 0, got -1'),
        ({'n_ssm': 'all'}, "'d_model', got 'all'"),
        ({'n_ssm': 3}, 'n_ssm'),
        ({'kernel': 's6'}, "'s6'"),
        ({'init': 'zeros'}, "'zeros'"),
        ({'dt_min': -1.0}, 'dt_min'),
        ({'norm': 'group'}, "unknown norm 'group'"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(**({'n_layers': 1} | options))


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 5), (2, 0, 4)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'expected .*4.*got'):
        backbone()(torch.zeros(shape, dtype=torch.float64))


def test_bad_step_shape_and_bits() -> None:
    model = backbone()
    with pytest.raises(ValueError, match=r'expected \(batch, 4\), got \(1, 1, 4\)'):
        model.step(torch.zeros(1, 1, 4, dtype=torch.float64), model.init_state(1))
    with pytest.raises(ValueError, match='bits must be from 1 to 16, got 17'):
        SaShiMi(17)
    with pytest.raises(ValueError, match='num_classes must be at least 1, or None for no classes, got 0'):
        SaShiMi(8, num_classes=0)


@pytest.mark.parametrize(('n_codes', 'width'), [(256, 64), (256, 25), (16, 4)])
def test_ordered_codes_look_like_their_neighbors(n_codes: int, width: int) -> None:
    codes = ordered_codes(n_codes, width)
    assert codes.shape == (n_codes, width) and 0.8 < codes.square().mean() < 1.2
    alike = torch.nn.functional.cosine_similarity(codes[:, None], codes[None], dim=-1)
    assert (alike.diagonal(1) > 0.6).all() and (alike.diagonal(1) > alike.diagonal(n_codes // 2).max()).all()
    # A model that begins so says of a code, by its skips alone, that something near it follows.
    model = SaShiMi(4, d_model=8, n_layers=1, pool=(2,), d_state=4, ordered=True)
    torch.testing.assert_close(model.embedding.weight, ordered_codes(16, 8))
    assert torch.equal(model.head(model.embedding.weight).argmax(-1), torch.arange(16))
    assert not torch.equal(
        SaShiMi(4, d_model=8, n_layers=1, pool=(2,), d_state=4).embedding.weight, ordered_codes(16, 8)
    )
