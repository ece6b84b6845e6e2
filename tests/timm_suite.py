"""timm's own tests of its models, unpatched, on ours: `make timm-suite`, `make timm-suite K='name or name'`.

The tests are in timm's source distribution only: it is fetched once, in the version that is installed, into
out/timm-suite. K is pytest's `-k`; the default takes every image model of this package.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import timm

import s4nd  # noqa: F401  (registers the models)

FOLDER = Path(__file__).parents[1] / 'out' / 'timm-suite'
# They take clips, which timm's tests do not make.
VIDEO = ('3d', 'vis4mer')
OURS = [
    name
    for name in timm.list_models()
    if timm.model_entrypoint(name).__module__.startswith('s4nd.') and not any(word in name for word in VIDEO)
]


def fetch(folder: Path = FOLDER) -> Path:
    """The unpacked source distribution of the installed timm: its tests alone, so that the installed timm runs."""
    name = f'timm-{version("timm")}'
    if not (folder / name / 'pyproject.toml').is_file():
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm']
        subprocess.run([*pip, '--dest', str(folder), f'timm=={version("timm")}'], check=True)
        with tarfile.open(folder / f'{name}.tar.gz') as archive:
            wanted = [m for m in archive if m.name.startswith(f'{name}/tests/') or m.name == f'{name}/pyproject.toml']
            # pyproject.toml comes last: it stands for a complete unpacking.
            archive.extractall(folder, sorted(wanted, key=lambda m: m.name.endswith('pyproject.toml')), filter='data')
    return folder / name


def join_listed_modules() -> None:
    """Let the tests that run for a fixed list of timm's modules (feature getters, pruning) take our models too."""
    timm.models._registry._module_to_models['convnext'].update(OURS)


def main(arguments: list[str]) -> int:
    tests = fetch() / 'tests' / 'test_models.py'
    join_listed_modules()
    selected = ' '.join(arguments) or ' or '.join(OURS)
    options = ['-q', '-W', 'ignore', '-rs', '--durations=5', '-p', 'no:cacheprovider']
    return pytest.main([*options, str(tests), '-k', selected])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
