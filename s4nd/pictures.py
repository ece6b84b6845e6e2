"""One style for all pictures: a width, a font, colors that color-blind readers tell apart, a light and a dark form.

`write(path, draw)` calls `draw()` in the style and writes what it returns. 'C0' … 'C5' are its colors, `ink()` that
of text, `faint()` that of what stands behind, and `diverging()` a map of colors around zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from s4nd.files import write_atomically

__all__ = ['COLORS', 'GROUNDS', 'WIDTH', 'dark_name', 'diverging', 'faint', 'figure', 'ink', 'legend', 'style', 'write']

WIDTH = 8.0  # inches, of every picture
DPI = 140
# Blue, orange, green, pink, yellow, gray. Each has a contrast of 3 with its ground; tests/test_pictures.py.
COLORS = {
    'light': ('#005596', '#b84300', '#00a07a', '#d957ae', '#b08f1c', '#4a5058'),
    'dark': ('#6cb8f0', '#f58549', '#6fe3bb', '#f06fdc', '#f2d54a', '#8b949e'),
}
GROUNDS = {'light': '#ffffff', 'dark': '#1a1d24'}
_INKS = {'light': '#24292f', 'dark': '#d8dce3'}
_FAINT = {'light': '#d0d4da', 'dark': '#4a515c'}


def _settings(form: str, ink: str | None) -> Any:
    ink = ink or _INKS[form]
    inked = ('text', 'axes.label', 'axes.title', 'xtick', 'ytick')
    return {
        **{f'{part}color' if part.startswith('axes') else f'{part}.color': ink for part in inked},
        'axes.prop_cycle': cycler(color=COLORS[form]),
        'axes.edgecolor': ink,
        'axes.facecolor': 'none',
        'axes.grid.axis': 'y',
        'axes.spines.right': False,
        'axes.spines.top': False,
        'axes.titlelocation': 'left',
        'axes.titlesize': 11,
        'figure.facecolor': GROUNDS[form],
        'font.size': 11,
        'grid.color': _FAINT[form],
        'grid.linewidth': 0.6,
        'legend.fontsize': 10,
        'legend.frameon': False,
        'lines.linewidth': 1.8,
        'patch.edgecolor': GROUNDS[form],
        'xtick.labelsize': 10,
        'ytick.labelsize': 10,
    }


@contextmanager
def style(form: str = 'light', ink: str | None = None) -> Iterator[None]:
    """Draw in the 'light' or the 'dark' form; with `ink`, text and axes have that color."""
    with mpl.rc_context(_settings(form, ink)):
        yield


def write(path: str | Path, draw: Callable[[], Figure], *, dark: bool = False) -> list[Path]:
    """Write the picture that `draw` makes; with `dark` the dark form beside it, on a transparent ground.

    Returns the paths.
    """
    path = Path(path)
    paths = {'light': path} | ({'dark': dark_name(path)} if dark else {})
    for form, name in paths.items():
        with style(form):
            made = draw()
            write_atomically(name, partial(made.savefig, dpi=DPI, format='png', transparent=form == 'dark'))
    return list(paths.values())


def dark_name(path: Path) -> Path:
    """The name of the dark form: kernels-dark.png beside kernels.png."""
    return path.with_stem(f'{path.stem}-dark')


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty picture, in inches, that needs no display."""
    made = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(made)
    return made


def legend(made: Figure, panels: Sequence[Axes], columns: int = 4) -> None:
    """One legend for all panels, above them, where it covers nothing."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    made.legend(found.values(), found, loc='outside upper left', ncols=min(columns, max(1, len(found))))


def ink() -> str:
    """The color of text and of what is measured against."""
    return str(mpl.rcParams['text.color'])


def faint() -> str:
    """The color of what stands behind."""
    return str(mpl.rcParams['grid.color'])


def diverging() -> Colormap:
    """Colors of values around zero: blue above, orange below, the ground at zero."""
    blue, orange = (mpl.rcParams['axes.prop_cycle'].by_key()['color'][number] for number in (0, 1))
    return LinearSegmentedColormap.from_list('diverging', [orange, mpl.rcParams['figure.facecolor'], blue])
