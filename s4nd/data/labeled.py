"""Labeled examples, whatever they are: splits, held-out parts, and a selection spread over the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

__all__ = [
    'NORMALIZATION',
    'DataError',
    'ExampleError',
    'LabeledSet',
    'Splits',
    'hold_out',
    'make_splits',
    'spread_over_classes',
]

NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # Mean and standard deviation of the training images, for channels in 0…1.
    'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    'fashion_mnist': ((0.2860,), (0.3530,)),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'folder': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'shapes': ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    'moving': ((0.19,), (0.13,)),
}


class DataError(ValueError):
    """Data that cannot be used: where, what was found, and what was expected."""


class ExampleError(ValueError):
    """An example that cannot be used, and why."""


class LabeledSet(Protocol):
    """Examples with a class each."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, indices into `classes`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def channels(self) -> int: ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """What could not be read."""
        ...

    def select(self, indices: Tensor) -> Self: ...


Set = TypeVar('Set', bound=LabeledSet)


@dataclass(frozen=True)
class Splits(Generic[Set]):
    """What is trained on, what picks a checkpoint (None: nothing held out) and what is reported."""

    train: Set
    val: Set | None
    test: Set

    @property
    def skipped(self) -> list[str]:
        return sorted({*self.train.skipped, *(self.val.skipped if self.val else ()), *self.test.skipped})


def hold_out(examples: Set, fraction: float) -> tuple[Set, Set | None]:
    """Keep back the last `fraction` of every class: (rest, held out), the second None where the fraction is 0."""
    if fraction == 0:
        return examples, None
    held = torch.zeros(len(examples.labels), dtype=torch.bool)
    for label in range(len(examples.classes)):
        members = (examples.labels == label).nonzero().flatten()
        held[members[len(members) - round(fraction * len(members)) :]] = True
    if not held.any() or held.all():
        raise DataError(
            f'data.val_fraction={fraction} of {len(held)} examples leaves one side empty, expected 0 or a share that '
            'holds some examples of a class, and not all'
        )
    return examples.select((~held).nonzero().flatten()), examples.select(held.nonzero().flatten())


def make_splits(
    train: Set, test: Set | None, val_fraction: float, problem: str, *, eval_only: bool = False
) -> Splits[Set]:
    """Hold out `val_fraction` of the training examples; they stand for the test where there is none.

    eval_only: nothing is trained, so where nothing is held out either, all examples are the test.

    Raises:
        DataError: with `problem`, where there is neither.
    """
    train, val = hold_out(train, val_fraction)
    measured = val if test is None else test
    if measured is None and eval_only:
        measured = train
    if measured is None:
        raise DataError(f'{problem}: set data.val_fraction, so that examples held out of every class take its place')
    return Splits(train, val, measured)


def spread_over_classes(examples: Set, limit: int | None) -> Set:
    """The first examples of every class in turn, `limit` in all; all of them where limit is None."""
    if limit is None or limit >= len(examples.labels):
        return examples
    order = torch.argsort(examples.labels, stable=True)
    counts = torch.bincount(examples.labels, minlength=len(examples.classes))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[examples.labels[order]]
    chosen = order[torch.argsort(rank, stable=True)[:limit]]
    return examples.select(chosen.sort().values)
