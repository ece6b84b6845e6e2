"""Progress bars of long loops; of several processes the first one shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ['bar', 'progress']

Item = TypeVar('Item')


def bar(**options: Any) -> tqdm:
    """tqdm's bar; rare lines where nobody looks at a terminal, nothing in other processes than the first."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(**{'mininterval': interval, 'disable': os.environ.get('RANK', '0') != '0', **options})


def progress(items: Iterable[Item], text: str, unit: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a bar where it takes longer than two seconds; the bar goes when they are done."""
    return bar(iterable=items, desc=text, unit=f' {unit}', total=total, delay=2, leave=False)
