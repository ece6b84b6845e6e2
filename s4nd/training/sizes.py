"""Sizes of images as they are written: 32 for a square, '24x40' for 24 rows of 40 pixels."""

from __future__ import annotations

import re
from typing import Any

__all__ = ['Size', 'parse_size', 'size_name']

Size = tuple[int, int]  # height, width in pixels


def parse_size(value: Any) -> Size:
    """16, '16', '24x40' or (24, 40) -> (height, width). Raises ValueError for anything else, and for sizes below 1."""
    if isinstance(value, (tuple, list)):
        value = 'x'.join(map(str, value))
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', str(value))
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1 or isinstance(value, bool):
        raise ValueError(f"expected a size of at least 1, such as 16, or 24x40 (height x width), got '{value}'")
    return size


def size_name(size: Size) -> str:
    """'16' for a square, '24x40' otherwise: what parse_size reads."""
    height, width = size
    return str(height) if height == width else f'{height}x{width}'
