"""What the README shows runs: its Python blocks as they stand, and the files that its commands name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_python_blocks_run(number: int) -> None:
    # A later block may go on with what an earlier one imported.
    names: dict = {}
    for block in BLOCKS[: number + 1]:
        if block is BLOCKS[number] or 'import' in block.splitlines()[0]:
            source = block if block is BLOCKS[number] else block.splitlines()[0]
            exec(compile(source, f'README.md, block {number}', 'exec'), names)


def test_named_files_exist() -> None:
    named = set(re.findall(r'(?:configs|benchmarks|docs)/[\w./-]+\.(?:yaml|py|png|md)', README))
    assert named
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert missing == []
