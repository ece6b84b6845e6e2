"""The contract of a task: what the training loop, the evaluation and the report ask of a kind of learning.

A task holds no state besides its configuration and its data: everything random follows from the seed and the epoch, so
that a resumed run equals an uninterrupted one.

A point is one way to sample the inputs, written as in the names of metrics: '16' and '24x40' (pixels), '8fps' (frames
per second), '8000' (Hz). Points of one kind form an `Axis`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from s4nd.options import ConfigError
from s4nd.training.checkpoint import CheckpointError, load_weights, read_metadata, stored_args

if TYPE_CHECKING:
    from s4nd.training.config import RunConfig

__all__ = ['Axis', 'Chosen', 'Epoch', 'Resampled', 'Task']


@dataclass(frozen=True)
class Axis:
    """Points of one kind at which a trained model is measured.

    Attributes:
        unit: of the numbers in the names of the points, such as 'pixels per side'.
        trained: the point at which the model is trained.
        points: what the final evaluation measures, rising.
    """

    unit: str
    trained: str
    points: tuple[str, ...]


class Epoch(Protocol):
    """The batches of one epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def shard(self, index: int, count: int) -> Epoch:
        """The share of process `index` of `count`; all shares have as many batches."""
        ...

    def skip(self, count: int) -> Epoch:
        """The same batches without the first `count`."""
        ...


class Chosen:
    """Batches of chosen examples; a process reads those of its own batches, and nothing else.

    Args:
        chosen: the numbers (B,) of the examples of each batch.
        make: makes a batch of such numbers.
        even: whether all shares have as many batches, as those of an `Epoch` have, so that some may be left out; an
            evaluation leaves none out.
    """

    def __init__(self, chosen: Sequence[Tensor], make: Callable[[Tensor], Any], *, even: bool = True) -> None:
        self.chosen, self.make, self.even = chosen, make, even

    def __len__(self) -> int:
        return len(self.chosen)

    def shard(self, index: int, count: int) -> Chosen:
        last = len(self) // count * count if self.even else len(self)
        return Chosen(self.chosen[index:last:count], self.make, even=self.even)

    def skip(self, count: int) -> Chosen:
        return Chosen(self.chosen[count:], self.make, even=self.even)

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.chosen)


class Task(ABC):
    """One kind of learning with its data, made from a resolved configuration by `from_config`.

    Attributes:
        Config: schema of its configurations, a subclass of `RunConfig` with sections of its own.
        monitor: metric of `evaluate` that picks the best checkpoint.
        maximize: whether larger values of it are better.
        model_args: keywords that build the model, as stored with the weights; `build_model` completes them.
        loss_unit, loss_scale: the unit in which the loss is shown, and what brings it there.
        train_count: examples to train on; None: not known.
        examples: what they are called.
        stages: epochs of each stage of the training, for a schedule per stage; empty: there is one.
    """

    Config: ClassVar[type[RunConfig]]
    config: Any  # an instance of Config
    monitor: str
    maximize: bool = False
    loss_unit: str = ''
    loss_scale: float = 1.0
    train_count: int | None = None
    examples: str = 'examples'
    stages: Sequence[int] = ()

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.model_args: dict[str, Any] = dict(config.model.args)

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Task:
        """Read the data of a resolved `Config` and return the task, of this class or of one that `config` chooses.

        Raises:
            ValueError: for options or data that cannot be used.
        """

    @classmethod
    def words_from(cls, metadata: Mapping[str, str]) -> list[str]:
        """The key=value words that weights without a configuration imply, such as data.size=16."""
        return []

    @abstractmethod
    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        """Build `config.model.name` from exactly these keywords.

        Raises:
            ConfigError: an unknown name or keyword, with the nearest right one.
        """

    def build_model(self) -> nn.Module:
        """A new model for the data; completes `config.model.args` and `model_args` by what follows from the data."""
        self.config.model.args = self.model_args = self.completed_args()
        return self.make_model(self.model_args)

    def completed_args(self) -> dict[str, Any]:
        """`config.model.args` and what follows from the data (classes, channels, size)."""
        return dict(self.config.model.args)

    def load_model(self, path: str | Path) -> nn.Module:
        """The model of a weights file, built with the keywords stored there, in evaluation mode on the CPU.

        Raises:
            CheckpointError: the file is damaged, or of another model than `config.model.name`.
        """
        metadata, name = read_metadata(path), self.config.model.name
        saved = metadata.get('model', 'an unnamed model')
        if saved != name:
            raise CheckpointError(f'{path} holds the weights of {saved}, expected {name}')
        self.model_args = stored_args(path, metadata)
        problem = self.misfit()
        if problem:
            raise CheckpointError(f'{path} {problem}')
        try:
            model = self.make_model(self.model_args)
        except ConfigError as error:
            raise CheckpointError(f'{path}: {error}') from error
        load_weights(path, model, name)
        return model.eval()

    def misfit(self) -> str:
        """Why a stored model with `model_args` does not fit the data, as the predicate of a sentence; '': it does."""
        return ''

    @abstractmethod
    def train_batches(self, epoch: int) -> Epoch:
        """The batches of an epoch, as many in every one, in an order that the seed and the epoch decide."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """The scalar to minimize, of a batch on the model's device."""

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics for watching a run, at the training point; `monitor` is among them."""

    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """Final metrics at `points`, named '<metric>@<point>'. A task without axes gives those of `evaluate`."""
        return self.evaluate(model, device)

    @property
    def batch_size(self) -> int:
        """Examples per process and step in training."""
        return self.config.data.batch_size

    @property
    def axes(self) -> dict[str, Axis]:
        """Axis name ('size', 'frame_rate', …) -> axis; empty where inputs are always sampled alike."""
        return {}

    @property
    def resamples(self) -> bool:
        """Whether inputs at any point can be brought to the training point."""
        return bool(self.axes)

    @property
    def metadata(self) -> dict[str, str]:
        """What is stored beside the weights: how to build the model, where it was trained, what its outputs mean."""
        return {'args': json.dumps(self.model_args), **{name: axis.trained for name, axis in self.axes.items()}}

    @property
    def skipped(self) -> list[str]:
        """Files that could not be read, with the reason where one is known."""
        return []

    @property
    def data_config(self) -> dict[str, Any]:
        """How inputs are prepared, in timm's words, for the config.json of the run."""
        return {}

    def unit(self, metric: str) -> str:
        """The unit of a metric of `evaluate`, or of 'loss'; '': it has none."""
        if metric == 'loss' or metric.endswith('_loss'):
            return self.loss_unit
        return {'accuracy': '%', 'cross_entropy': 'nats'}.get(metric.partition('@')[0], '')

    def notes(self) -> dict[str, Any]:
        """Further entries of the report."""
        return {}

    def example(self, point: str, count: int) -> Tensor | None:
        """Random inputs (count, …) at `point`, to measure times with; None: no times are measured."""
        return None

    def predict(self, model: Callable[..., Any], inputs: Tensor) -> Tensor:
        """The model's outputs for prepared inputs, as the metrics take them."""
        return model(inputs)

    def resample(self, inputs: Tensor) -> Tensor:
        """What the model is given, at any point, brought to the training point; asked for where `resamples`."""
        raise NotImplementedError


class Resampled(nn.Module):
    """The baseline of every resolution table: inputs are brought to the training point, and `model` runs there."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(self.task.resample(inputs))
