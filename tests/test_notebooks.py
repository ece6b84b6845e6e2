"""The notebooks run from top to bottom, and are kept without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'examples' / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip('nbclient')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    notebook = nbformat.read(path, as_version=4)
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3', resources=resources).execute()


def test_they_are_kept_without_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ['resolution', 'sound']
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells), path
