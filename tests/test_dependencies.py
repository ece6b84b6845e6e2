"""What the package imports is declared, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
NAMES = {'PIL': 'pillow', 'yaml': 'pyyaml', 'mpl_toolkits': 'matplotlib'}  # of modules whose package has another name
BY_TORCH = {'opt_einsum', 'onnx', 'onnxscript', 'triton'}  # torch imports them, or brings them along


def declared(entries: list[str]) -> set[str]:
    return {re.split(r'[^\w-]', entry)[0] for entry in entries}


def imported(folders: tuple[str, ...]) -> set[str]:
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition('.')[0] for name in names}
    return {NAMES.get(name, name) for name in found - set(sys.stdlib_module_names) - {'s4nd', 'audio', 'tests'}}


def test_the_package_and_pyproject_agree() -> None:
    core = declared(PROJECT['dependencies'])
    extras = {name: declared(entries) for name, entries in PROJECT['optional-dependencies'].items()}
    optional = set().union(*(extras[name] for name in ('export', 'fast', 'video', 'parquet', 'data')))
    found = imported(('s4nd', 'audio'))
    assert found - core - optional - BY_TORCH == set(), 'imported and not declared'
    assert core - found - BY_TORCH == set(), 'declared and not imported'
    assert optional - found - BY_TORCH == set(), 'declared and not imported'


def test_what_the_package_needs_at_once_is_no_extra() -> None:
    """Extras are imported inside functions, or where a test of their presence stands around."""
    core = declared(PROJECT['dependencies'])
    for path in (ROOT / 's4nd').rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {NAMES.get(name.partition('.')[0], name.partition('.')[0]) for name in names}
            assert tops - set(sys.stdlib_module_names) - {'s4nd'} - core - {'triton'} == set(), path
