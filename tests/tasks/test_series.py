"""Imputation as a task: the loss on what is missing only, batches, training."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s4nd.data.series.masks import blackout
from s4nd.data.series.sets import SeriesData
from s4nd.diffusion import Diffusion
from s4nd.models.sssd import impute
from s4nd.optim import param_groups
from s4nd.tasks.series import SeriesConfig, SeriesEval, SeriesTask, imputation_loss
from s4nd.training.checkpoint import read_metadata
from s4nd.training.config import ConfigError, ModelConfig, OptimConfig
from s4nd.training.loop import fit
from tests.models.test_sssd import make_model, series

CPU = torch.device('cpu')


def make_task(parts: dict[str, Tensor], args: Mapping[str, object] | None = None, **options: object) -> SeriesTask:
    data = SeriesData(masks=['random:0.3', 'gap:4', 'forecast:3'], batch_size=8)
    config = SeriesConfig(seed=4, model=ModelConfig('sssd_s4', dict(args or {})), data=data, **options)
    return SeriesTask(config, parts)


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
    assert len(task.train_batches(0)) == 2

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
    args = {
        'd_model': 16, 'n_layers': 1, 'mixer_args': {'d_state': 8, 'kernel': 's4d'}, 'condition': 8,
        'diffusion': {'steps': 200, 'predicts': 'signal'},
    }  # fmt: skip
    task = make_task(parts, args, eval=SeriesEval(every=20, samples=4))
    task.config.optim = OptimConfig(lr=1e-2, weight_decay=0.0, clip_grad=1.0)
    task.config.epochs, task.config.device = 10, 'cpu'
    torch.manual_seed(0)
    model = task.build_model()
    assert task.config.model.args['channels'] == 2
    before = task.evaluate(model.eval(), CPU)['test_loss']
    summary = fit(model, task, task.config, tmp_path)
    after = summary['history'][-1]['test_loss']
    assert before > 0.9 and after < 0.5 * before
    results = task.evaluate_at(model, CPU, [])
    assert results['test_loss'] == pytest.approx(after)
    test, mask = parts['test'], blackout(parts['test'].shape, torch.Generator().manual_seed(task.config.seed), length=4)
    size = task.config.data.batch_size
    drawn = torch.cat([
        torch.stack([impute(model, *rows, seed=seed, steps=task.config.eval.steps) for seed in range(4)]).mean(0)
        for rows in zip(test.split(size), mask.split(size), strict=True)
    ])  # fmt: skip
    error = (drawn - test)[~mask].square().mean()
    assert error < 0.2 * test[~mask].square().mean() and results['mse_gap:4'] == pytest.approx(error.item(), rel=1e-4)
    again = task.load_model(tmp_path / 'last.safetensors')
    assert read_metadata(tmp_path / 'last.safetensors')['task'] == 'series'
    assert torch.equal(impute(again, test, mask, steps=2), impute(model, test, mask, steps=2))


def test_a_row_that_would_be_hidden_as_a_whole_keeps_what_is_known() -> None:
    holed = waves(8, 0)
    holed[:, :, :-2] = torch.nan  # nothing but what a forecast hides
    task = make_task({'train': holed, 'val': holed, 'test': holed})
    for epoch in range(6):
        for values, mask in task.train_batches(epoch):
            assert mask.flatten(1).any(1).all() and values.isfinite()[mask].all()


def test_mistakes_are_named() -> None:
    parts = dict.fromkeys(('train', 'val', 'test'), waves(8, 0))
    with pytest.raises(ConfigError, match=r"sssd_s4 takes no 'd_modle'; did you mean 'd_model'"):
        make_task(parts, {'d_modle': 3}).build_model()
    task = make_task(parts)
    task.config.model.name = 'sssd_s5'
    with pytest.raises(ConfigError, match=r"no model of series 'sssd_s5'; did you mean 'sssd_s4'"):
        task.build_model()


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
