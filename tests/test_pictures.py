"""The style of pictures: colors that readers tell apart, on light and on dark pages, and legends that cover nothing."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from s4nd import pictures

ROOT = Path(__file__).parents[1]
# Machado, Oliveira and Fernandes (2009), table 1, severity 1: linear RGB as each kind of reader sees it.
SIGHTS = {
    'common': np.eye(3),
    'protanopia': np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    'deuteranopia': np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear(color: str) -> np.ndarray:
    value = np.array(to_rgb(color))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB (sRGB's primaries, D65)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ rgb.clip(0, 1) / (to_xyz @ np.ones(3))
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize('form', pictures.COLORS)
def test_colors_stand_out(form: str) -> None:
    luminance = [float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in pictures.COLORS[form]]
    ground = float(linear(pictures.GROUNDS[form]) @ [0.2126, 0.7152, 0.0722])
    contrasts = [(max(ground, own) + 0.05) / (min(ground, own) + 0.05) for own in luminance]
    assert min(contrasts) >= 3, contrasts  # WCAG 2.1, 1.4.11


@pytest.mark.parametrize('sight', SIGHTS)
@pytest.mark.parametrize('form', pictures.COLORS)
def test_colors_can_be_told_apart(form: str, sight: str) -> None:
    seen = [lab(SIGHTS[sight] @ linear(color)) for color in pictures.COLORS[form]]
    distances = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(range(6), 2)}
    assert min(distances.values()) >= 10, distances


def test_the_documents_show_each_picture_light_and_dark() -> None:
    files = {path.name for path in (ROOT / 'docs' / 'pictures').iterdir()}
    texts = [path.read_text(encoding='utf-8') for path in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]]
    assert {name for text in texts for name in re.findall(r'pictures/([\w-]+\.png)', text)} == files
    light = {name for name in files if not name.endswith('-dark.png')}
    assert {pictures.dark_name(Path(name)).name for name in light} == files - light
    for text in texts:
        light = re.findall(r'([\w-]+)\.png#gh-light-mode-only', text)
        assert [f'{name}-dark' for name in light] == re.findall(r'([\w-]+)\.png#gh-dark-mode-only', text)


def sample() -> Figure:
    made = pictures.figure(3)
    panels = made.subplots(1, 2)
    for panel in panels:
        panel.plot([0, 1], [1, 1], label='top')
        panel.plot([0, 1], [0, 1], label='rising')
    pictures.legend(made, panels)
    return made


def test_a_picture_is_written_in_both_forms(tmp_path: Path) -> None:
    light, dark = pictures.write(tmp_path / 'a.png', sample, dark=True)
    assert (light.name, dark.name) == ('a.png', 'a-dark.png')
    with Image.open(light) as one, Image.open(dark) as other:
        assert one.size == other.size == (1120, 420)
        assert one.convert('RGBA').getpixel((0, 0)) == (255, 255, 255, 255) and other.getpixel((0, 0))[3] == 0
    assert [path.name for path in pictures.write(tmp_path / 'b.png', sample)] == ['b.png']


def test_a_legend_names_everything_once_and_covers_nothing() -> None:
    with pictures.style():
        made = sample()
        made.draw_without_rendering()
        (box,) = made.legends
        assert [text.get_text() for text in box.get_texts()] == ['top', 'rising']
        assert not any(box.get_window_extent().overlaps(panel.get_tightbbox()) for panel in made.axes)
