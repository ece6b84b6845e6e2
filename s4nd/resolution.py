"""Size -> step: one scene, sampled more or less densely.

A layer trained on `grid` samples an axis that then holds `size` samples uses its kernel at step = grid / size.
"""

import math
import warnings

import torch


def axis_step(grid: list[int], axis: int, size: int) -> float:
    """Step of one axis that holds `size` samples, and grid[axis] in training; 1 where the grid is empty (unknown)."""
    return grid[axis] / size if len(grid) > 0 else 1.0


def check_grid(grid: tuple[int, ...]) -> None:
    """Raise ValueError unless the grid has 1 to 3 axes of at least one sample each."""
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f'grid must hold 1 to 3 sizes of at least 1 each, got {grid}')


def warn_if_aliased(axis: int, bandlimit: float, step: float) -> None:
    """Warn when modes kept on the training grid are above the Nyquist limit of a coarser one (α · step > 1)."""
    aliased = step > 1 and bandlimit < math.inf and bandlimit * step > 1 + 1e-6
    if aliased and not torch.compiler.is_compiling():
        warnings.warn(
            f'axis {axis}: bandlimit {bandlimit:g} against the training grid exceeds the Nyquist limit of a grid '
            f'{step:g} times coarser; the finest modes alias (a bandlimit of {1 / step:g} would not)',
            stacklevel=3,
        )
