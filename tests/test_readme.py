"""What the README and the guides in docs/ show runs: their Python blocks as they stand, and the files they name."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
NEEDED = {'docs/guides/export.md': ('onnx', 'onnxscript', 'onnxruntime')}  # packages of extras


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line, source) of every Python block."""
    text = path.read_text(encoding='utf-8')
    found = re.finditer(r'```python\n(.*?)```', text, re.DOTALL)
    return [(text.count('\n', 0, match.start(1)), match[1]) for match in found]


def test_there_is_something_to_run() -> None:
    assert len(blocks(ROOT / 'README.md')) >= 3
    assert sum(bool(blocks(path)) for path in DOCUMENTS) >= 5


@pytest.mark.parametrize('name', NAMES)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    # As at the root, except that what a block writes does not stay.
    for folder in ('configs', 'examples', 'tests'):
        if (ROOT / folder).is_dir():
            (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    # In order, and together: a later block goes on with what an earlier one made.
    names: dict = {'__name__': name}
    for line, source in blocks(ROOT / name):
        exec(compile('\n' * line + source, name, 'exec'), names)


@pytest.mark.parametrize('name', NAMES)
def test_named_files_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding='utf-8')
    named = set(re.findall(r'(?:configs|benchmarks|docs|examples)/[\w./-]+\.(?:yaml|py|png|md)', text))
    linked = {link for link in re.findall(r'\]\(([^)#:\s]+)(?:#[^)\s]*)?\)', text) if not link.startswith('http')}
    paths = [ROOT / path for path in named] + [(ROOT / name).parent / link for link in linked]
    assert paths or name != 'README.md'
    assert [os.path.relpath(path, ROOT) for path in paths if not path.exists()] == []


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    """Each row of figures has its cells, in order, in one row of a page of results."""
    pages = [path.read_text(encoding='utf-8') for path in sorted((ROOT / 'docs' / 'results').glob('*.md'))]
    known = [cells(line) for page in pages for line in page.splitlines() if line.startswith('|')]
    text = (ROOT / 'README.md').read_text(encoding='utf-8').partition('\n## Results')[2]
    rows = [cells(line) for line in text.splitlines() if line.startswith('|') and re.search(r'\d\.\d', line)]
    assert len(rows) >= 4
    for row in rows:
        assert any(is_part(row, other) for other in known), row


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip('|').split('|')]


def is_part(row: list[str], other: list[str]) -> bool:
    rest = iter(other)
    return all(cell in rest for cell in row)
