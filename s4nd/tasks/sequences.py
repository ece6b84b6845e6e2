"""Sequences of numbers or tokens: their class, the class of each sample, or values.

Shape legend: B = batch, L = samples, D = features, O = outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.data.sequences.named import Parts, load_sequences
from s4nd.data.sequences.options import SequenceData
from s4nd.data.sequences.sets import IGNORED, SequenceSet
from s4nd.models.pairs import PairClassifier
from s4nd.models.sequence import SequenceModel
from s4nd.options import ConfigError, built, named_model, option, section
from s4nd.seeds import generator
from s4nd.tasks.base import Chosen, Task
from s4nd.tasks.sharing import evenly, gathered, shared, zeros
from s4nd.training.config import RunConfig

__all__ = ['SequenceBatch', 'SequenceConfig', 'SequenceTask']

MODELS: dict[str, Callable[..., nn.Module]] = {'sequence': SequenceModel, 'pairs': PairClassifier}


class SequenceBatch(NamedTuple):
    """Inputs, targets and lengths as `SequenceSet` has them; inputs are int64 or float."""

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None


@dataclass
class SequenceConfig(RunConfig):
    """A run on sequences."""

    task: str = option('sequence', 'the kind of learning')
    data: SequenceData = section(SequenceData)


class SequenceTask(Task):
    """Cross-entropy where classes or tokens are asked, mean squared error where values are.

    Metrics of classes are 'accuracy' (percent of what is asked) and 'cross_entropy' (nats; 'bits' per token of a text);
    of values 'mse' and 'explained', the share of the variance in percent. Epochs are watched on the validation part.

    Args:
        config: resolved.
        parts: 'train', 'val' and 'test'.
    """

    Config = SequenceConfig
    config: SequenceConfig
    maximize = True

    def __init__(self, config: SequenceConfig, parts: Parts) -> None:
        super().__init__(config)
        self.parts = parts
        self.train_count = len(parts['train'])
        self.classes = bool(parts['train'].classes)
        self.monitor = 'accuracy' if self.classes else 'explained'
        self.loss_unit = 'nats' if self.classes else ''

    @classmethod
    def from_config(cls, config: SequenceConfig) -> SequenceTask:
        return cls(config, load_sequences(config.data, config.seed))

    def completed_args(self) -> dict[str, Any]:
        """Add what the data decide; a model is asked for each sample, or for the mean of all."""
        train, given = self.parts['train'], self.config.model.args
        found = {'d_input': train.tokens or train.features, 'd_output': train.outputs, 'tokens': bool(train.tokens)}
        for name, value in found.items():
            if given.get(name, value) != value:
                raise ConfigError(f'model.args.{name}: the data have {value}, got {given[name]}')
        return {**found, 'head': 'step' if train.per_step else 'mean', **given}

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        return built(named_model(MODELS, self.config.model.name, 'model of sequences'), args)

    def train_batches(self, epoch: int) -> Chosen:
        """Batches in an order that follows from the seed and the epoch."""
        train, data = self.parts['train'], self.config.data
        count = min(len(train), data.train_count) if data.kind == 'text' else len(train)
        order = torch.randperm(len(train), generator=generator(self.config.seed, epoch))[:count]
        size = min(data.batch_size, count)
        return Chosen(order[: count // size * size].split(size), lambda chosen: self.batch(train, chosen))

    @staticmethod
    def batch(part: SequenceSet, chosen: Tensor) -> SequenceBatch:
        """The examples `chosen` (B,), as a model takes them."""
        picked = part.select(chosen)
        inputs, lengths = picked.inputs, picked.lengths
        if lengths is not None:  # what is padding in all of them need not be computed
            inputs = inputs[..., : int(lengths.max())]
        if part.tokens:
            return SequenceBatch(inputs.long(), picked.targets, lengths)
        inputs = inputs.float() / 255 - 0.5 if inputs.dtype == torch.uint8 else inputs.float()
        return SequenceBatch(inputs, picked.targets, lengths)

    def predict(self, model: Callable[..., Any], inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (model(inputs) if lengths is None else model(inputs, lengths=lengths)).float()

    def loss(self, model: Callable[..., Any], batch: SequenceBatch) -> Tensor:
        inputs, targets, lengths = batch
        outputs = self.predict(model, inputs, lengths)
        if self.classes:
            return F.cross_entropy(outputs.flatten(0, -2), targets.long().flatten(), ignore_index=IGNORED)
        asked = targets.isfinite()
        return F.mse_loss(outputs[asked], targets[asked])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the validation part."""
        return self.measure(model, device, 'val')

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """On the test part."""
        return self.measure(model.eval(), device, 'test')

    def measure(self, model: nn.Module, device: torch.device, part: str) -> dict[str, float]:
        """The metrics on `eval.limit` examples of a part, evenly spaced."""
        sums = zeros(4, device)
        for batch, counts in shared(self._batches(part), f'evaluation on {part}'):
            inputs, targets, lengths = (None if item is None else item.to(device) for item in batch)
            assert inputs is not None and targets is not None  # only lengths can be None
            found = self._sums(self.predict(model, inputs, lengths), targets)
            if counts:
                sums += found
        first, second, third, count = gathered(sums)
        if not self.classes:
            variance = third / count - (second / count) ** 2
            return {'explained': 100 * (1 - first / count / max(variance, 1e-12)), 'mse': first / count}
        metrics = {'accuracy': round(100 * first / count, 4), 'cross_entropy': second / count}
        return metrics | ({'bits': second / count / math.log(2)} if self.config.data.kind == 'text' else {})

    def _sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Right answers and cross-entropy; or squared errors, values and their squares; last, what was asked."""
        if self.classes:
            targets = targets.long().flatten()
            asked = targets != IGNORED
            logits, targets = outputs.flatten(0, -2)[asked], targets[asked]
            right = (logits.argmax(1) == targets).sum().float()
            entropy = F.cross_entropy(logits, targets, reduction='sum')
            return torch.stack([right, entropy, torch.zeros_like(right), asked.sum().float()])
        asked = targets.isfinite()
        outputs, targets = outputs[asked], targets[asked]
        error = (outputs - targets).square().sum()
        return torch.stack([error, targets.sum(), targets.square().sum(), asked.sum().float()])

    def _batches(self, name: str) -> Chosen:
        part = self.parts[name]
        chosen = evenly(len(part), self.config.eval.limit)
        return Chosen(chosen.split(self.config.data.batch_size), lambda rows: self.batch(part, rows), even=False)
