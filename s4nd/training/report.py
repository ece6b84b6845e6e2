"""What a run found, as JSON, a table in text and a picture; several runs side by side.

python -m s4nd.training.report out/a out/b picture=out/both.png table=out/both.txt
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s4nd.files import write_atomically
from s4nd.training.sizes import parse_size

__all__ = ['draw', 'frame_rates_of', 'main', 'read_report', 'sizes_of', 'table', 'write_report']

_FPS = 'fps'  # ends the name of a frame rate


def write_report(out: str | Path, report: dict[str, Any], name: str = 'report') -> list[Path]:
    """Write `<name>.json`, `<name>.txt` and, where a metric was measured at several sizes or frame rates, a picture.

    `report` holds at least 'label', 'metric' (the one to show), 'parameters' and 'results' ({'accuracy@16': 91.2, …}).
    Returns the paths written.
    """
    out = Path(out)
    paths = [out / f'{name}.json', out / f'{name}.txt']
    text = json.dumps(report, indent=2, sort_keys=False) + '\n'
    write_atomically(paths[0], lambda temporary: temporary.write_text(text))
    write_atomically(paths[1], lambda temporary: temporary.write_text(table([report]) + '\n'))
    if max(len(sizes_of(report)), len(frame_rates_of(report))) > 1:
        paths.append(out / f'{name}.png')
        draw(paths[-1], [report])
    return paths


def read_report(folder: str | Path) -> dict[str, Any]:
    """The report of a run, from its folder or from the JSON file itself. Raises ValueError where there is none."""
    path = Path(folder)
    path = path / 'report.json' if path.is_dir() else path
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: no readable report ({error})') from error
    missing = {'label', 'metric', 'parameters', 'results'} - set(report if isinstance(report, dict) else ())
    if missing:
        raise ValueError(f'{path}: not a report, it lacks {sorted(missing)}')
    return report


def sizes_of(report: dict[str, Any]) -> list[str]:
    """The sizes ('16', '24x40') at which the shown metric was measured, rising."""
    return [name for name in _names(report) if not name.endswith(_FPS)]


def frame_rates_of(report: dict[str, Any]) -> list[str]:
    """The frame rates ('8fps') at which the shown metric was measured, rising."""
    return [name for name in _names(report) if name.endswith(_FPS)]


def _names(report: dict[str, Any]) -> list[str]:
    prefix = f'{report["metric"]}@'
    return sorted((key.removeprefix(prefix) for key in report['results'] if key.startswith(prefix)), key=_place)


def table(reports: Sequence[dict[str, Any]]) -> str:
    """One line a run, one column a size (or a metric, where none has sizes); `*` marks the training size.

    A run whose report holds 'milliseconds' (an image, by size) has a second line for them.
    """
    columns: dict[str, None] = {}
    for report in reports:
        sized = [f'{report["metric"]}@{name}' for name in _names(report)]
        columns.update(dict.fromkeys(sized or [key for key in report['results'] if '@' not in key]))
    keys = sorted(columns, key=lambda key: _place(key.partition('@')[2] or '1'))
    rows = [['run', 'parameters', 'trained at', *keys]]
    for report in reports:
        trained = _trained_at(report)
        cells = [_cell(report['results'].get(key), key.partition('@')[2] in trained) for key in keys]
        rows.append([report['label'], f'{report["parameters"]:,}', ', '.join(trained) or '-', *cells])
        if 'milliseconds' in report:
            times = [report['milliseconds'].get(key.partition('@')[2]) for key in keys]
            rows.append(['  ms an image', '', '', *(_cell(value, False) for value in times)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ['  '.join(_align(cell, widths[at], at) for at, cell in enumerate(row)).rstrip() for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def draw(path: str | Path, reports: Sequence[dict[str, Any]]) -> None:
    """The shown metric against the size, one line a run, the training size ringed; dashed: the time an image.

    A size that is not a square stands where a square of as many pixels would. Runs that were measured at several frame
    rates have a panel beside it, against these.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reports = [report for report in reports if sizes_of(report)]
    if not reports:
        raise ValueError('no run was measured at more than one size: nothing to draw')
    rated = [report for report in reports if len(frame_rates_of(report)) > 1]
    panels = 2 if rated else 1
    figure = Figure(figsize=(7 * panels, 4.5), layout='constrained')
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_lines(axes[0], reports, sizes_of, reports[0].get('unit', 'pixels a side'))
    _draw_times(axes[0], reports)
    if rated:
        _draw_lines(axes[1], rated, frame_rates_of, 'frames a second')
    write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def _draw_lines(
    axes: Any, reports: Sequence[dict[str, Any]], names_of: Callable[[dict[str, Any]], list[str]], unit: str
) -> None:
    for report in reports:
        names, metric = names_of(report), report['metric']
        values = [report['results'][f'{metric}@{name}'] for name in names]
        (line,) = axes.plot([_side(name) for name in names], values, marker='o', label=report['label'])
        for trained in set(_trained_at(report)) & set(names):
            value = report['results'][f'{metric}@{trained}']
            axes.plot(_side(trained), value, 'o', markersize=13, fillstyle='none', color=line.get_color())
    ticks: dict[float, dict[str, None]] = {}
    for name in sorted({name for report in reports for name in names_of(report)}, key=_side):
        ticks.setdefault(_side(name), {})[name.removesuffix(_FPS)] = None
    axes.set_xscale('log', base=2)
    # What is not a square stands a line lower, clear of the squares beside it.
    axes.set_xticks(list(ticks), ['\n'.join(['', *names] if 'x' in min(names) else names) for names in ticks.values()])
    axes.minorticks_off()
    axes.set_xlabel(f'evaluated at ({unit}; ring: trained there)')
    metric = reports[0]['metric']
    axes.set_ylabel('accuracy (%)' if metric == 'accuracy' else metric.replace('_', ' '))
    if metric == 'accuracy':
        axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right' if any('milliseconds' in report for report in reports) else 'best')


def _draw_times(axes: Any, reports: Sequence[dict[str, Any]]) -> None:
    timed = [report for report in reports if 'milliseconds' in report]
    if not timed:
        return
    right = axes.twinx()
    for report in timed:
        sizes = sorted(report['milliseconds'], key=_side)
        times = [report['milliseconds'][size] for size in sizes]
        right.plot([_side(size) for size in sizes], times, '--', marker='.', alpha=0.6)
    right.set_yscale('log')
    right.set_ylabel('ms an image (dashed)')


def _trained_at(report: dict[str, Any]) -> list[str]:
    """The size, and for video the frame rate, at which a run was trained."""
    return [str(report[key]) for key in ('size', 'frame_rate') if key in report]


def _side(name: str) -> float:
    """Where a size or a frame rate stands: the side of the square with as many pixels, frames a second."""
    return float(name.removesuffix(_FPS)) if name.endswith(_FPS) else math.sqrt(math.prod(parse_size(name)))


def _place(name: str) -> tuple[bool, float]:
    """Sizes before frame rates, both rising."""
    return name.endswith(_FPS), _side(name)


def main(arguments: Sequence[str]) -> None:
    """Print the table of the given runs; write it and the picture where asked."""
    options = dict(argument.split('=', 1) for argument in arguments if '=' in argument)
    folders = [argument for argument in arguments if '=' not in argument]
    unknown = sorted(options.keys() - {'picture', 'table'})
    if not folders or unknown:
        problem = f'unknown option {unknown[0]}; ' if unknown else ''
        raise ValueError(
            f'{problem}usage: python -m s4nd.training.report RUN [RUN …] [picture=FILE.png] [table=FILE.txt]'
        )
    reports = [read_report(folder) for folder in folders]
    text = table(reports)
    print(text)  # noqa: T201 (a command)
    if 'table' in options:
        write_atomically(options['table'], lambda temporary: temporary.write_text(text + '\n'))
    if 'picture' in options:
        draw(options['picture'], reports)
        print(f'picture: {options["picture"]}')  # noqa: T201


def _cell(value: float | None, trained: bool) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}{"*" if trained else " "}' if value >= 10 else f'{value:.3f}{"*" if trained else " "}'


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f'error: {error}')
