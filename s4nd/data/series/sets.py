"""Windows of multivariate series: out of a file, or embedded sine waves.

Shape legend: N = windows, C = channels, L = samples of a window, T = samples of a recording.
Windows are float32 (N, C, L); NaN marks what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s4nd.data.folders import existing
from s4nd.data.labeled import DataError
from s4nd.data.series.masks import parse_mask
from s4nd.data.series.tables import read_table
from s4nd.data.synthetic.sines import sine_waves
from s4nd.options import option

__all__ = ['SeriesData', 'load_series', 'read_series']


@dataclass
class SeriesData:
    """Windows of `length` samples, and how values are hidden from the model."""

    kind: str = option('sines', 'the set', choices=('sines', 'file'))
    root: str | None = option(
        None, 'file: .csv or .parquet with a column per channel and a row per sample, or .npy (T, C) or (N, C, L)'
    )
    length: int = option(128, 'samples per window', low=2)
    channels: int = option(2, 'sines: channels', low=1)
    masks: list[str] = option(
        ['random:0.5', 'gap:16', 'forecast:16'],
        'what is hidden: random:<share>, gap:, mnr: or forecast:<samples>; each batch takes one of them',
        parse=parse_mask,
    )
    batch_size: int = option(16, 'windows per process and step', low=1)
    val_fraction: float = option(
        0.1, 'file: share held out for validation, and as much again for the test', low=0.01, high=0.4
    )
    train_count: int = option(2000, 'sines: windows to train on', low=1)
    test_count: int = option(100, 'sines: windows to validate on, and as many again for the test', low=1)


def load_series(data: SeriesData, seed: int = 0) -> dict[str, Tensor]:
    """The windows (N, C, L) that `data` describes, for 'train', 'val' and 'test'.

    Windows of a file are scaled, channel by channel, to zero mean and unit variance of the training windows.

    Raises:
        DataError: there is no such file, it cannot be read, or it is too short.
    """
    if data.kind == 'sines':
        counts = {'train': data.train_count, 'val': data.test_count, 'test': data.test_count}
        return {
            part: sine_waves(count, data.channels, data.length, (seed, number))
            for number, (part, count) in enumerate(counts.items())
        }
    path = existing(data.root, 'a .csv, .parquet or .npy file with series')
    windows = _windows(read_series(path), data.length, path)
    held = round(data.val_fraction * len(windows))
    if not held or 2 * held >= len(windows):
        raise DataError(
            f'{path}: data.val_fraction={data.val_fraction} of {len(windows)} windows of {data.length} samples leaves '
            'a part empty'
        )
    ends = len(windows) - 2 * held, len(windows) - held
    parts = dict(zip(('train', 'val', 'test'), windows.tensor_split(ends), strict=True))
    mean, std = _scale(parts['train'], path)
    return {part: ((values - mean) / std).float() for part, values in parts.items()}


def read_series(path: Path) -> Tensor:
    """The values of a file, float64: (T, C) one recording, or (N, C, L) windows. Empty cells of a .csv are NaN.

    Raises:
        DataError: it is no .csv, .parquet or .npy, holds something else than numbers, or another number of axes.
    """
    if path.suffix.lower() not in ('.csv', '.parquet', '.npy'):
        raise DataError(f'{path}: expected a .csv, a .parquet or a .npy file')
    try:
        values = _read_npy(path) if path.suffix.lower() == '.npy' else read_table(path).values
    except DataError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    if values.ndim not in (2, 3) or not values.size:
        raise DataError(f'{path}: expected values (T, C) or (N, C, L), got the shape {values.shape}')
    return torch.from_numpy(values)


def _read_npy(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    if values.dtype.kind not in 'iuf':
        raise ValueError(f'expected numbers, got {values.dtype}')
    return values.astype(np.float64)


def _windows(values: Tensor, length: int, path: Path) -> Tensor:
    """(N, C, L), side by side; those without any known value are left out."""
    if values.ndim == 3:
        if values.shape[2] != length:
            raise DataError(f'{path}: its windows have {values.shape[2]} samples, expected data.length={length}')
        windows = values
    else:
        windows = values[: len(values) // length * length].unflatten(0, (-1, length)).transpose(1, 2)
    known = windows.isfinite().flatten(1).any(1)
    return windows.where(windows.isfinite(), torch.nan)[known]


def _scale(windows: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1) of the known values of each channel; 1 for a constant one."""
    lines = windows.transpose(0, 1).flatten(1)  # (C, N · L)
    mean = lines.nanmean(1, keepdim=True)
    if mean.isnan().any():
        raise DataError(f'{path}: channel {int(mean.isnan().nonzero()[0, 0])} has no known value to train on')
    std = (lines - mean).square().nanmean(1, keepdim=True).sqrt()
    return mean, torch.where(std > 0, std, 1.0)
