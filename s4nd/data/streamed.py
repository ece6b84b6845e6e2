"""Examples that are decoded when they are asked for, by processes that live for the run.

The order is decided in the process that trains, and what is drawn follows from the epoch and the place in it. So the
batches are the same for any number of processes, and an epoch goes on at any batch without reading those before it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s4nd.data.labeled import DataError, ExampleError

__all__ = ['StreamBatches', 'Streamed']

logger = logging.getLogger(__name__)

TRIES = 10  # examples in a row that may be unreadable before one is missing from a batch of training

Found: TypeAlias = tuple[str, Any]  # a path, and what was met there: a reason (text), or what a kind of set notes
# What is made of an example, its place in the epoch, and (number, label) of it and of those that may stand in for it.
Item: TypeAlias = tuple[Any, int, list[tuple[int, int]]]
Batch: TypeAlias = tuple[Tensor | None, Tensor, list[Found]]


class Workers:
    """The processes of a set and of its parts, begun at the first use."""

    def __init__(self) -> None:
        self._count, self._plan, self._turn = -1, _Plan(), 0

    def run(self, examples: Streamed, items: Iterable[list[Item]], count: int) -> Iterator[Batch]:
        """The batches of `items`, prepared by `count` processes; 0: by this one."""
        if count != self._count:
            self._count = count
            self._loader = DataLoader(
                replace(examples, workers=Workers()), batch_sampler=self._plan, collate_fn=_collate, num_workers=count,
                persistent_workers=count > 0, generator=torch.Generator(), pin_memory=torch.cuda.is_available(),
            )  # fmt: skip
        self._turn += 1
        turn, self._plan.items = self._turn, items
        batches = iter(self._loader)
        while turn == self._turn:
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
        raise RuntimeError('other batches of the same set were begun; expected these to be read to their end')


class _Plan:
    items: Iterable[list[Item]] = ()

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.items)


def _collate(items: list[tuple[Tensor | None, int, list[Found]]]) -> Batch:
    good = [(example, label) for example, label, _ in items if example is not None]
    found = [entry for _, _, entries in items for entry in entries]
    if not good:
        return None, torch.tensor([]), found
    return torch.stack([example for example, _ in good]), torch.tensor([label for _, label in good]), found


@dataclass(frozen=True, eq=False)
class Streamed(Dataset):
    """A labeled set, or a part of one: labels (N,) and the numbers (N,) of its examples among `files`.

    An unreadable example is named once and recorded in `bad`. In training the next one stands in for it, in evaluation
    it is left out.
    """

    root: Path
    files: Sequence[str]
    labels: Tensor
    classes: tuple[str, ...]
    numbers: Tensor = field(default_factory=lambda: torch.tensor([]), kw_only=True)
    bad: dict[str, str] = field(default_factory=dict, kw_only=True)  # path -> why
    workers: Workers = field(default_factory=Workers, kw_only=True)
    channels: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.numbers) != len(self.labels):
            object.__setattr__(self, 'numbers', torch.arange(len(self.labels)))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the examples, below `root`."""
        return tuple(self.files[number] for number in self.numbers.tolist())

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(f'{path}: {reason}' for path, reason in sorted(self.bad.items()))

    def select(self, indices: Tensor) -> Self:
        return replace(self, labels=self.labels[indices], numbers=self.numbers[indices])

    @abstractmethod
    def show(self, view: Any, place: int, number: int) -> tuple[Tensor, list[Found]]:
        """What `view` makes of an example at a place in the epoch, and what to note. Raises ExampleError, OSError."""

    def __getitem__(self, item: Item) -> tuple[Tensor | None, int, list[Found]]:
        view, place, candidates = item
        found: list[Found] = []
        for number, label in candidates:
            try:
                example, notes = self.show(view, place, number)
            except (ExampleError, OSError) as error:
                found.append((self.files[number], str(error)))
                continue
            return example, label, found + notes
        return None, -1, found

    def note(self, found: Iterable[Found]) -> None:
        """Name and record unreadable examples, each once."""
        for path, reason in found:
            if path not in self.bad:
                logger.warning('passed over %s: %s', self.root / path, reason)
                self.bad[path] = reason


class StreamBatches:
    """Batches (examples, labels (B,)) of a set in a given order, each as `view` shows it.

    whole: batches of one size, as for training; a last smaller one is dropped unless it is the only one.
    """

    def __init__(
        self, examples: Streamed, order: Tensor, view: Any, batch_size: int, workers: int, *, whole: bool
    ) -> None:
        self.examples, self.order, self.view, self.workers, self.whole = examples, order, view, workers, whole
        self.batch_size = min(batch_size, len(order))
        batches = list(torch.arange(len(order)).split(self.batch_size))
        self.batches = batches[:-1] if whole and len(batches[-1]) < self.batch_size else batches

    def __len__(self) -> int:
        return len(self.batches)

    def _with(self, batches: list[Tensor]) -> StreamBatches:
        part = copy(self)
        part.batches = batches
        return part

    def shard(self, index: int, count: int) -> StreamBatches:
        """The share of process `index` of `count`; with `whole`, every process has as many."""
        return self._with(self.batches[index : len(self) - len(self) % count if self.whole else None : count])

    def skip(self, count: int) -> StreamBatches:
        """The same batches without the first `count`."""
        return self._with(self.batches[count:])

    def _items(self) -> Iterator[list[Item]]:
        count = len(self.examples.labels)
        following = torch.arange(min(TRIES, count) if self.whole else 1)
        for batch in self.batches:
            chosen = (self.order[batch][:, None] + following) % count  # (B, tries)
            numbers, labels = self.examples.numbers[chosen].tolist(), self.examples.labels[chosen].tolist()
            yield [
                (self.view, place, list(zip(*pair, strict=True)))
                for place, *pair in zip(batch.tolist(), numbers, labels, strict=True)
            ]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for examples, labels, found in self.examples.workers.run(self.examples, self._items(), self.workers):
            self.examples.note(found)
            if examples is not None:
                yield examples, labels
            elif self.whole:  # the number of steps is fixed
                raise DataError('not one file of a batch can be read; the warnings name them')
