"""The command `s4nd`: its help, its exit codes, and what it finds."""

import warnings
from pathlib import Path

import pytest

import s4nd
from s4nd import cli
from s4nd.options import describe
from s4nd.training.loop import NonFiniteError
from s4nd.training.stopping import Interrupted


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (([], 2), (['--help'], 0)):
        code, out, _ = outcome(capsys, *words)
        assert code == expected and all(
            f'\n  {name} ' in out for name in ('train', 'evaluate', 'export', 'report', 'list')
        )


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, 'trian') == (2, '', "error: no command 'trian'; did you mean 'train'?\n")


@pytest.mark.parametrize('name', cli.command_names())
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    for words in (['--help'], ['-h']):
        code, out, err = outcome(capsys, name, *words)
        assert (code, err) == (0, '') and len(out.splitlines()) > 2
    schema = cli.command_options().get(name)
    assert schema is None or describe(schema) in out


@pytest.mark.parametrize('name', [name for name in cli.command_names() if name != 'list'])
@pytest.mark.parametrize('words', [['nosuch=1'], ['--nosuch', '1'], ['--nosuch=1']])
def test_every_command_refuses_an_unknown_option(
    capsys: pytest.CaptureFixture[str], name: str, words: list[str]
) -> None:
    code, out, err = outcome(capsys, name, *words)
    assert (code, out) == (2, '') and err.startswith('error: ') and err.count('\n') == 1


@pytest.mark.parametrize('name', cli.command_names())
def test_every_command_is_ended_by_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, 'parse_words', interrupted)
    monkeypatch.setattr(cli, '_load', lambda place: interrupted)
    assert outcome(capsys, name) == (130, '', 'interrupted\n')


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ([], 'data.mixup=0.0'),
        (['task=video'], 'data.frame_rate=8.0'),
        (['configs/series/sines.yaml'], 'eval.samples=5'),
        (['series/sines'], 'eval.samples=5'),
    ],
)
def test_help_lists_the_options_of_a_task(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    code, out, _ = outcome(capsys, 'train', *words, '--help')
    assert code == 0 and f'\n  {expected} ' in out and '\n  optim.lr=0.001 ' in out


def test_help_of_evaluate_follows_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    for word, option in (('task=series', 'samples=5'), ('checkpoint=sashimi.piano', 'sample_rates=[]')):
        code, out, _ = outcome(capsys, 'evaluate', word, '--help')
        assert code == 0 and f'\n  {option} ' in out


def test_the_list_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, 'list', 'isotropic_mini')
    assert code == 0 and '\n  s4nd_isotropic_mini\n' in out and '\n  cifar10/s4nd_isotropic_mini\n' in out
    assert 'vit' not in out and 'tasks' not in out  # what has none of that name is left out
    assert outcome(capsys, 'list', 'isotropic', 'xyz') == (
        2, '', "error: no name holds 'isotropic' and 'xyz'; s4nd list shows all\n",
    )  # fmt: skip


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, '--version') == (0, f's4nd {s4nd.__version__}\n', '')


@pytest.mark.parametrize(
    ('name', 'near'), [('cifar10/s4nd_isotropic_min', 'cifar10/s4nd_isotropic_mini'), ('forecast', 'series/forecast')]
)
def test_the_nearest_configuration_is_named(name: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, 'train', name)
    assert code == 2 and err == f"error: {name}: no such configuration file; did you mean '{near}'?\n"


@pytest.mark.parametrize(
    ('error', 'code', 'printed'),
    [
        (ValueError('size=0'), 2, 'error: size=0\n'),
        (FileNotFoundError('no checkpoint at x'), 2, 'error: no checkpoint at x\n'),
        (OSError(28, 'No space left on device'), 1, 'error: [Errno 28] No space left on device\n'),
        (NonFiniteError('the loss is nan'), 1, 'error: the loss is nan\n'),
        (KeyboardInterrupt(), 130, 'interrupted\n'),
        (Interrupted('interrupted by SIGTERM: saved', 143), 143, 'interrupted by SIGTERM: saved\n'),
    ],
)
def test_exit_codes(error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> None:
        raise error

    assert cli.run(command, []) == code and capsys.readouterr().err == printed
    assert cli.run(lambda words: {'report': 1}, []) == 0 and cli.run(lambda words: 3, []) == 3


def test_a_fault_of_the_program_is_seen_whole() -> None:
    def command(words: list[str]) -> None:
        raise RuntimeError('shape mismatch')

    with pytest.raises(RuntimeError, match='shape mismatch'):
        cli.run(command, [])


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = outcome(capsys, 'train', str(tmp_path / 'none.yaml'))
    missing = f'error: {tmp_path}/none.yaml: no such configuration file; known: audio/'
    assert (code, out) == (2, '') and err.startswith(missing) and err.count('\n') == 1
    code, _, err = outcome(capsys, 'train', 'demo/shapes_s4nd', '--optim.lr', '-1')
    assert code == 2 and err == 'error: optim.lr: expected at least 0, got -1.0\n'
    code, _, err = outcome(capsys, 'report', str(tmp_path))
    assert code == 2 and err.startswith(f'error: {tmp_path}/report.json: no readable report')


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name='onnxruntime')

    assert cli.run(command, []) == 2
    assert capsys.readouterr().err == "error: onnxruntime is not installed: pip install 's4nd[export]'\n"


def test_extras_are_declared() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = project['optional-dependencies']
    for package, extra in cli._EXTRAS.items():
        assert any(needed.startswith(f'{package}>') for needed in extras[extra]), package


def test_a_warning_is_one_line_without_a_place() -> None:
    found = []
    assert cli.run(lambda words: found.append(warnings.formatwarning('modes alias', UserWarning, 'x.py', 3)), []) == 0
    assert found == ['warning: modes alias\n']
