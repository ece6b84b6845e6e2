"""What tasks with classes share: accuracy and cross-entropy over all processes, and the check of a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.data.labeled import DataError, Set, Splits
from s4nd.options import ConfigError
from s4nd.resolution import parse_size
from s4nd.tasks.base import Epoch, Task
from s4nd.tasks.sharing import gathered, shared, zeros
from s4nd.training.checkpoint import read_metadata
from s4nd.training.config import RunConfig

__all__ = ['LabeledTask', 'score']

logger = logging.getLogger(__name__)


class LabeledTask(Task, Generic[Set]):
    """A task on labeled examples; epochs are watched on the held-out ones, on the test ones where none are held out.

    Args:
        config: resolved.
        splits: what to train on, what picks the best weights, and what the final evaluation measures.
        examples: what the examples are called in messages.
    """

    mean: Tensor  # per channel, of the inputs; set by each kind of examples
    std: Tensor
    maximize = True
    loss_unit = 'nats'

    def __init__(self, config: RunConfig, splits: Splits[Set], examples: str) -> None:
        super().__init__(config)
        if config.eval.weights == 'best' and splits.val is None and not config.eval_only:
            raise ConfigError(
                f'eval.weights=best needs held-out {examples} to choose by: set data.val_fraction above 0'
            )
        self.splits = splits
        self.train_count, self.examples = len(splits.train.labels), examples
        self.classes: Sequence[str] = splits.train.classes
        self.channels: int = splits.train.channels

    @property
    def watched(self) -> Set:
        return self.splits.val if self.splits.val is not None else self.splits.test

    @property
    def skipped(self) -> list[str]:
        return self.splits.skipped

    def notes(self) -> dict[str, Any]:
        """How many of the test examples `evaluate_at` measures."""
        total, limit = len(self.splits.test.labels), self.config.eval.limit
        return {'test_examples': {'measured': total if limit is None else min(limit, total), 'total': total}}

    @property
    def metadata(self) -> dict[str, str]:
        return {**super().metadata, 'classes': json.dumps(self.classes)}

    @property
    def data_config(self) -> dict[str, Any]:
        size = (self.channels, *parse_size(self.axes['size'].trained))
        return {'input_size': size, 'mean': self.mean.flatten().tolist(), 'std': self.std.flatten().tolist()}

    def completed_args(self) -> dict[str, Any]:
        found = {'num_classes': len(self.classes), 'in_chans': self.channels}
        for name, count in found.items():
            given = self.config.model.args.get(name, count)
            if given != count:
                raise ConfigError(f'model.args.{name}: the data have {count}, got {given}')
        return {**found, **self.config.model.args}

    def load_model(self, path: str | Path) -> nn.Module:
        """As `Task.load_model`; warns where classes have other names than those stored with the weights."""
        model, stored = super().load_model(path), read_metadata(path).get('classes')
        if stored not in (None, json.dumps(self.classes)):
            names = ', '.join(self.classes[:3])
            logger.warning(
                'the weights name their classes %.60s…, the data %s, …: compared in this order', stored, names
            )
        return model

    def misfit(self) -> str:
        count = self.model_args.get('num_classes', len(self.classes))
        return '' if count == len(self.classes) else f'tells {count} classes apart, the data are of {len(self.classes)}'


def score(
    scores: Callable[[Any], Tensor], batches: Epoch, device: torch.device | str, text: str = 'evaluation'
) -> tuple[float, float]:
    """Accuracy (percent) and mean cross-entropy of `scores(inputs)` (B, classes), over all processes.

    Args:
        batches: of (inputs, labels (B,)); this process computes its share of them.
        text: what the progress bar calls it.

    Raises:
        DataError: there is no example.
    """
    sums = zeros(3, device)  # right answers, summed cross-entropy, examples
    for (inputs, labels), counts in shared(batches, text):
        logits, labels = scores(inputs).float(), labels.to(device)
        if counts:
            sums[0] += (logits.argmax(1) == labels).sum()
            sums[1] += F.cross_entropy(logits, labels, reduction='sum')
            sums[2] += len(labels)
    right, entropy, count = gathered(sums)
    if not count:
        raise DataError('nothing to evaluate on: not one example could be read')
    return round(100 * right / count, 4), entropy / count
