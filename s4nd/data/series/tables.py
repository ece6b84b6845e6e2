"""Tables of numbers with named columns: .csv and .parquet.

Shape legend: T = rows, C = columns.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s4nd.data.labeled import DataError

__all__ = ['Table', 'read_table']


@dataclass(frozen=True)
class Table:
    """The columns of numbers of a file; a first column of dates is left out.

    Attributes:
        names: of the columns; their numbers from 0 where the file has no header.
        values: (T, C) float64, NaN where a cell is empty.
    """

    names: tuple[str, ...]
    values: np.ndarray


def read_table(path: Path) -> Table:
    """Read a .csv or .parquet file with a column per channel and a row per sample.

    Raises:
        DataError: it cannot be read, or a column other than the first holds something else than numbers.
    """
    readers = {'.csv': _read_csv, '.parquet': _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f'{path}: expected a .csv or a .parquet file')
    try:
        return readers[path.suffix.lower()](path)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error


def _read_csv(path: Path) -> Table:
    with path.open(newline='', encoding='utf-8-sig') as file:
        rows = [row for row in csv.reader(file) if row]
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        raise ValueError(f'expected rows of one length, got {widths}')
    first = 1 if len(rows) > 1 and not _is_number(rows[1][0]) else 0  # dates
    headed = not all(map(_is_number, rows[0][first:]))
    names = rows[0][first:] if headed else [str(number) for number in range(widths[0] - first)]
    columns = [[row[at] for row in rows[headed:]] for at in range(first, widths[0])]
    return _table(names, columns)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading .parquet needs the package pyarrow (pip install 's4nd[parquet]')") from error
    try:
        read = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    names, columns = read.column_names, [column.to_pylist() for column in read.columns]
    first = 1 if columns and not all(_is_number(cell) for cell in columns[0][:1]) else 0
    return _table(names[first:], columns[first:])


def _table(names: list[str], columns: list[list[Any]]) -> Table:
    for name, column in zip(names, columns, strict=True):
        wrong = next((row for row, cell in enumerate(column) if not _is_number(cell)), None)
        if wrong is not None:
            raise ValueError(f"column '{name}', row {wrong + 1}: expected a number, got {str(column[wrong])[:40]!r}")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"two columns are called '{repeated}'")
    values = [[np.nan if cell is None or str(cell).strip() == '' else float(cell) for cell in row] for row in columns]
    return Table(tuple(names), np.array(values, dtype=np.float64).T)


def _is_number(cell: Any) -> bool:
    try:
        float(cell if cell is not None and str(cell).strip() else 'nan')
    except (TypeError, ValueError):
        return False
    return True
