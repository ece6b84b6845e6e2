"""SSSD-S4: its block against explicit formulas, noise and loss on what is missing only, masks, imputation, training."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audio.denoiser import step_features
from audio.diffusion import Diffusion
from audio.imputation import (
    SSSDS4,
    ImputationTask,
    SSSDBlock,
    blackout,
    future,
    imputation_loss,
    impute,
    random_missing,
)
from s4nd.optim import param_groups
from s4nd.training.checkpoint import load_weights, read_metadata
from s4nd.training.config import AudioConfig, EvalConfig, ModelConfig, OptimConfig
from s4nd.training.loop import Task, fit
from tests.oracles import sssd_block

ARGS = {'channels': 2, 'd_model': 4, 'n_layers': 2, 'd_state': 4, 'condition': 8, 'steps': 10}


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
    condition = model.step_embedding(step_features(t))
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


def test_the_loss_counts_missing_values_only() -> None:
    values, mask = series()
    seen = {}

    def network(x: Tensor, t: Tensor, given: Tensor, observed: Tensor) -> Tensor:
        seen['x'], seen['t'] = x, t
        assert torch.equal(given, values) and observed is mask
        return torch.where(mask, 1e6, torch.zeros_like(x))

    diffusion = Diffusion(steps=10)
    loss = imputation_loss(network, diffusion, values, mask, torch.Generator().manual_seed(3))
    alpha_bar = diffusion.alpha_bar[seen['t']][:, None, None].float()
    noise = (seen['x'] - alpha_bar.sqrt() * values) / (1 - alpha_bar).sqrt()
    assert loss.item() == pytest.approx(noise[~mask].square().mean().item(), rel=1e-3)


def test_the_gradient_of_the_loss_reaches_every_parameter() -> None:
    model, (values, mask) = make_model(), series()
    imputation_loss(model, model.diffusion, values, mask, torch.Generator().manual_seed(3)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    ssm = param_groups(model, lr=0.01)[-1]['params']
    assert len(ssm) == 4 * 5  # log_dt, log_A_real, A_imag, B and P of two S4 layers in two blocks


def test_unknown_values_do_not_count() -> None:
    values, mask = series()
    model, unknown = make_model(), ~mask & (torch.arange(12) % 3 == 0)
    holes = torch.where(unknown, torch.nan, values)
    seen = {}

    def network(x: Tensor, t: Tensor, given: Tensor, observed: Tensor) -> Tensor:
        seen['y'] = model(x, t, given, observed).detach().requires_grad_()
        return seen['y']

    loss = imputation_loss(network, model.diffusion, holes, mask, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and torch.equal(seen['y'].grad != 0, ~mask & ~unknown)
    with pytest.raises(ValueError, match='all missing values are unknown'):
        imputation_loss(model, model.diffusion, torch.where(mask, values, torch.nan), mask)


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
        alpha_bar = model.diffusion.alpha_bar[t][:, None, None].to(x)
        return (x - alpha_bar.sqrt() * values) / (1 - alpha_bar).sqrt()

    model.forward = knowing
    for steps in (None, 3):
        torch.testing.assert_close(impute(model, values, mask, steps=steps), values, atol=1e-4, rtol=0)


def test_random_missing_takes_a_share_of_every_channel() -> None:
    random = torch.Generator().manual_seed(0)
    mask = random_missing((50, 3, 20), random, share=0.3)
    assert mask.dtype == torch.bool and (mask.sum(-1) == 14).all()
    assert (mask.float().mean((0, 1)) - 0.7).abs().max() < 0.15  # any place alike
    assert not torch.equal(mask[:, 0], mask[:, 1])
    assert torch.equal(mask, random_missing((50, 3, 20), torch.Generator().manual_seed(0), share=0.3))
    for share, observed in ((0.001, 19), (0.999, 1)):
        assert (random_missing((2, 3, 20), random, share=share).sum(-1) == observed).all()


def test_a_blackout_takes_all_channels_for_a_stretch() -> None:
    mask = blackout((200, 3, 20), torch.Generator().manual_seed(0), length=4)
    assert torch.equal(mask[:, :1].expand_as(mask), mask)
    starts = set()
    for row in mask[:, 0]:
        missing = (~row).nonzero()[:, 0].tolist()
        assert missing == list(range(missing[0], missing[0] + 4))
        starts.add(missing[0])
    assert starts == set(range(17))


def test_a_forecast_takes_the_end() -> None:
    mask = future((2, 3, 20), length=5)
    assert mask[..., :15].all() and not mask[..., 15:].any()


def make_task(parts: dict[str, Tensor]) -> ImputationTask:
    masks = [partial(random_missing, share=0.3), partial(blackout, length=4), partial(future, length=3)]
    return ImputationTask(parts, masks, Diffusion(predicts='signal'), batch_size=8, seed=4)


def waves(count: int, seed: int) -> Tensor:
    """Two sines of one frequency, a quarter of a period apart: (count, 2, 16)."""
    random = torch.Generator().manual_seed(seed)
    phase, rate = 7 * torch.rand(count, 1, generator=random), 0.4 + 0.4 * torch.rand(count, 1, generator=random)
    angle = phase + rate * torch.arange(16)
    return torch.stack([angle.sin(), angle.cos()], 1) * 2**0.5


def test_the_batches_of_a_task_follow_from_the_epoch() -> None:
    holed = waves(20, 0)
    holed[3, 1, 7:] = torch.nan
    task = make_task({'train': holed, 'val': holed, 'test': holed})
    assert isinstance(task, Task) and len(task.train_batches(0)) == 2

    def all_of(epoch: int) -> list[Tensor]:
        return [torch.cat([values.nan_to_num(9), mask.float()], 1) for values, mask in task.train_batches(epoch)]

    first = all_of(0)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of(0), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, all_of(1), strict=True))
    missing = {int((~mask[0, 0]).sum()) for epoch in range(6) for _, mask in task.train_batches(epoch)}
    assert missing >= {5, 4, 3}  # every way to draw a mask
    for values, mask in task.train_batches(2):
        assert values.isfinite()[mask].all()


def test_training_learns_to_impute(tmp_path: Path) -> None:
    parts = {'train': waves(128, 0), 'val': waves(16, 1), 'test': waves(16, 2)}
    torch.manual_seed(0)
    args = {**ARGS, 'd_model': 16, 'n_layers': 1, 'd_state': 8, 'kernel': 's4d', 'steps': 200, 'predicts': 'signal'}
    model, task = SSSDS4(**args), make_task(parts)
    optim = OptimConfig(lr=1e-2, weight_decay=0.0, clip_grad=1.0)
    config = AudioConfig(
        epochs=10, device='cpu', model=ModelConfig('sssd-s4', args), optim=optim, eval=EvalConfig(every=20)
    )
    before = task.evaluate(model.eval(), 'cpu')['test_loss']
    summary = fit(model, task, config, tmp_path)
    after = summary['history'][-1]['test_loss']
    assert before > 0.9 and after < 0.5 * before
    assert task.evaluate(model, 'cpu')['test_loss'] == pytest.approx(after)
    test, mask = parts['test'], blackout(parts['test'].shape, torch.Generator().manual_seed(0), length=4)
    drawn = torch.stack([impute(model, test, mask, seed=seed, steps=6) for seed in range(4)]).mean(0)
    assert (drawn - test)[~mask].square().mean() < 0.2 * test[~mask].square().mean()
    again = SSSDS4(**args)
    load_weights(tmp_path / 'last.safetensors', again, 'sssd-s4')
    assert read_metadata(tmp_path / 'last.safetensors')['model'] == 'sssd-s4'
    assert torch.equal(impute(again.eval(), test, mask, steps=2), impute(model, test, mask, steps=2))


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
    with pytest.raises(ValueError, match=message):
        imputation_loss(model, model.diffusion, values, mask)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: impute(make_model(), *series(), steps=11), 'from 1 to 10, got 11'),
        (lambda: impute(make_model(), torch.zeros(1, 3, 5), future((1, 3, 5), length=2)), r'\(batch, 2, length\)'),
        (lambda: random_missing((1, 1, 5), share=1.0), 'share must lie between 0 and 1, got 1.0'),
        (lambda: random_missing((1, 1, 1)), r'got \(1, 1, 1\) and 1'),
        (lambda: blackout((1, 1, 5), length=5), r'got \(1, 1, 5\) and 5'),
        (lambda: future((1, 5), length=2), r'a shape \(batch, channels, length\)'),
        (lambda: future((1, 1, 5), length=0), r'got \(1, 1, 5\) and 0'),
        (lambda: SSSDS4(0), 'channels must be at least 1, got 0'),
        (lambda: SSSDS4(1, n_layers=0), 'n_layers must be at least 1, got no block'),
        (lambda: SSSDS4(1, condition=0), 'condition must be at least 1, got 0'),
        (lambda: SSSDS4(1, steps=0), 'steps must be at least 1'),
        (lambda: SSSDS4(1, predicts='x0'), "predicts must be one of noise, signal, got 'x0'"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
