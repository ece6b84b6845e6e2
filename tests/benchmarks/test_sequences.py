"""The comparison of systems on sequences: sizes are matched, every system runs, results are kept."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, found as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sequences

    return sequences


def test_systems_run_and_are_kept(comparison: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {'small': 'true', 'parameters': '10000', 'out': str(tmp_path)}
    systems = ['s5', 'gss', 'transformer']
    rows = [comparison.stored('selective', system, 0, settings) for system in systems]
    monkeypatch.setattr(comparison, 'measure', None)  # a second run reads
    assert [comparison.stored('selective', system, 0, settings) for system in systems] == rows
    assert all(0 <= row['score'] <= 100 and row['MB'] > 0 for row in rows)
    assert json.loads((tmp_path / 'selective_s5_0.json').read_text()) in rows
    (mean,) = comparison.summary([{**rows[0], 'score': 1.0}, {**rows[0], 'score': 3.0, 'seed': 1}])
    assert (mean['score'], mean['lowest'], mean['highest'], mean['seeds']) == (2.0, 1.0, 3.0, 2)


def test_kept_tensors_are_counted_once(comparison: ModuleType) -> None:
    class Square(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

    class Fake:
        def train_batches(self, epoch: int) -> list[torch.Tensor]:
            return [torch.ones(1000)]

        def loss(self, model: Square, batch: torch.Tensor) -> torch.Tensor:
            y = model.weight * batch  # keeps batch, and the weight, which does not count
            return (y * y).sum()  # keeps y, twice

    assert comparison.kept_megabytes(Fake(), Square()) == pytest.approx(2 * 4000 / 1e6)
