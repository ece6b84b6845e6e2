"""What a run found, as JSON, a table in text and a picture; several runs side by side.

s4nd report out/a out/b picture=out/both.png table=out/both.txt

A run is a folder that `s4nd train` or `s4nd evaluate` wrote results to, or its JSON file.

A report is a dictionary of 'label', 'metric' (the one to show), 'parameters' and 'results' ({'accuracy@16': 91.2, …}).
Where inputs were sampled in several ways it has 'axes': name -> {'unit', 'trained', 'points'}, the points as they stand
behind the '@'; see `s4nd.tasks.Axis`. 'milliseconds' is the time per input, by point. 'resampled' holds 'results' and
'milliseconds' of the same model on inputs that were brought to the training point first: a row and a line of its own.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s4nd.files import write_atomically
from s4nd.options import describe, option
from s4nd.words import parse_words, split_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['draw', 'figure', 'help_text', 'main', 'points_of', 'read_report', 'table', 'write_report']

Report = dict[str, Any]
_RESAMPLED = ', resampled'


def write_report(out: str | Path, report: Report, name: str = 'report') -> list[Path]:
    """Write `<name>.json`, `<name>.txt` and, where the metric was measured at several points of an axis, a picture.

    Returns the paths written.
    """
    out = Path(out)
    paths = [out / f'{name}.json', out / f'{name}.txt']
    text = json.dumps(report, indent=2, sort_keys=False) + '\n'
    write_atomically(paths[0], lambda temporary: temporary.write_text(text, encoding='utf-8'))
    write_atomically(paths[1], lambda temporary: temporary.write_text(table([report]) + '\n', encoding='utf-8'))
    if _drawable([report]):
        paths.append(out / f'{name}.png')
        draw(paths[-1], [report])
    return paths


def read_report(folder: str | Path) -> Report:
    """The report of a run, from its folder (else that of its evaluation) or from the JSON file itself.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if path.is_dir():
        evaluated = path / 'evaluation.json'
        path = path / 'report.json'
        path = evaluated if evaluated.is_file() and not path.is_file() else path
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: no readable report of s4nd train or s4nd evaluate ({error})') from error
    missing = {'label', 'metric', 'parameters', 'results'} - set(report if isinstance(report, dict) else ())
    if missing:
        raise ValueError(f'{path}: not a report, it lacks {sorted(missing)}')
    return report


def points_of(report: Report, axis: str) -> list[str]:
    """The points of an axis ('16', '24x40', '8fps') at which the shown metric was measured, rising."""
    points = report.get('axes', {}).get(axis, {}).get('points', [])
    return sorted((point for point in points if f'{report["metric"]}@{point}' in report['results']), key=_position)


def table(reports: Sequence[Report]) -> str:
    """One line per run, one column per point (or metric, where there are no points); `*` marks the training point.

    A run whose report holds 'milliseconds' has a second line for them.
    """
    reports = _rows(reports)
    columns: dict[str, None] = {}
    for axis in _axes(reports):
        points = dict.fromkeys(point for report in reports for point in points_of(report, axis))
        metrics = dict.fromkeys(report['metric'] for report in reports)
        found = (f'{metric}@{point}' for point in sorted(points, key=_position) for metric in metrics)
        columns.update(dict.fromkeys(key for key in found if any(key in report['results'] for report in reports)))
    for report in reports:
        if not any(points_of(report, axis) for axis in _axes([report])):
            columns.update(dict.fromkeys(key for key in report['results'] if '@' not in key))
    keys = list(columns)
    rows = [['run', 'parameters', 'trained at', *keys]]
    for report in reports:
        trained = [axis['trained'] for axis in report.get('axes', {}).values()]
        cells = [_cell(report['results'].get(key), key.partition('@')[2] in trained) for key in keys]
        rows.append([report['label'], f'{report["parameters"]:,}', ', '.join(trained) or '-', *cells])
        if 'milliseconds' in report:
            times = [report['milliseconds'].get(key.partition('@')[2]) for key in keys]
            rows.append(['  ms per input', '', '', *(_cell(value, False) for value in times)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ['  '.join(_align(cell, widths[at], at) for at, cell in enumerate(row)).rstrip() for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def draw(path: str | Path, reports: Sequence[Report], *, dark: bool = False) -> None:
    """Draw the shown metric against the points, one panel per axis and one line per run, the training point ringed.

    Below it stands the time per input. A size that is not a square stands where a square of as many pixels would.
    `dark` writes the dark form as well, `<name>-dark.png`.

    Raises:
        ValueError: no run was measured at more than one point of an axis.
    """
    from s4nd import pictures

    pictures.write(path, lambda: figure(reports), dark=dark)


def figure(reports: Sequence[Report]) -> Figure:
    """The picture that `draw` writes, and raises for."""
    from s4nd import pictures

    reports = _rows(reports)
    axes = _drawable(reports)
    if not axes:
        raise ValueError('no run was measured at more than one size or rate: nothing to draw')
    timed = any('milliseconds' in report for report in reports)
    drawn = pictures.figure(6.0 if timed else 4.2)
    panels = drawn.subplots(2 if timed else 1, len(axes), squeeze=False, sharex='col')
    colors = {report['label']: f'C{number}' for number, report in enumerate(reports)}
    for column, axis in enumerate(axes):
        shown = [report for report in reports if points_of(report, axis)]
        _draw_lines(panels[0, column], shown, axis, colors)
        if timed:
            _draw_times(panels[1, column], shown, axis, colors)
        _label_points(panels[-1, column], shown, axis)
    pictures.legend(drawn, panels[0])
    return drawn


def _rows(reports: Sequence[Report]) -> list[Report]:
    """The reports, each followed by that on resampled inputs where it was measured."""
    rows = []
    for report in reports:
        direct = {key: value for key, value in report.items() if key != 'resampled'}
        rows.append(direct)
        if 'resampled' in report:
            untimed = {key: value for key, value in direct.items() if key != 'milliseconds'}
            rows.append({**untimed, 'label': f'{report["label"]}{_RESAMPLED}', **report['resampled']})
    return rows


def _axes(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(axis for report in reports for axis in report.get('axes', {})))


def _drawable(reports: Sequence[Report]) -> list[str]:
    """The axes on which the runs were measured at more than one point."""
    return [axis for axis in _axes(reports) if len({p for report in reports for p in points_of(report, axis)}) > 1]


def _draw_lines(panel: Axes, reports: Sequence[Report], axis: str, colors: Mapping[str, str]) -> None:
    for report in reports:
        points, metric, color = points_of(report, axis), report['metric'], colors[report['label']]
        places = [_position(point) for point in points]
        values = [report['results'][f'{metric}@{point}'] for point in points]
        line = '--' if report['label'].endswith(_RESAMPLED) else '-'
        panel.plot(places, values, line, marker='o', color=color, label=report['label'])
        trained = report['axes'][axis]['trained']
        if trained in points:
            value = report['results'][f'{metric}@{trained}']
            panel.plot(_position(trained), value, 'o', markersize=13, fillstyle='none', color=color)
    metric = reports[0]['metric']
    panel.set_ylabel('accuracy (%)' if metric == 'accuracy' else metric.replace('_', ' '))
    if metric == 'accuracy':
        panel.set_ylim(0, min(100, 1.15 * panel.get_ylim()[1]))
    panel.grid()


def _draw_times(panel: Axes, reports: Sequence[Report], axis: str, colors: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for report in (report for report in reports if 'milliseconds' in report):
        points = [point for point in points_of(report, axis) if point in report['milliseconds']]
        times = [report['milliseconds'][point] for point in points]
        line = '--' if report['label'].endswith(_RESAMPLED) else '-'
        panel.plot([_position(point) for point in points], times, line, marker='o', color=colors[report['label']])
    panel.set_yscale('log')
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter('{x:g}')
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel('ms per input')
    panel.grid()


def _label_points(panel: Axes, reports: Sequence[Report], axis: str) -> None:
    ticks: dict[float, dict[str, None]] = {}
    shown = dict.fromkeys(point for report in reports for point in points_of(report, axis))
    for point in sorted(shown, key=_position):
        ticks.setdefault(_position(point), {})[point.removesuffix('fps')] = None
    panel.set_xscale('log', base=2)
    # What is not a square stands a line lower, clear of the squares beside it.
    panel.set_xticks(list(ticks), ['\n'.join(['', *names] if 'x' in min(names) else names) for names in ticks.values()])
    panel.xaxis.minorticks_off()
    panel.set_xlabel(f'{reports[0]["axes"][axis]["unit"]} (ring: trained there)')


def _position(point: str) -> float:
    """Where a point stands: the side of the square with as many pixels, or the number of a rate."""
    numbers = [float(number) for number in re.findall(r'[\d.]+', point)]
    return math.sqrt(math.prod(numbers)) if len(numbers) > 1 else numbers[0]


@dataclass
class Options:
    """The command's options, with their defaults."""

    picture: str | None = option(None, 'PNG file of the picture')
    table: str | None = option(None, 'text file of the table')


def main(arguments: Sequence[str]) -> None:
    """Print the table of the given runs; write it and the picture where asked."""
    folders, words = split_words(arguments)
    options = parse_words(Options, words)
    if not folders:
        raise ValueError('expected runs, usage: s4nd report RUN [RUN …] [picture=FILE.png] [table=FILE.txt]')
    reports = [read_report(folder) for folder in folders]
    text = table(reports)
    print(text)
    if options.table is not None:
        write_atomically(options.table, lambda temporary: temporary.write_text(text + '\n', encoding='utf-8'))
    if options.picture is not None:
        draw(options.picture, reports)
        print(f'picture: {options.picture}')


def help_text(arguments: Sequence[str]) -> str:
    """The text of `s4nd report --help`."""
    return f'{__doc__}\n{describe(Options)}'


def _cell(value: float | None, trained: bool) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}{"*" if trained else " "}' if value >= 10 else f'{value:.3f}{"*" if trained else " "}'


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


if __name__ == '__main__':
    from s4nd.cli import run

    sys.exit(run(main, sys.argv[1:], help_text))
