"""One remembered result that is dropped as soon as anything it was computed from changes."""

import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor


class Memo:
    """Holds what was computed from some tensors, for use in evaluation without autograd.

    A result is valid for the same key while every tensor is the same object with the same storage, dtype, device and
    version counter; optimizer steps, load_state_dict, `.to` and in-place edits all change one of these. (Writes through
    `tensor.data` do not: autograd cannot see them either.) Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._seen: list[tuple] = []
        self._value: Any = None

    def get(self, key: Hashable, tensors: Iterable[Tensor], compute: Callable[[], Any]) -> Any:
        """The remembered value for `key`, or compute() where there is none or it is stale."""
        tensors = list(tensors)
        # Inference tensors have no version counter, so their edits could not be noticed.
        if torch.is_grad_enabled() or any(t.is_inference() for t in tensors):
            self.clear()
            return compute()
        if self._key != key or not self._fresh(tensors):
            self._value = compute()
            self._key = key
            self._seen = [(weakref.ref(t), *_mark(t)) for t in tensors]
        return self._value

    def clear(self) -> None:
        """Forget."""
        self._key, self._seen, self._value = None, [], None

    def _fresh(self, tensors: list[Tensor]) -> bool:
        return len(tensors) == len(self._seen) and all(
            seen[0]() is t and seen[1:] == _mark(t) for seen, t in zip(self._seen, tensors, strict=True)
        )

    def __deepcopy__(self, memo: dict) -> 'Memo':
        return Memo()

    def __reduce__(self) -> tuple:
        return (Memo, ())


def _mark(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device
