"""What the workflows name exists: targets of the Makefile, scripts, entries of the matrix, actions with a version."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / '.github' / 'workflows'
NAMES = sorted(path.name for path in FOLDER.glob('*.yml')) or ['none']  # an sdist has no workflows
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason='the workflows are in the repository only')


def steps(name: str) -> list[dict[str, Any]]:
    jobs = yaml.safe_load((FOLDER / name).read_text(encoding='utf-8'))['jobs']
    return [step for job in jobs.values() for step in job['steps']]


@pytest.mark.parametrize('name', NAMES)
def test_every_action_has_a_version(name: str) -> None:
    used = [step['uses'] for step in steps(name) if 'uses' in step]
    assert used and all(re.fullmatch(r'[\w-]+/[\w-]+@(v\d[\w.]*|release/v\d+|[0-9a-f]{40})', action) for action in used)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_run_exists(name: str) -> None:
    lines = '\n'.join(step['run'] for step in steps(name) if 'run' in step)
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
    assert {target for target in re.findall(r'\bmake ([\w-]+)', lines)} <= set(targets)
    for path in re.findall(r'\bbash (\S+)|(?<= )(s4nd/\S+)', lines):
        assert (ROOT / ''.join(path)).is_file(), path


def test_the_matrix_is_what_the_package_claims() -> None:
    """The wheel is tried on every Python that its metadata name."""
    matrix = yaml.safe_load((FOLDER / 'tests.yml').read_text(encoding='utf-8'))['jobs']['wheel']['strategy']['matrix']
    claimed = re.findall(r'Python :: (3\.\d+)"', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    assert matrix['python'] == claimed
