"""SSSD-S4: its block against explicit formulas, noise on what is missing only, imputation."""

import math

import pytest
import torch
from torch import Tensor, nn

from s4nd.data.series.masks import future, random_missing
from s4nd.diffusion import step_features
from s4nd.models.sssd import SSSDS4, SSSDBlock, impute
from tests.oracles import sssd_block

ARGS = {
    'channels': 2, 'd_model': 4, 'n_layers': 2, 'condition': 8, 'mixer_args': {'d_state': 4},
    'diffusion': {'steps': 10},
}  # fmt: skip


def make_model(trained: bool = True) -> SSSDS4:
    torch.manual_seed(0)
    model = SSSDS4(**ARGS).eval()
    if trained:  # the last map begins at zero
        nn.init.normal_(model.leave[-1].weight)
    return model


def series(rows: int = 3, length: int = 12) -> tuple[Tensor, Tensor]:
    """Values (rows, 2, length) and a mask with half of them missing."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(rows, 2, length, generator=random), random_missing((rows, 2, length), random)


def oracle_block(block: SSSDBlock, x: Tensor, known: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    layers = (block.s4_1, block.s4_2)
    linear = {'condition': block.condition, 'conv': block.conv, 'known': block.known, 'out': block.out}
    maps = {name: (module.weight, module.bias) for name, module in linear.items()}
    maps |= {f's4_{i}': (layer.linear.weight, layer.linear.bias) for i, layer in enumerate(layers, 1)}
    taps = [layer.s4.kernels[0](len(x)) for layer in layers]
    kernels = [(k[0], k[1], layer.s4.D[0]) for k, layer in zip(taps, layers, strict=True)]
    return sssd_block(x, known, condition, maps, [(layer.norm.weight, layer.norm.bias) for layer in layers], kernels)


@pytest.mark.parametrize('length', [1, 2, 9])
def test_a_block_equals_the_explicit_formulas(length: int) -> None:
    block = make_model().double().blocks[1]
    inputs = [torch.randn(3, length, 4), torch.randn(3, length, 4), torch.randn(3, 8)]
    inputs = [v.double().requires_grad_() for v in inputs]
    found = block(*inputs)
    rows = [oracle_block(block, *(v[row] for v in inputs)) for row in range(3)]
    expected = [torch.stack(part) for part in zip(*rows, strict=True)]
    assert [part.shape for part in found] == 2 * [(3, length, 4)]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-9)
    gradients = [torch.autograd.grad(sum((y * y.cos()).sum() for y in part), inputs) for part in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-8)


@torch.no_grad()
def test_the_blocks_are_joined_by_skips() -> None:
    model, (values, mask) = make_model(), series()
    x, t = torch.randn_like(values), torch.tensor([1, 5, 10])
    condition = model.step_embedding(step_features(t).float())
    known = torch.cat([values * mask, mask.float()], 1).transpose(1, 2)
    h0 = model.enter((values * mask + x * ~mask).transpose(1, 2)).relu()
    h1, skip1 = model.blocks[0](h0, known, condition)
    _, skip2 = model.blocks[1](h1, known, condition)
    expected = model.leave((skip1 + skip2) / math.sqrt(2)).transpose(1, 2)
    torch.testing.assert_close(model(x, t, values, mask), expected)


def test_the_untrained_model_predicts_no_noise() -> None:
    values, mask = series()
    assert not make_model(trained=False)(values, torch.tensor([1, 5, 10]), values, mask).any()


@torch.no_grad()
def test_noise_is_read_where_values_are_missing_only() -> None:
    model, (values, mask) = make_model(), series()
    x, t = torch.randn_like(values), torch.tensor([3, 3, 3])
    y = model(x, t, values, mask)
    assert torch.equal(y, model(torch.where(mask, 99.0, x), t, values, mask))
    assert torch.equal(y, model(x, t, torch.where(mask, values, 99.0), mask))
    for change in (torch.where(mask, x, x + 1), torch.where(mask, x + 1, x)):
        # Whatever is changed in the right place is seen, in every row.
        seen = model(change, t, values, mask) if not mask.logical_and(change != x).any() else model(x, t, change, mask)
        assert ((seen - y).abs().amax((1, 2)) > 1e-6).all()
    assert not torch.allclose(y, model(x, t + 1, values, mask))


@torch.no_grad()
def test_every_output_depends_on_both_ends_and_all_channels() -> None:
    model, (values, mask) = make_model(), series(1)
    x, t = torch.randn_like(values), torch.tensor([3])
    mask[:] = False
    mask[0, 0, 5] = True
    y = model(x, t, values, mask)
    for place in (0, -1):
        moved = x.clone()
        moved[0, 0, place] += 1
        assert ((model(moved, t, values, mask) - y).abs() > 1e-8).all()


@torch.no_grad()
def test_rows_do_not_meet() -> None:
    model, (values, mask) = make_model(), series()
    x, t = torch.randn_like(values), torch.tensor([1, 5, 10])
    together = model(x, t, values, mask)
    for row in range(3):
        part = slice(row, row + 1)
        torch.testing.assert_close(together[part], model(x[part], t[part], values[part], mask[part]), atol=1e-5, rtol=0)


@pytest.mark.parametrize('steps', [None, 4])
def test_imputation_keeps_what_is_observed_and_follows_the_seed(steps: int | None) -> None:
    model, (values, mask), done = make_model(), series(), []
    values = values.double() / 3
    first = impute(model, values, mask, seed=5, steps=steps, progress=done.append)
    assert first.dtype == torch.float64 and torch.equal(first[mask], values[mask]) and first.isfinite().all()
    assert done == list(range(1, (steps or 10) + 1))
    assert torch.equal(first, impute(model, values, mask, seed=5, steps=steps))
    holes = torch.where(mask, values, torch.nan)
    assert torch.equal(first, impute(model, holes, mask, seed=5, steps=steps))
    other = impute(model, values, mask, seed=6, steps=steps)
    assert ((other != first) == ~mask).all()


@pytest.mark.parametrize('steps', [None, 4])
def test_a_row_is_the_same_in_any_batch(steps: int | None) -> None:
    model, (values, mask) = make_model(), series(4)
    together = impute(model, values, mask, steps=steps)
    torch.testing.assert_close(impute(model, values[:2], mask[:2], steps=steps), together[:2], atol=1e-4, rtol=1e-4)
    twice = impute(model, values[:1].repeat(2, 1, 1), mask[:1].repeat(2, 1, 1), steps=steps)
    assert not torch.allclose(twice[0], twice[1])  # two draws


def test_who_knows_the_noise_recovers_what_is_missing() -> None:
    model, (values, mask) = make_model(), series()

    def knowing(x: Tensor, t: Tensor, given: Tensor, observed: Tensor) -> Tensor:
        assert not given[~observed].any()
        alpha_bar = model.diffusion.alpha_bar[t + 1][:, None, None].to(x)
        return (x - alpha_bar.sqrt() * values) / (1 - alpha_bar).sqrt()

    model.forward = knowing
    for steps in (None, 3):
        torch.testing.assert_close(impute(model, values, mask, steps=steps), values, atol=1e-4, rtol=0)


def spoilt(place: tuple[int, int, int], value: float) -> Tensor:
    values, _ = series()
    values[place] = value
    return values


ALL = torch.ones(3, 2, 12, dtype=torch.bool)


@pytest.mark.parametrize(
    ('values', 'mask', 'message'),
    [
        (series()[0], series()[1][:, :1], r'got \(3, 2, 12\) and \(3, 1, 12\)'),
        (series()[0][0], series()[1][0], r'expected values \(batch, channels, length\).*got \(2, 12\)'),
        (series()[0], series()[1].float(), r'dtype bool \(True: observed\), got torch.float32'),
        (series()[0], ALL & torch.tensor([True, False, True])[:, None, None], 'row 1 has no observed value'),
        (series()[0], ALL, 'nothing is missing'),
        (spoilt((1, 0, 4), math.nan), future((3, 2, 12), length=2), 'got nan in row 1, channel 0 at sample 4'),
        (spoilt((2, 1, 0), math.inf), future((3, 2, 12), length=2), 'got inf in row 2, channel 1 at sample 0'),
    ],
)
def test_series_that_cannot_be_imputed(values: Tensor, mask: Tensor, message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        impute(model, values, mask)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: impute(make_model(), *series(), steps=11), 'from 1 to 10, got 11'),
        (lambda: impute(make_model(), torch.zeros(1, 3, 5), future((1, 3, 5), length=2)), r'\(batch, 2, length\)'),
        (lambda: SSSDS4(0), 'channels must be at least 1, got 0'),
        (lambda: SSSDS4(1, n_layers=0), 'n_layers must be at least 1, got no block'),
        (lambda: SSSDS4(1, condition=0), 'condition must be at least 1, got 0'),
        (lambda: SSSDS4(1, diffusion={'steps': 0}), 'steps must be at least 1'),
        (lambda: SSSDS4(1, diffusion={'predicts': 'x0'}), "predicts must be one of noise, signal, got 'x0'"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
