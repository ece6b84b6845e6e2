"""Forecasts of the columns of a table, measured beside the last value, the last season and a linear map.

Shape legend: B = batch, P = rows of the past, H = horizon, C = input columns, K = target columns, S = draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.data.series.forecasts import ForecastData, ForecastSet, load_forecast
from s4nd.data.series.masks import future
from s4nd.models.forecast import DLinear, S4Forecaster, fit_linear, last_value, seasonal_naive
from s4nd.models.sssd import SSSDS4, Imputer, impute
from s4nd.options import built, named_model, option, section
from s4nd.seeds import generator
from s4nd.tasks.base import Chosen, Task
from s4nd.tasks.series import imputation_loss
from s4nd.tasks.sharing import evenly, mean_loss
from s4nd.training.config import EvalConfig, RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['ForecastConfig', 'ForecastEval', 'ForecastTask', 'crps']

MODELS: dict[str, Callable[..., nn.Module]] = {'s4_forecaster': S4Forecaster, 'dlinear': DLinear, 'sssd_s4': SSSDS4}
BASELINES = ('last', 'seasonal', 'linear')
_FITTED = 4096  # windows at most of which the linear map is fitted
_ERRORS = 100  # windows at most of which the errors make a spread


@dataclass
class ForecastEval(EvalConfig):
    """What is drawn and shown after training."""

    samples: int = option(20, 'sssd_s4: draws per forecast', low=2)
    steps: int | None = option(6, 'sssd_s4: denoising steps per draw; null: all', low=1)
    picture: str | None = option(
        None, 'file (.png) for three forecasts with intervals; NAME-dark.png beside it; null: none'
    )


@dataclass
class ForecastConfig(RunConfig):
    """A run that forecasts."""

    task: str = option('forecast', 'the kind of learning')
    data: ForecastData = section(ForecastData)
    eval: ForecastEval = section(ForecastEval)


class ForecastTask(Task):
    """Mean squared error of a forecast, or the imputation loss of a diffusion model on the future.

    Metrics are 'mse', 'mae' and 'crps' in units of the training part's standard deviation, and those of the baselines
    ('mse_last', …). Draws make the CRPS: those of a diffusion model; of any other forecast, itself plus its errors on
    the validation windows, row by row of the horizon.
    """

    Config = ForecastConfig
    config: ForecastConfig
    monitor = 'val_loss'

    def __init__(self, config: ForecastConfig, data: ForecastSet) -> None:
        super().__init__(config)
        self.data, self.parts = data, data.parts
        self.train_count = len(self.parts['train'])

    @classmethod
    def from_config(cls, config: ForecastConfig) -> ForecastTask:
        return cls(config, load_forecast(config.data))

    def completed_args(self) -> dict[str, Any]:
        data, name = self.config.data, self.config.model.name
        sizes: dict[str, dict[str, Any]] = {
            's4_forecaster': {'channels': len(self.data.names), 'horizon': data.horizon},
            'dlinear': {'context': data.context, 'horizon': data.horizon},
        }
        targets = {} if name == 'sssd_s4' else {'targets': list(self.data.targets)}
        return {**sizes.get(name, {'channels': len(self.data.names)}), **targets, **self.config.model.args}

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        return built(named_model(MODELS, self.config.model.name, 'forecaster'), args)

    def train_batches(self, epoch: int) -> Chosen:
        """Windows in an order that follows from the seed and the epoch."""
        train, size = self.parts['train'], min(self.config.data.batch_size, len(self.parts['train']))
        order = torch.randperm(len(train), generator=generator(self.config.seed, epoch))
        return Chosen(order[: len(order) // size * size].split(size), train.at)

    def loss(
        self, model: Callable[..., Any], batch: tuple[Tensor, Tensor], random: torch.Generator | None = None
    ) -> Tensor:
        past, later = batch
        if self.config.model.name != 'sssd_s4':
            return F.mse_loss(model(past).float(), later[..., list(self.data.targets)])
        values = torch.cat([past, later], 1).transpose(1, 2)
        mask = future(values.shape, length=later.shape[1]).to(values.device)
        process: Any = getattr(model, 'module', model)
        return imputation_loss(model, process.diffusion, values, mask, random)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The loss on the validation windows, with the same draws at every call."""
        batches = Chosen(self._numbers('val').split(self.config.data.batch_size), self.parts['val'].at, even=False)
        found = mean_loss(
            batches, lambda batch, random: self.loss(model, batch, random), lambda batch: len(batch[0]), device,
            self.config.seed, 'evaluation on val',
        )  # fmt: skip
        return {'val_loss': found}

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """The metrics of the model and of the baselines on the test windows."""
        results: dict[str, float] = {}
        numbers = self._numbers('test')
        _, wanted = self._window('test', numbers)
        for name in ('', *BASELINES):
            draws = self.draws(model.eval(), device, numbers, name)
            center = (
                draws.mean(0) if self._is_drawn(model, name) else self.forecast(model, device, 'test', numbers, name)
            )
            error = center - wanted
            found = {'mse': error.square().mean(), 'mae': error.abs().mean(), 'crps': crps(draws, wanted).mean()}
            results |= {f'{key}_{name}'.rstrip('_'): value.item() for key, value in found.items()}
        if self.config.eval.picture:
            self.draw(model, device, self.config.eval.picture)
        return results

    def forecast(self, model: nn.Module, device: torch.device, part: str, numbers: Tensor, name: str = '') -> Tensor:
        """Forecasts (B, H, K) of windows `numbers` (B,) of a part, by the model or by a baseline."""
        past, _ = self._window(part, numbers)
        data = self.config.data
        if name == 'last':
            return last_value(past, data.horizon)
        if name == 'seasonal':
            return seasonal_naive(past, data.horizon, data.period)
        if name == 'linear':
            fitted = fit_linear(*self._window('train', evenly(len(self.parts['train']), _FITTED)))
            rows = F.pad(past.double().transpose(1, 2), (0, 1), value=1.0)
            return (rows @ fitted).transpose(1, 2).float()
        batches = numbers.split(self.config.data.batch_size)
        return torch.cat([model(self.parts[part].at(batch)[0].to(device)).float().cpu() for batch in batches])

    def draws(self, model: nn.Module, device: torch.device, numbers: Tensor, name: str = '') -> Tensor:
        """Draws (S, B, H, K) of the test windows `numbers`."""
        if self._is_drawn(model, name):
            return self._imputed(model, device, numbers)
        center = self.forecast(model, device, 'test', numbers, name)
        known = evenly(len(self.parts['val']), _ERRORS)
        errors = self._window('val', known)[1] - self.forecast(model, device, 'val', known, name)  # (S, H, K)
        return center + errors[:, None]

    def draw(self, model: nn.Module, device: torch.device, path: str) -> None:
        """Draw three test windows, light and dark: past, truth, forecast and the interval of 80 % of the draws."""
        from s4nd import pictures

        numbers = evenly(len(self.parts['test']), 3)
        past, wanted = self._window('test', numbers)
        draws = self.draws(model, device, numbers)[..., 0]
        low, middle, high = draws.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
        before, after = torch.arange(past.shape[1]), past.shape[1] + torch.arange(wanted.shape[1])

        def windows() -> Figure:
            figure = pictures.figure(3.6)
            panels = figure.subplots(1, len(numbers), squeeze=False, sharey=True)[0]
            for row, panel in enumerate(panels):
                panel.plot(before, past[row, :, 0], color='C5', linewidth=1.2, label='past')
                panel.plot(after, wanted[row, :, 0], color=pictures.ink(), label='truth')
                panel.plot(after, middle[row], color='C0', label='forecast')
                panel.fill_between(after, low[row], high[row], color='C0', alpha=0.25, label='80 % of the draws')
                panel.set_xlabel('row of the window')
            panels[0].set_ylabel(f'{self.data.names[self.data.targets[0]]} (training deviations)')
            pictures.legend(figure, panels)
            return figure

        pictures.write(path, windows, dark=True)

    def _is_drawn(self, model: nn.Module, name: str) -> bool:
        return not name and isinstance(model, Imputer)

    def _imputed(self, model: Any, device: torch.device, numbers: Tensor) -> Tensor:
        options, found = self.config.eval, []
        for batch in numbers.split(self.config.data.batch_size):
            values = torch.cat(self.parts['test'].at(batch), 1).transpose(1, 2).to(device)
            mask = future(values.shape, length=self.config.data.horizon).to(device)
            drawn = [impute(model, values, mask, seed=seed, steps=options.steps) for seed in range(options.samples)]
            found.append(torch.stack(drawn).transpose(2, 3)[:, :, -self.config.data.horizon :].cpu())
        return torch.cat(found, 1)[..., list(self.data.targets)]

    def _window(self, part: str, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Past (B, P, K) and truth (B, H, K) of the targets."""
        past, later = self.parts[part].at(numbers)
        return past[..., list(self.data.targets)], later[..., list(self.data.targets)]

    def _numbers(self, part: str) -> Tensor:
        """The windows to measure on: `eval.limit` of them, evenly spaced."""
        return evenly(len(self.parts[part]), self.config.eval.limit)


def crps(draws: Tensor, wanted: Tensor) -> Tensor:
    """The continuous ranked probability score of draws (S, …) for truths (…): E|x - y| - E|x - x'| / 2.

    Both means are over all draws, and all pairs of them (Gneiting and Raftery, 2007, equation 21). A single draw has
    its absolute error.
    """
    count = len(draws)
    ranks = (2 * torch.arange(1, count + 1, device=draws.device) - count - 1).to(draws.dtype)
    pairs = torch.einsum('s,s...->...', ranks, draws.sort(0).values) / count**2  # half the mean distance of two draws
    return (draws - wanted).abs().mean(0) - pairs
