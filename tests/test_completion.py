"""What a shell completes after `s4nd`: the words that --help lists."""

import shutil
import subprocess
from pathlib import Path

import pytest

from s4nd import cli
from s4nd.completion import SHELLS, script
from s4nd.options import describe
from s4nd.tasks import task_class, task_names
from s4nd.train import shipped_configs

LINES = {
    's4nd eva': ['evaluate'],
    's4nd train demo/shapes_s': ['demo/shapes_s4nd'],
    's4nd train demo/shapes_s4nd optim.s': ['optim.ssm_lr=', 'optim.schedule='],
    's4nd train demo/shapes_s4nd --optim.s': ['--optim.ssm_lr=', '--optim.schedule='],
    's4nd train demo/shapes_s4nd precision=': ['precision=fp32', 'precision=bf16', 'precision=fp16'],
    's4nd train demo/shapes_s4nd --precision b': ['bf16'],
    's4nd train demo/shapes_s4nd epochs=': [],
    's4nd train task=vid': ['task=video'],
    's4nd train task=video data.frame_r': ['data.frame_rate='],
    's4nd train series/sines eval.sa': ['eval.samples='],
    's4nd train mine.yaml eval.sa': ['eval.samples='],
    's4nd train demo/shapes_s4nd eval.sa': [],
    's4nd evaluate resam': ['resample='],
    's4nd evaluate checkpoint=sash': ['checkpoint=sashimi.piano'],
    's4nd generate --top': ['--top_p='],
    's4nd report pic': ['picture='],
    's4nd completion z': ['zsh'],
    's4nd nosuch a': [],
}


@pytest.mark.parametrize('shell', SHELLS)
def test_a_line_is_completed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f'no {shell} here')
    (tmp_path / 's4nd.sh').write_text(f'complete() {{ :; }}; compdef() {{ :; }}\n{script(shell)}', encoding='utf-8')
    (tmp_path / 'mine.yaml').write_text('task: series\nepochs: 3\n', encoding='utf-8')
    calls = ['. ./s4nd.sh']
    for line in LINES:
        *before, word = line.split(' ')[1:]
        calls.append(f"_s4nd_complete '{word}' {' '.join(before)}; echo .")
    done = subprocess.run([shell, '-c', '\n'.join(calls)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ''
    found = [part.split() for part in done.stdout.split('.\n')]
    assert dict(zip(LINES, found[:-1], strict=True)) == LINES


@pytest.mark.parametrize(
    ('line', 'breaks', 'expected'),
    [
        ('s4nd ex', '=', ['export ']),  # the only one: a blank follows
        ('s4nd train demo/shapes_s4nd device=c', '=', ['cpu', 'cuda']),  # = begins a word of bash
        ('s4nd train demo/shapes_s4nd device=c', '', ['device=cpu', 'device=cuda']),
        ('s4nd train demo/shapes_s4nd data.si', '=', ['data.size=', 'data.sizes=']),
        ('s4nd train demo/shapes_s4nd optim.sc', '=', ['optim.schedule=']),  # nothing follows
        ('s4nd generate out=so', '=', ['some.wav ']),
        ('s4nd generate out=so', '', ['out=some.wav ']),
        ('s4nd train so', '=', ['some.wav ']),
    ],
)
def test_what_bash_puts_in_place_of_a_word(tmp_path: Path, line: str, breaks: str, expected: list[str]) -> None:
    if shutil.which('bash') is None:
        pytest.skip('no bash here')
    (tmp_path / 's4nd.sh').write_text(script('bash'), encoding='utf-8')
    (tmp_path / 'some.wav').write_text('', encoding='utf-8')
    call = f'. ./s4nd.sh; COMP_WORDBREAKS="{breaks}" COMP_LINE="{line}" COMP_POINT={len(line)}; _s4nd'
    call += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(['bash', '-c', call], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (expected, '')


def test_the_script_holds_what_help_lists() -> None:
    text = script('bash')
    groups = {line.split(')')[0].strip(): line.split("'")[1].split() for line in text.splitlines() if ') echo ' in line}
    schemas = {name: task_class(name).Config for name in task_names()} | cli.command_options()
    for name, schema in schemas.items():
        options = [line.split()[0].partition('=')[0] for line in describe(schema).splitlines() if '=' in line]
        assert [word[:-1] for word in groups[name] if word.endswith('=')] == options
    assert groups['commands'] == cli.command_names()
    assert set(shipped_configs()) <= set(groups['train'])


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['completion', 'bash']) == 0
    assert capsys.readouterr().out == script('bash')
    for words in ([], ['tcsh'], ['bash', 'zsh']):
        assert cli.main(['completion', *words]) == 2
        assert 'expected one shell of bash, zsh' in capsys.readouterr().err
