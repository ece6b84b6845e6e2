"""Learning rates: timm's cosine and torch's plateau rule are the oracles, and a resumed run has the same rates."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from s4nd.options import ConfigError
from s4nd.training.config import OptimConfig
from s4nd.training.loop import fit
from s4nd.training.schedule import Schedule, reductions
from tests.training.test_loop import Line, Net, settings


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{'params': [nn.Parameter(torch.zeros(1))], 'lr': rate} for rate in rates])


def rates(schedule: Schedule, updates: int, history: list[dict] | None = None) -> list[list[float]]:
    found = []
    for number in range(updates):
        schedule.update(number, history or [])
        found.append([group['lr'] for group in schedule.optimizer.param_groups])
    return found


def cosine(updates: int, warmup: int) -> list[list[float]]:
    """Of timm, for peaks 0.1 and 0.01."""
    made = CosineLRScheduler(
        optimizer(0.1, 0.01), t_initial=updates, lr_min=1e-6, warmup_t=warmup, warmup_lr_init=1e-6, t_in_epochs=False
    )
    found = [[group['lr'] for group in made.optimizer.param_groups]]
    for number in range(1, updates):
        made.step_update(number)
        found.append([group['lr'] for group in made.optimizer.param_groups])
    return found


def test_the_cosine_is_that_of_timm() -> None:
    schedule = Schedule(optimizer(0.1, 0.01), OptimConfig(lr=0.1, warmup_epochs=1.5), 40, 10)
    assert schedule.warmup == 15 and rates(schedule, 40) == cosine(40, 15)


def test_each_stage_has_its_warmup_and_its_cosine() -> None:
    options = OptimConfig(lr=0.1, warmup_epochs=1, schedule='cosine-per-stage')
    schedule = Schedule(optimizer(0.1, 0.01), options, 60, 10, stages=[4, 2])
    assert rates(schedule, 60) == cosine(40, 10) + cosine(20, 10)
    # max_steps cuts the last stage, and its schedule with it.
    assert rates(Schedule(optimizer(0.1, 0.01), options, 46, 10, stages=[4, 2]), 46) == cosine(40, 10) + cosine(6, 3)
    with pytest.raises(ConfigError, match=r'cosine-per-stage needs data\.stage_epochs'):
        Schedule(optimizer(0.1), options, 60, 10)


def test_a_short_run_is_not_all_warmup() -> None:
    schedule = Schedule(optimizer(0.1, 0.01), OptimConfig(lr=0.1), 20, 1000)
    assert schedule.warmup == 10 and rates(schedule, 20) == cosine(20, 10)
    assert rates(Schedule(optimizer(0.1), OptimConfig(lr=0.1), 1, 1000), 1) == [[0.1]]


@pytest.mark.parametrize('maximize', [False, True])
def test_reductions_are_those_of_torch(maximize: bool) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = (rng.integers(0, 6, 40) + rng.integers(0, 3, 40) * 4e-5).tolist()
        patience = int(rng.integers(0, 5))
        torch_rule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer(1.0), mode='max' if maximize else 'min', factor=0.5, patience=patience, eps=0
        )
        for count, value in enumerate(values, 1):
            torch_rule.step(value)
            expected = round(-math.log2(torch_rule.get_last_lr()[0]))
            assert reductions(values[:count], patience, maximize) == expected


def test_the_plateau_follows_the_monitor_and_stays_above_the_lowest() -> None:
    options = OptimConfig(lr=0.1, warmup_epochs=1, schedule='reduce-on-plateau', plateau_patience=1, min_lr=0.004)
    schedule = Schedule(optimizer(0.1), options, 100, 4, monitor='error')
    history = [{'loss': 1.0, 'error': value} for value in (3.0, 2.0, 2.0, 2.0)]
    history.insert(1, {'loss': 1.0})  # an epoch that was not evaluated
    assert rates(schedule, 4)[0] == [1e-6]
    assert [schedule.rate(50, 0.1, history[:count]) for count in (4, 5)] == [0.1, pytest.approx(0.02)]
    assert schedule.rate(50, 0.1, history * 3) == 0.004


def test_a_resumed_run_has_the_rates_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    for number, options in enumerate(
        ({'schedule': 'reduce-on-plateau', 'plateau_patience': 0}, {'schedule': 'cosine-per-stage'})
    ):
        whole, parts, place = Net(), Net(), tmp_path / str(number)
        tasks = Line(), Line(stop_at=(4, 2)), Line()
        for task in tasks:
            task.stages = (2, 4)
        summary = fit(whole, tasks[0], settings(epochs=6, lr=0.5, **options), place / 'whole')
        with pytest.raises(KeyboardInterrupt):
            fit(Net(), tasks[1], settings(epochs=6, lr=0.5, **options), place / 'parts')
        again = fit(parts, tasks[2], settings(epochs=6, lr=0.5, resume=True, **options), place / 'parts')
        assert summary['history'] == again['history']
        assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    # The schedule did something: the rate fell where the error did not, and each stage ends low.
    assert summary['history'][1]['lr'] < 0.1 * summary['history'][2]['lr']
