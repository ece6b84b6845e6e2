"""Drawn scenes in the manner of photographs, of classes that CIFAR-10 has."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ['DRAWINGS', 'draw']

_SIDE = 256  # pixels on which a scene is drawn; smaller pictures are area averages
_Color = tuple[int, int, int]


def draw(name: str, size: int = _SIDE, seed: int = 0) -> Image.Image:
    """Draw the scene `name` of `DRAWINGS`, size × size pixels, RGB; `seed` decides its texture.

    Raises:
        ValueError: for an unknown name, or a size outside 1 to 256.
    """
    if name not in DRAWINGS:
        raise ValueError(f'unknown drawing {name!r}: expected one of {", ".join(DRAWINGS)}')
    if not 1 <= size <= _SIDE:
        raise ValueError(f'size must be between 1 and {_SIDE}, got {size}')
    picture = DRAWINGS[name](np.random.default_rng(seed)).filter(ImageFilter.GaussianBlur(1.2))
    return picture.resize((size, size), Image.Resampling.BOX)


def _ship(random: np.random.Generator) -> Image.Image:
    sky, sea = _shade((120, 165, 210), (205, 220, 230), 140), _shade((40, 90, 130), (15, 45, 80), _SIDE - 140)
    picture, pen = _paint(np.concatenate([sky, sea]), random, {8: 5, 64: 8})
    pen.polygon([(30, 120), (230, 120), (205, 165), (55, 165)], fill=(45, 40, 48))
    pen.polygon([(30, 120), (230, 120), (227, 128), (33, 128)], fill=(170, 50, 40))
    pen.rectangle((75, 88, 175, 120), fill=(235, 235, 232))
    pen.rectangle((95, 65, 150, 88), fill=(225, 225, 222))
    pen.rectangle((112, 35, 132, 65), fill=(190, 60, 45))
    pen.rectangle((112, 35, 132, 43), fill=(30, 30, 30))
    for x in range(82, 170, 14):
        pen.rectangle((x, 97, x + 7, 106), fill=(70, 90, 110))
    pen.line((200, 120, 200, 70), fill=(60, 60, 60), width=4)
    return picture


def _airplane(random: np.random.Generator) -> Image.Image:
    picture, pen = _paint(_shade((70, 130, 200), (190, 215, 235), _SIDE), random, {4: 2, 64: 10})
    pen.ellipse((30, 112, 225, 142), fill=(235, 236, 238))
    pen.polygon([(40, 120), (22, 78), (48, 78), (75, 116)], fill=(60, 80, 150))
    pen.polygon([(110, 130), (165, 130), (105, 205), (85, 205)], fill=(200, 203, 208))
    pen.polygon([(120, 118), (160, 118), (128, 75), (112, 75)], fill=(180, 183, 190))
    pen.polygon([(40, 132), (70, 132), (40, 152), (28, 152)], fill=(190, 193, 198))
    pen.ellipse((112, 160, 140, 172), fill=(90, 95, 105))
    for x in range(90, 205, 11):
        pen.rectangle((x, 122, x + 4, 126), fill=(60, 70, 90))
    return picture


def _automobile(random: np.random.Generator) -> Image.Image:
    sky, road = _shade((175, 190, 205), (210, 215, 215), 130), _shade((120, 118, 115), (85, 84, 82), _SIDE - 130)
    picture, pen = _paint(np.concatenate([sky, road]), random, {4: 4, 32: 6})
    pen.ellipse((25, 190, 235, 215), fill=(50, 50, 50))
    pen.polygon([(70, 120), (95, 75), (165, 75), (200, 120)], fill=(150, 20, 22))
    pen.polygon([(80, 118), (100, 83), (127, 83), (127, 118)], fill=(150, 180, 195))
    pen.polygon([(134, 83), (161, 83), (187, 118), (134, 118)], fill=(140, 170, 185))
    pen.rounded_rectangle((20, 115, 240, 185), 18, fill=(190, 28, 30))
    pen.rectangle((20, 165, 240, 178), fill=(120, 15, 18))
    for x in (70, 190):
        pen.ellipse((x - 28, 155, x + 28, 211), fill=(25, 25, 26))
        pen.ellipse((x - 14, 169, x + 14, 197), fill=(170, 172, 175))
    pen.ellipse((222, 128, 238, 144), fill=(250, 240, 200))
    return picture


DRAWINGS = {'ship': _ship, 'airplane': _airplane, 'automobile': _automobile}


def _shade(top: _Color, bottom: _Color, height: int) -> np.ndarray:
    """A vertical gradient (height, _SIDE, 3)."""
    weight = np.linspace(0, 1, height)[:, None, None]
    return (np.array(top) * (1 - weight) + np.array(bottom) * weight) * np.ones((1, _SIDE, 1))


def _paint(
    ground: np.ndarray, random: np.random.Generator, clouds: dict[int, float]
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture of the ground, with noise of each width (pixels) and strength (levels) over it, and a pen for it."""
    for width, strength in clouds.items():
        coarse = Image.fromarray(random.normal(size=(_SIDE // width,) * 2).astype(np.float32))
        ground = ground + strength * np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))[..., None]
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    return picture, ImageDraw.Draw(picture)
