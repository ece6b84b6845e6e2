"""Series with missing values: imputation and forecasting by conditional diffusion.

Shape legend: B = batch, C = channels, L = samples. Series are (B, C, L); masks are of that shape, True where a value is
observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.data.series.masks import MaskDraw, parse_mask
from s4nd.data.series.sets import SeriesData, load_series
from s4nd.diffusion import Diffusion
from s4nd.models.csdi import CSDIS4
from s4nd.models.sssd import SSSDS4, Imputer, check_series, impute
from s4nd.options import ConfigError, built, check_keywords, named_model, option, section
from s4nd.seeds import generator, generator_at
from s4nd.tasks.base import Chosen, Task
from s4nd.tasks.sharing import evenly, gathered, mean_loss, shared, zeros
from s4nd.training.config import EvalConfig, RunConfig

__all__ = ['SeriesConfig', 'SeriesEval', 'SeriesTask', 'imputation_loss']

MODELS: dict[str, type[Imputer]] = {'sssd_s4': SSSDS4, 'csdi_s4': CSDIS4}


@dataclass
class SeriesEval(EvalConfig):
    """After training, what each kind of mask hides in the test windows is imputed and compared."""

    samples: int = option(5, 'draws whose mean is the estimate; 0: measure the loss only', low=0)
    steps: int | None = option(6, 'denoising steps per draw; null: all', low=1)


@dataclass
class SeriesConfig(RunConfig):
    """A run on series."""

    task: str = option('series', 'the kind of learning')
    data: SeriesData = section(SeriesData)
    eval: SeriesEval = section(SeriesEval)


class SeriesTask(Task):
    """Mean squared error of what a diffusion model predicts of missing values; see `imputation_loss`.

    A batch is (values, mask), both (B, C, L).

    Args:
        config: resolved.
        parts: series (N, C, L) for 'train', 'val' and 'test'. NaN marks what is not known.
        masks: name -> how masks are drawn; None: those of `data.masks`. Each batch takes one of them.
    """

    Config = SeriesConfig
    config: SeriesConfig
    monitor = 'val_loss'
    examples = 'windows'

    def __init__(
        self, config: SeriesConfig, parts: Mapping[str, Tensor], masks: Mapping[str, MaskDraw] | None = None
    ) -> None:
        super().__init__(config)
        self.parts = dict(parts)
        self.train_count = len(self.parts['train'])
        self.masks = dict(masks or {text: parse_mask(text) for text in config.data.masks})
        if not self.masks:
            raise ConfigError('data.masks: expected at least one way to hide values, got none')

    @classmethod
    def from_config(cls, config: SeriesConfig) -> SeriesTask:
        return cls(config, load_series(config.data, config.seed))

    @property
    def diffusion(self) -> Diffusion:
        """The process that the model undoes."""
        return Diffusion(**(self.model_args.get('diffusion') or {}))

    def completed_args(self) -> dict[str, Any]:
        return {'channels': self.parts['train'].shape[1], **self.config.model.args}

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        name = self.config.model.name
        model = named_model(MODELS, name, 'model of series')
        check_keywords(model, args, name)
        return built(model, args)

    def train_batches(self, epoch: int) -> Chosen:
        """Batches in an order, and with masks, fixed by the seed and the epoch."""
        count, size = len(self.parts['train']), self.config.data.batch_size
        order = torch.randperm(count, generator=generator(self.config.seed, epoch)).split(size)
        # A last incomplete batch is dropped, unless it is the only one.
        full = order if len(order) == 1 or len(order[-1]) == size else order[:-1]
        return Chosen(full, lambda chosen: self._masked('train', chosen, epoch))

    def loss(
        self, model: Callable[..., Any], batch: tuple[Tensor, Tensor], random: torch.Generator | None = None
    ) -> Tensor:
        """`imputation_loss` of values and mask (B, C, L)."""
        return imputation_loss(model, self.diffusion, *batch, random)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """{'val_loss', 'test_loss'}, with the same masks, levels and noise at every call."""
        return {f'{part}_loss': self._mean_loss(model, device, part) for part in ('val', 'test')}

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """The losses, and per mask the mean squared error of the imputed values, in units of the series."""
        results = self.evaluate(model, device)
        if self.config.eval.samples:
            results |= {f'mse_{name}': self._error(model, device, draw) for name, draw in self.masks.items()}
        return results

    def _mean_loss(self, model: nn.Module, device: torch.device, part: str) -> float:
        numbers = torch.arange(len(self._limited(part))).split(self.config.data.batch_size)
        batches = Chosen(numbers, lambda chosen: self._masked(part, chosen), even=False)
        return mean_loss(
            batches, lambda batch, random: self.loss(model, batch, random), lambda batch: len(batch[0]), device,
            self.config.seed, f'evaluation on {part}',
        )  # fmt: skip

    def _error(self, model: Any, device: torch.device, draw: MaskDraw) -> float:
        """Of the mean of `eval.samples` draws, over the hidden values that are known."""
        values, options = self._limited('test'), self.config.eval
        mask = _hidden(values, draw, torch.Generator().manual_seed(self.config.seed))
        numbers = torch.arange(len(values)).split(self.config.data.batch_size)
        sums = zeros(2, device)
        for part, counts in shared(Chosen(numbers, lambda chosen: chosen, even=False), 'imputation'):
            rows, observed = values[part].to(device), mask[part].to(device)
            draws = [impute(model, rows, observed, seed=seed, steps=options.steps) for seed in range(options.samples)]
            known = ~observed & rows.isfinite()
            if counts:
                sums[0] += (torch.stack(draws).mean(0) - rows)[known].square().sum()
                sums[1] += known.sum()
        total, count = gathered(sums)
        return total / max(1, count)

    def _limited(self, part: str) -> Tensor:
        """`eval.limit` windows of a part, evenly spaced; all of the training part."""
        values = self.parts[part]
        return values if part == 'train' else values[evenly(len(values), self.config.eval.limit)]

    def _masked(self, part: str, chosen: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Chosen windows of a part, and a mask that follows from the epoch and the first of them."""
        draws, values = list(self.masks.values()), self._limited(part)[chosen]
        random = generator_at(self.config.seed, epoch, int(chosen[0]))
        return values, _hidden(values, draws[int(torch.randint(len(draws), (), generator=random))], random)


def _hidden(values: Tensor, draw: MaskDraw, random: torch.Generator) -> Tensor:
    """A mask of what the model is given; a row that would be given nothing keeps all that is known of it."""
    known = values.isfinite()
    mask = draw(values.shape, random) & known
    return torch.where(mask.flatten(1).any(1)[:, None, None], mask, known)


def imputation_loss(
    model: Callable[..., Tensor],
    diffusion: Diffusion,
    values: Tensor,
    mask: Tensor,
    random: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the prediction (see `Diffusion.loss`) where values are missing by the mask.

    Missing values that nobody knows (NaN) are left out, so that series with gaps of their own can be learned from.
    Raises ValueError as `impute`, and where no missing value is known.
    """
    check_series(values, mask)
    where = ~mask & values.isfinite()
    if not where.any():
        raise ValueError('all missing values are unknown (NaN): there is nothing to learn from')
    clean = values.nan_to_num(0.0, 0.0, 0.0)
    return diffusion.loss(lambda x, t: model(torch.where(mask, clean, x), t, clean, mask), clean, random, where)
