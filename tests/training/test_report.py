"""Reports: JSON, table, picture; several runs side by side."""

import json
from pathlib import Path

import pytest
from PIL import Image

from s4nd.training.report import draw, figure, main, points_of, read_report, table, write_report


def report(label: str = 'ours', **results: float) -> dict:
    values = {key.replace('_at_', '@'): value for key, value in results.items()}
    points = [key.removeprefix('accuracy@') for key in values if key.startswith('accuracy@')]
    rates = [point for point in points if point.endswith('fps')]
    size = {'unit': 'pixels per side', 'trained': '16', 'points': [point for point in points if point not in rates]}
    axes = {'size': size}
    if rates:
        axes['frame_rate'] = {'unit': 'frames per second', 'trained': '4fps', 'points': rates}
    return {'label': label, 'metric': 'accuracy', 'parameters': 123456, 'axes': axes, 'results': values}


OURS = report('ours', accuracy_at_64=90.0, accuracy_at_8=55.25, accuracy_at_16=91.5, cross_entropy_at_8=1.2)
THEIRS = report('theirs', accuracy_at_8=50.0, accuracy_at_16=92.0, accuracy_at_32=9.5)
SOUND = {'label': 'sound', 'metric': 'nll', 'parameters': 5, 'results': {'nll': 1.25, 'test_nll': 1.3}}


def test_sizes_rise_and_belong_to_the_metric_shown() -> None:
    assert points_of(OURS, 'size') == ['8', '16', '64'] and points_of(SOUND, 'size') == []


def test_the_table_has_a_line_a_run_and_a_column_a_size() -> None:
    lines = table([OURS, THEIRS]).splitlines()
    assert lines[0].split()[4:] == ['accuracy@8', 'accuracy@16', 'accuracy@32', 'accuracy@64']
    assert lines[2].split() == ['ours', '123,456', '16', '55.25', '91.50*', '-', '90.00']
    assert lines[3].split() == ['theirs', '123,456', '16', '50.00', '92.00*', '9.500', '-']


def test_sizes_that_are_not_square_stand_by_their_pixels_and_times_have_a_line(tmp_path: Path) -> None:
    wide = report(
        'wide', **{'accuracy_at_32': 3.0, 'accuracy_at_8x32': 2.0, 'accuracy_at_16': 1.0, 'accuracy_at_8': 0.0}
    )
    assert points_of(wide, 'size') == ['8', '8x32', '16', '32']
    wide['milliseconds'] = {'8': 0.25, '16': 1.0, '8x32': 12.0}
    lines = table([wide, OURS]).splitlines()
    assert lines[0].split()[4:8] == ['accuracy@8', 'accuracy@8x32', 'accuracy@16', 'accuracy@32']
    assert lines[3].split() == ['ms', 'per', 'input', '0.250', '12.00', '1.000', '-', '-']
    draw(tmp_path / 'timed.png', [wide, OURS])
    draw(tmp_path / 'plain.png', [{**wide, 'milliseconds': {}}, OURS])
    assert (tmp_path / 'timed.png').read_bytes() != (tmp_path / 'plain.png').read_bytes()


def test_metrics_without_sizes_have_a_column_each() -> None:
    lines = table([SOUND]).splitlines()
    assert lines[0].split()[-2:] == ['nll', 'test_nll'] and lines[2].split() == ['sound', '5', '-', '1.250', '1.300']


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    paths = write_report(tmp_path / 'run', OURS)
    assert [path.name for path in paths] == ['report.json', 'report.txt', 'report.png']
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == sorted(path.name for path in paths)
    assert read_report(tmp_path / 'run') == read_report(paths[0]) == OURS
    write_report(tmp_path / 'run', THEIRS, 'evaluation')
    assert read_report(tmp_path / 'run') == OURS
    paths[0].unlink()
    assert read_report(tmp_path / 'run') == THEIRS
    write_report(tmp_path / 'run', OURS)
    assert paths[1].read_text() == table([OURS]) + '\n'
    with Image.open(paths[2]) as picture:
        assert picture.size == (1120, 588)
    assert [path.name for path in write_report(tmp_path / 'sound', SOUND)] == ['report.json', 'report.txt']


def test_the_command_lays_runs_over_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path / 'a', OURS)
    write_report(tmp_path / 'b', THEIRS)
    main([str(tmp_path / 'a'), str(tmp_path / 'b'), f'picture={tmp_path}/both.png', f'table={tmp_path}/both.txt'])
    assert table([OURS, THEIRS]) in capsys.readouterr().out
    assert (tmp_path / 'both.txt').read_text() == table([OURS, THEIRS]) + '\n'
    one, both = ((tmp_path / name).read_bytes() for name in ('a/report.png', 'both.png'))
    assert both[:4] == b'\x89PNG' and both != one


@pytest.mark.parametrize(
    ('content', 'message'), [(None, 'no readable'), ('{', 'no readable'), ('{"label": 1}', 'not a report, it lacks')]
)
def test_a_folder_without_a_report(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / 'report.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path)])


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'usage: s4nd report RUN'):
        main([])
    with pytest.raises(ValueError, match="unknown option 'pictrue'; did you mean 'picture'"):
        main(['out/a', 'pictrue=x.png'])
    write_report(tmp_path, SOUND)
    with pytest.raises(ValueError, match='nothing to draw'):
        main([str(tmp_path), f'picture={tmp_path}/x.png'])
    json.loads((tmp_path / 'report.json').read_text())


def test_frame_rates_have_columns_and_a_panel_of_their_own(tmp_path: Path) -> None:
    clips = report('clips', accuracy_at_16=70.0, accuracy_at_32=71.0, accuracy_at_8fps=69.0, accuracy_at_4fps=70.0)
    assert points_of(clips, 'size') == ['16', '32'] and points_of(clips, 'frame_rate') == ['4fps', '8fps']
    lines = table([clips, OURS]).splitlines()
    assert lines[0].split()[4:] == [f'accuracy@{name}' for name in ('8', '16', '32', '64', '4fps', '8fps')]
    assert lines[2].split() == ['clips', '123,456', '16,', '4fps', '-', '70.00*', '71.00', '-', '70.00*', '69.00']
    labels = [panel.get_xlabel().partition(' (')[0] for panel in figure([clips, OURS]).axes]
    assert labels == [clips['axes'][name]['unit'] for name in ('size', 'frame_rate')]
    del clips['results']['accuracy@32']  # one size, two frame rates: there is still something to draw
    assert [path.suffix for path in write_report(tmp_path / 'run', clips)] == ['.json', '.txt', '.png']


def test_resampled_inputs_have_a_row_and_a_line_of_their_own(tmp_path: Path) -> None:
    both = {**OURS, 'milliseconds': {'8': 1.0}, 'resampled': {'results': {'accuracy@8': 40.0, 'accuracy@64': 91.25}}}
    lines = table([both, THEIRS]).splitlines()
    assert lines[2].split()[3:] == ['55.25', '91.50*', '-', '90.00'] and lines[3].split()[0] == 'ms'
    assert lines[4].split() == ['ours,', 'resampled', '123,456', '16', '40.00', '-', '-', '91.25']
    assert lines[5].split()[0] == 'theirs'
    drawn = figure([both])
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ['ours', 'ours, resampled']
    drawn.draw_without_rendering()
    assert not any(legend.get_window_extent().overlaps(panel.get_tightbbox()) for panel in drawn.axes)
    assert [panel.get_ylabel() for panel in drawn.axes] == ['accuracy (%)', 'ms per input']
