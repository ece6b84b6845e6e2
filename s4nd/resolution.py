"""Size -> step: one scene, sampled more or less densely.

A layer trained on `grid` samples an axis that then holds `size` samples uses its kernel at step = grid / size.
"""

import math
import re
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]  # height, width in pixels


def axis_steps(grid: list[int], size: list[int]) -> list[float]:
    """Step of each axis that holds size[axis] samples, and grid[axis] in training; 1 where the grid is unknown ([])."""
    return [grid[axis] / size[axis] if len(grid) > 0 else 1.0 for axis in range(len(size))]


def check_grid(grid: tuple[int, ...]) -> None:
    """Raise ValueError unless the grid has 1 to 3 axes of at least one sample each."""
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f'grid must hold 1 to 3 sizes of at least 1 each, got {grid}')


def warn_if_aliased(bandlimit: float, step: float) -> None:
    """Warn, at the user's line, when modes kept on the training grid are above the Nyquist limit of a coarser one."""
    if step > 1 and bandlimit < math.inf and bandlimit * step > 1 + 1e-6:
        warnings.warn(
            f'bandlimit {bandlimit:g} against the training grid exceeds the Nyquist limit of a grid {step:g} times '
            f'coarser; the finest modes alias (a bandlimit of {1 / step:g} would not)',
            stacklevel=user_stacklevel(),
        )


def warn_of_size(size: Sequence[int], grid: Sequence[int]) -> None:
    """Warn, at the user's line, when a model that nobody gave a size is trained at another one than its grid."""
    size, grid = list(map(int, size)), list(grid)
    if size == grid:
        return
    same = len(set(size)) == 1
    argument, word = (size[0], size[0]) if same else (tuple(size), ','.join(map(str, size)))
    warnings.warn(
        f'training at {" x ".join(map(str, size))} with a model made for {" x ".join(map(str, grid))}: it takes the '
        f'input for the same scene, sampled differently. For a model made for this size give img_size={argument} (in '
        f'timm: --model-kwargs img_size={word})',
        stacklevel=user_stacklevel(),
    )


def user_stacklevel() -> int:
    """The stacklevel, for a warning given by the caller, of the first frame outside this package and torch."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get('__name__', '').split('.')[0] in ('s4nd', 'torch', 'timm'):
        level, frame = level + 1, frame.f_back
    return level


def time_steps(times: Tensor, lengths: Tensor | None = None, first: float = 1.0) -> Tensor:
    """Turn the times of samples (B, L) into the `dt` (B, L) that layers take: the time of each since the one before.

    A sample that is missing is a longer step to the next one.

    Args:
        times: at least 0 and increasing, in samples of a regular grid.
        lengths: (B,), samples of each clip; the steps of what comes after them are 1.
        first: step of the first sample, which has none before it.

    Raises:
        ValueError: for times that are negative or do not increase, and a first step that is not positive.
    """
    if times.dim() != 2 or times.shape[1] < 1:
        raise ValueError(f'times must be (batch, length), got shape {list(times.shape)}')
    if not 0 < first < math.inf:
        raise ValueError(f'first must be a positive step, got {first}')
    times = times if times.is_floating_point() else times.to(torch.get_default_dtype())
    dt = torch.cat([torch.full_like(times[:, :1], first), times.diff(dim=1)], 1)
    if lengths is not None:
        padding = torch.arange(times.shape[1], device=times.device) >= lengths[:, None]
        dt, times = dt.masked_fill(padding, 1.0), times.masked_fill(padding, 0.0)
    if not (times >= 0).all():
        raise ValueError(f'times must be at least 0, got {float(times[~(times >= 0)][0])}')
    if not (dt > 0).all():
        row, k = (~(dt > 0)).nonzero()[0].tolist()
        raise ValueError(f'times must increase, got a step of {float(dt[row, k])} before sample {k} of clip {row}')
    return dt


def area_weights(source: int, size: int, like: Tensor | None = None) -> Tensor:
    """The matrix (size, source) that averages a line of `source` samples over `size` equal cells, exactly.

    A sample that lies in several cells counts in each with the part that lies there, so any ratio is exact, not only
    whole ones; each row sums to 1. It has the device and dtype of `like`; without one it is float64, on the CPU.
    """
    device = torch.device('cpu') if like is None else like.device
    dtype = torch.float64 if like is None else like.dtype
    # In units of 1 / (source · size) of the extent, all edges are whole numbers.
    cells = torch.arange(size, device=device)[:, None] * source
    samples = torch.arange(source, device=device) * size
    overlap = torch.minimum(cells + source, samples + size) - torch.maximum(cells, samples)
    return overlap.clamp(min=0).to(dtype) / source


def area_resize(x: Tensor, sizes: list[int]) -> Tensor:
    """Average the last axes of x, as many as there are `sizes`, over that many equal cells each, exactly.

    An axis with fewer samples than cells repeats them: a cell holds the value of the samples that it lies in.
    """
    for axis in range(len(sizes)):
        dim = x.dim() - len(sizes) + axis
        if x.shape[dim] != sizes[axis]:
            weights = area_weights(x.shape[dim], sizes[axis], x)
            x = torch.matmul(x.transpose(dim, -1), weights.transpose(0, 1)).transpose(dim, -1)
    return x


LARGEST_SIDE = 1 << 14  # pixels: larger sizes are mistakes


def parse_size(value: Any) -> Size:
    """16, '16', '24x40' or (24, 40) -> (height, width). Raises ValueError for anything else."""
    if isinstance(value, (tuple, list)):
        value = 'x'.join(map(str, value))
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', str(value))
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1 or isinstance(value, bool):
        raise ValueError(f"expected a size of at least 1, such as 16, or 24x40 (height x width), got '{value}'")
    if max(size) > LARGEST_SIDE:
        raise ValueError(f"expected a size of at most {LARGEST_SIDE} per side, got '{value}'")
    return size


def size_name(size: Size) -> str:
    """'16' for a square, '24x40' otherwise: what parse_size reads."""
    height, width = size
    return str(height) if height == width else f'{height}x{width}'
