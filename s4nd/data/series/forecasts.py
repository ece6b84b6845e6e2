"""Windows of a table for forecasting, in the splits under which ETT, ECL and weather are reported.

Shape legend: T = rows, C = input columns, K = target columns, P = rows of the past, H = horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s4nd.data.folders import existing
from s4nd.data.labeled import DataError
from s4nd.data.series.tables import Table, read_table
from s4nd.options import nearest, option

__all__ = ['ForecastData', 'ForecastSet', 'Windows', 'load_forecast']

# Rows of the training, validation and test part: 12, 4 and 4 months of 30 days, as ETT is reported.
MONTHS = {'ett_hour': 30 * 24, 'ett_minute': 30 * 24 * 4}


@dataclass
class ForecastData:
    """The rows of a table: from `context` of them the next `horizon` are forecast."""

    root: str | None = option(None, 'a .csv or .parquet file, a row per time, a column per series; dates come first')
    target: str = option('', 'columns to forecast, with commas between them; empty: all')
    inputs: str = option('all', 'columns that are seen', choices=('all', 'target'))
    split: str = option(
        'auto',
        'rows of the parts: months of ETT, or 70, 10 and 20 %; auto: by the name of the file',
        choices=('auto', 'ett_hour', 'ett_minute', 'shares'),
    )
    context: int = option(96, 'rows that are seen', low=1)
    horizon: int = option(24, 'rows that are forecast', low=1)
    period: int = option(24, 'rows per season, of the baseline that repeats the last one', low=1)
    batch_size: int = option(32, 'windows per process and step', low=1)


@dataclass(frozen=True)
class Windows:
    """All windows of some rows (T, C): window i is rows i … i + P + H - 1."""

    rows: Tensor
    context: int
    horizon: int

    def __len__(self) -> int:
        return max(0, len(self.rows) - self.context - self.horizon + 1)

    def at(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The pasts (B, P, C) and what comes after them (B, H, C) of windows `numbers` (B,)."""
        windows = self.rows[numbers[:, None] + torch.arange(self.context + self.horizon)]
        return windows[:, : self.context], windows[:, self.context :]


@dataclass(frozen=True)
class ForecastSet:
    """Windows for 'train', 'val' and 'test', scaled column by column by the training part.

    names: of the C columns. targets: the numbers of the K columns to forecast. mean, std: (C,), before scaling.
    """

    parts: dict[str, Windows]
    names: tuple[str, ...]
    targets: tuple[int, ...]
    mean: Tensor
    std: Tensor


def load_forecast(data: ForecastData) -> ForecastSet:
    """Read, split and scale the table that `data` describes.

    The pasts of the first windows of 'val' and 'test' reach into the part before.

    Raises:
        DataError: there is no such file or column, a cell is empty, or a part is too short.
    """
    path = existing(data.root, 'a .csv or .parquet file with a column per series')
    table = read_table(path)
    names, values = _columns(table, data, path)
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"{path}: column '{names[column]}' has no number in row {row + 1}; a forecast needs all values, "
            'task=series fills in gaps'
        )
    ends = _ends(data, path, len(values))
    train = values[: ends[0]]
    if not len(train):
        raise DataError(f'{path}: {len(values)} rows leave nothing to train on')
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    scaled, parts, start = ((values - mean) / std).float(), {}, 0
    for part, end in zip(('train', 'val', 'test'), ends, strict=True):
        windows = Windows(scaled[max(0, start - (data.context if start else 0)) : end], data.context, data.horizon)
        if len(windows) < 1:
            raise DataError(
                f'{path}: its {part} part, {end - start} of {len(values)} rows, is too short for '
                f'data.context={data.context} and data.horizon={data.horizon}'
            )
        parts[part], start = windows, end
    wanted = _wanted(data) or list(names)
    return ForecastSet(parts, names, tuple(names.index(name) for name in wanted), mean, std)


def _wanted(data: ForecastData) -> list[str]:
    return [name.strip() for name in data.target.split(',') if name.strip()]


def _columns(table: Table, data: ForecastData, path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names and values (T, C) of the columns that are seen."""
    wanted = _wanted(data)
    for name in wanted:
        if name not in table.names:
            raise DataError(f"data.target: {path} has no column '{name}'{nearest(name, list(table.names))}")
    seen = wanted if wanted and data.inputs == 'target' else list(table.names)
    values = torch.from_numpy(table.values[:, [table.names.index(name) for name in seen]])
    return tuple(seen), values


def _ends(data: ForecastData, path: Path, rows: int) -> tuple[int, int, int]:
    """Where the training, validation and test part end."""
    split = data.split
    if split == 'auto':
        stem = path.stem.lower()
        split = 'ett_hour' if stem.startswith('etth') else 'ett_minute' if stem.startswith('ettm') else 'shares'
    if split == 'shares':
        test = int(0.2 * rows)
        return int(0.7 * rows), rows - test, rows
    month = MONTHS[split]
    if rows < 20 * month:
        raise DataError(f'{path}: {rows} rows, expected at least {20 * month} with data.split={split}')
    return 12 * month, 16 * month, 20 * month
