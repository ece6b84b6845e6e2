"""Pathfinder (1805.08315) and Path-X of Long Range Arena (2011.04006), drawn anew: are two disks ends of one path?

A picture holds two long dashed paths, short ones that distract, and two disks: at both ends of one path (class 1), or
at one end of each (class 0). Every picture follows from the seed and its number alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from s4nd.data.sequences.sets import SequenceSet
from s4nd.seeds import derived_seed

__all__ = ['Path', 'draw_scene', 'pathfinder']

_DASH, _GAP, _WIDTH, _DISK, _APART = 2.5, 1.5, 1.0, 1.5, 6.0  # in units of `_unit` pixels
_TURN = 0.45  # radians between dashes, at most
_TRIES = 400


@dataclass(frozen=True)
class Path:
    """A dashed path: `points` (K, P, 2) along each dash, as (row, column) in pixels, less than a pixel apart."""

    points: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """The first and the last point (2, 2)."""
        return self.points[[0, -1], [0, -1]]


def pathfinder(
    count: int, side: int, seed: int, *, dashes: int | None = None, distractors: int | None = None
) -> SequenceSet:
    """Draw `count` pictures of side × side pixels, row by row as (N, side², 1) bytes, half of them of each class.

    dashes: per long path; None: 5 at 32 pixels, growing with the square root of the side above. distractors: short
    paths of a third of that; None: 2 at 32 pixels, growing with the side. Raises ValueError where they find no room.
    """
    grown = side / 32
    dashes = round(5 * min(grown, grown**0.5)) if dashes is None else dashes
    distractors = round(2 * grown) if distractors is None else distractors
    labels = torch.arange(count) % 2
    labels = labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    inputs = torch.zeros(count, side * side, 1, dtype=torch.uint8)
    for row in range(count):
        paths, disks = draw_scene(side, int(labels[row]), derived_seed(seed, row), dashes, distractors)
        inputs[row, :, 0] = torch.from_numpy(_render(side, paths, disks).flatten())
    return SequenceSet(inputs, labels, classes=2)


def draw_scene(side: int, label: int, seed: int, dashes: int, distractors: int) -> tuple[list[Path], np.ndarray]:
    """Draw the paths of one picture, the two long ones first, and the centers (2, 2) of its disks."""
    draws = random.Random(seed)
    for _ in range(_TRIES):
        paths: list[Path] = []
        taken = Image.new('1', (side, side))  # what lies too near to the paths so far
        for number in range(2 + distractors):
            path = _walk(draws, np.asarray(taken), dashes if number < 2 else max(1, dashes // 3))
            if path is None:
                break
            paths.append(path)
            for point in path.points.reshape(-1, 2):
                _disk(taken, point, _APART * _unit(side), 1)
        if len(paths) == 2 + distractors:
            first, second = (path.ends for path in paths[:2])
            if label:
                return paths, first
            # The ends of two paths that lie about as far apart as those of one: distance alone tells little.
            pairs = [np.stack([a, b]) for a in first for b in second]
            wanted = np.linalg.norm(first[0] - first[1])
            return paths, min(pairs, key=lambda pair: abs(np.linalg.norm(pair[0] - pair[1]) - wanted))
    raise ValueError(f'paths of {dashes} dashes and {distractors} distractors find no room in {side} × {side} pixels')


def _unit(side: int) -> float:
    """Pixels per unit: one at 32 pixels, two at 128."""
    return (side / 32) ** 0.5


def _walk(draws: random.Random, taken: np.ndarray, dashes: int) -> Path | None:
    """A path that keeps clear of the border, of itself and of what is `taken`; None: none was found."""
    side = len(taken)
    unit, margin, apart = (factor * _unit(side) for factor in (1.0, 2.0, _APART))
    steps = np.linspace(0, _DASH * unit, math.ceil(_DASH * unit) + 1).tolist()
    low, high = margin, side - 1 - margin
    for _ in range(8):
        row, column, angle = draws.uniform(low, high), draws.uniform(low, high), draws.uniform(0, 2 * math.pi)
        found: list[list[tuple[float, float]]] = []
        for _ in range(3 * dashes):  # a dash that finds no room is turned again
            heading = angle + draws.uniform(-_TURN, _TURN)
            down, right = math.sin(heading), math.cos(heading)
            new = [(row + step * down, column + step * right) for step in steps]
            if not all(low <= r <= high and low <= c <= high and not taken[round(r), round(c)] for r, c in new):
                continue
            if any(math.dist(point, old) < apart for dash in found[:-2] for old in dash for point in new):
                continue
            found.append(new)
            if len(found) == dashes:
                return Path(np.array(found))
            (row, column), angle = new[-1], heading
            row, column = row + _GAP * unit * down, column + _GAP * unit * right
    return None


def _render(side: int, paths: list[Path], disks: np.ndarray) -> np.ndarray:
    """Bytes (side, side): dashes and disks in white, their edges smooth."""
    fine, unit = 4, _unit(side)
    large = Image.new('L', (fine * side, fine * side))
    draw = ImageDraw.Draw(large)
    for dash in np.concatenate([path.points for path in paths]):
        draw.line([tuple(fine * (point[::-1] + 0.5)) for point in dash], 255, round(fine * _WIDTH * unit))
    for center in disks:
        _disk(large, fine * (center + 0.5), fine * _DISK * unit, 255)
    return np.asarray(large.resize((side, side), Image.Resampling.BOX))


def _disk(picture: Image.Image, center: np.ndarray, radius: float, ink: int) -> None:
    row, column = center
    ImageDraw.Draw(picture).ellipse((column - radius, row - radius, column + radius, row + radius), fill=ink)
