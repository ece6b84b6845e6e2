"""What layers share: the grid that their lengths are counted in, taps remembered between calls, checks of inputs.

Shape legend: B = batch, H = d_model, L1…Ld = size per axis.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from s4nd.ops import observed, values_are_known
from s4nd.ops.dispatch import at_one_size
from s4nd.resolution import check_grid

T = TypeVar('T')


class _Kept(NamedTuple):
    """A remembered result; published as one object, so that threads see all of it or none."""

    key: Hashable
    marks: list[tuple[Any, ...]]
    value: Any


class GridLayer(nn.Module):
    """Base of the layers that are trained on a grid and run on any.

    The grid is the unit of the layer's lengths: dt, band limit, l_max and the width of a cell are counted in samples of
    it. It is stored in the state dict as `training_grid` and adopted on loading, so weights keep it through
    checkpoints, hubs and averaging. An input of another size is the same scene sampled differently, at
    step = grid / size.
    """

    __jit_unused_properties__ = ['grid']
    training_grid: Tensor
    _grid: list[int]

    def __init__(self, grid: Sequence[int] | None, device: torch.device | str | None = None) -> None:
        super().__init__()
        if grid is not None:
            check_grid(tuple(grid))
        self._grid = [] if grid is None else [int(size) for size in grid]
        self._kept: dict[str, _Kept] = {}
        # A mirror of `_grid` for state dicts; what is computed never reads it.
        self.register_buffer('training_grid', torch.tensor(self._grid, dtype=torch.int64, device=device))

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Size of each axis at training; None: unknown, the step is 1.

        Assigning another grid keeps the kernel per sample, so that a larger input is more scene at the same scale.

        Raises:
            ValueError: on assigning sizes that are not positive, or another number of axes.
        """
        return tuple(self._grid) or None

    @grid.setter
    def grid(self, grid: Sequence[int]) -> None:
        check_grid(tuple(grid))
        if self._grid and len(grid) != len(self._grid):
            raise ValueError(f'grid: expected {len(self._grid)} sizes, as {self.grid} has, got {tuple(grid)}')
        self._set_grid(grid)

    @torch.jit.unused
    def _set_grid(self, grid: Sequence[int]) -> None:
        self._grid = [int(size) for size in grid]
        self.forget()
        self._mirror_grid()
        self.grid_changed()

    @torch.jit.unused
    def grid_changed(self) -> None:
        """Follow a new grid; for layers whose kernels span their axes."""

    @torch.jit.unused
    def _mirror_grid(self) -> None:
        grid = torch.tensor(self._grid, dtype=torch.int64, device=self.training_grid.device)
        if self.training_grid.shape == grid.shape:
            with torch.no_grad():
                self.training_grid.copy_(grid)
        else:
            self.training_grid = grid

    @torch.jit.unused
    def forget(self) -> None:
        """Drop remembered taps; for whoever edits weights in ways that neither autograd nor torch can see."""
        self._kept = {}

    @torch.jit.unused
    def remembered(self, name: str, key: Hashable, module: nn.Module, compute: Callable[[], T]) -> T:
        """What compute() makes of the tensors of `module`, from the memory called `name` where that is fresh.

        Results are remembered without gradients and outside training only. They are dropped by `train`, `eval`,
        `load_state_dict`, `to`, `forget` and each forward with gradients, and whenever a tensor is another one than
        before or has other values (on a GPU, where reading values would wait for the device: another version counter).
        """
        # DataParallel's replicas share this memory and differ in their weights.
        if self.training or torch.is_grad_enabled() or observed() or hasattr(self, '_is_replica'):
            self.forget()
            return compute()
        marks = _marks([*module.parameters(), *module.buffers()])
        memory = self._kept
        kept = memory.get(name)
        if kept is None or kept.key != key or not _same(kept.marks, marks):
            kept = _Kept(key, marks, compute())
            memory[name] = kept
        return kept.value

    def train(self, mode: bool = True) -> 'GridLayer':
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'GridLayer':
        self.forget()
        super()._apply(fn, recurse)
        self._mirror_grid()  # `to_empty` left nothing in it
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._mirror_grid()  # averaging in place may have rounded it
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        self.forget()
        key = f'{prefix}training_grid'
        stored = state_dict.get(key)
        if isinstance(stored, Tensor) and not stored.is_meta:
            # Averages and half precision turn whole numbers into floats.
            grid = [round(size) for size in stored.flatten().tolist()]
            if self._grid and grid and len(grid) != len(self._grid):
                error_msgs.append(
                    f'{key}: the weights have a grid of {len(grid)} axes, {grid}, the layer has {self.grid}'
                )
            else:
                self._set_grid(grid)
        state_dict[key] = self.training_grid
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_kept': {}}


def forget(model: nn.Module) -> None:
    """Drop the remembered taps of all layers in `model`.

    Needed only after weights were edited behind autograd's back (through `.data` or another process) on a GPU.
    """
    for layer in model.modules():
        if isinstance(layer, GridLayer):
            layer.forget()


def check_signal(x: Tensor, d_model: int, axes: int) -> Tensor:
    """Return x; raise ValueError unless it is a floating (B, d_model, L1, …, Ld) with no empty axis."""
    if x.dim() != axes + 2 or x.shape[1] != d_model:
        sizes = 'length' if axes == 1 else f'{axes} sizes'
        raise ValueError(f'expected (batch, {d_model}, {sizes}), got shape {list(x.shape)}')
    if min(x.shape[2:]) < 1:
        raise ValueError(f'the input has an empty axis: shape {list(x.shape)}')
    check_floating(x)
    return at_one_size(x)


def check_sample(x: Tensor, d_model: int) -> None:
    """Raise ValueError unless x is a floating (B, d_model)."""
    if x.dim() != 2 or x.shape[1] != d_model:
        raise ValueError(f'step expects (batch, {d_model}), got shape {list(x.shape)}')
    check_floating(x)


def check_floating(x: Tensor) -> None:
    """Raise ValueError unless x holds floating-point numbers."""
    if not x.is_floating_point():
        raise ValueError(f'expected floating-point numbers, got {x.dtype}: convert the input, such as by x.float()')


def check_unit_step(step: float) -> None:
    """Raise ValueError unless step is 1, for layers that count lags in samples."""
    if step != 1.0:
        raise ValueError(f'lags of this layer are counted in samples: expected step 1, got {step}')


def check_padding(padding: Tensor | None, x: Tensor) -> None:
    """Raise ValueError unless padding is None or true and false values (B, L) for x (B, C, L)."""
    if padding is not None and (padding.dtype != torch.bool or padding.shape != (x.shape[0], x.shape[2])):
        raise ValueError(
            f'expected padding of true and false values ({x.shape[0]}, {x.shape[2]}), got {padding.dtype} of shape '
            f'{list(padding.shape)}'
        )


def without_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """x (B, C, L) with zeros where padding (B, L) is true; None: x itself."""
    if padding is None:
        return x
    check_padding(padding, x)
    return x.masked_fill(padding[:, None], 0.0)


def check_dt(dt: Tensor, x: Tensor) -> None:
    """Raise ValueError unless dt holds positive finite times (B, L) for x (B, C, L)."""
    if dt.shape != (x.shape[0], x.shape[2]) or not dt.is_floating_point():
        raise ValueError(
            f'dt must be the time of each sample since the one before, floating-point numbers ({x.shape[0]}, '
            f'{x.shape[2]}), got {dt.dtype} of shape {list(dt.shape)}'
        )
    if values_are_known(dt) and dt.numel() and not ((dt > 0) & (dt < math.inf)).all():
        bad = dt[~((dt > 0) & (dt < math.inf))][0]
        raise ValueError(f'dt must be positive and finite, got {float(bad)}: times must increase from sample to sample')


def _marks(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """What tells a tensor from another, and from itself with other values."""
    marks = []
    for t in tensors:
        version = -1 if t.is_inference() else t._version
        total = _checksum(t) if t.device.type == 'cpu' else 0.0
        marks.append((t, t.data_ptr(), version, t.dtype, t.device, total))
    return marks


def _checksum(t: Tensor) -> float:
    """A weighted sum, so that values that change places count as well."""
    return torch.dot(t.detach().flatten().double(), _weights(t.numel())).item()


@lru_cache(maxsize=64)
def _weights(count: int) -> Tensor:
    return torch.linspace(1.0, 2.0, count, dtype=torch.float64, device='cpu')


def _same(before: list[tuple[Any, ...]], now: list[tuple[Any, ...]]) -> bool:
    return len(before) == len(now) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, now, strict=True))
