"""The names of the package: `s4nd.audio`, which a checkout also has as `audio`, beside a user's own `audio`."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def test_both_names_are_one_package() -> None:
    import audio.evaluation.metrics
    import s4nd.audio.evaluation.metrics
    from audio.generation import sampling

    assert audio is s4nd.audio and audio.SaShiMi.__module__ == 's4nd.audio.models.sashimi'
    assert sys.modules['audio.evaluation.metrics'] is s4nd.audio.evaluation.metrics
    assert sampling.__spec__.name == sampling.__name__ == 's4nd.audio.generation.sampling'
    with pytest.raises(ModuleNotFoundError, match=r'audio\.nothing'):
        import audio.nothing


def test_audio_imports_itself_by_relative_names() -> None:
    for path in (ROOT / 'audio').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.removeprefix('s4nd.').split('.')[0] == 'audio'], path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the metadata of an installed s4nd, as pyproject.toml declares them."""
    metadata = tmp_path / 'site' / 's4nd-0.dist-info'
    metadata.mkdir(parents=True)
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: s4nd\nVersion: 0\n', encoding='utf-8')
    lines = []
    for group, entries in PROJECT['entry-points'].items():
        lines += [f'[{group}]', *(f'{name} = {place}' for name, place in entries.items())]
    (metadata / 'entry_points.txt').write_text('\n'.join(lines), encoding='utf-8')
    return metadata.parent


# One process for all of them: `python -m s4nd COMMAND` has the folder it is called from first on its path, as here.
COMMANDS = """
import importlib, sys
from importlib.metadata import entry_points
from s4nd.cli import main
assert sys.path[0] == '' and not [name for name in sys.modules if 'audio' in name.split('.')[:2]], 's4nd imports audio'
for command in ('generate', 'metrics', 'page'):
    assert main([command, '--help']) == 0, command
assert main(['list', 'sashimi']) == 0
assert main(['train', 'task=audio', '--help']) == 0
for group in ('s4nd.tasks', 's4nd.commands', 's4nd.exporters', 's4nd.published'):
    found = [entry.load() for entry in entry_points(group=group)]
    assert len(found) > 0, group
"""


def test_a_users_own_audio_breaks_no_command(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'theirs'
    folder.mkdir()
    (folder / 'audio.py').write_text("raise RuntimeError('not ours')", encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(installed), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, '-c', COMMANDS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'prompt_seconds=null' in done.stdout and 'data.sample_rate=' in done.stdout


def test_text_is_read_and_written_with_an_encoding() -> None:
    """Other systems have other defaults. Ruff finds open(), but not the methods of a path that it cannot tell."""
    for path in [*(ROOT / 's4nd').rglob('*.py'), *(ROOT / 'audio').rglob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                texts = {'read_text': 0, 'write_text': 1}.get(node.func.attr, 9)
                named = any(keyword.arg == 'encoding' for keyword in node.keywords)
                assert texts == 9 or named or len(node.args) > texts, f'{path}:{node.lineno}'
