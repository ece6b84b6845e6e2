"""The continuation to a finer grid that keeps the content: it is what the comparison of sizes rests on."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from s4nd.data.images.resize import resize

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def same_content(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, found as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import same_content

    return same_content


@pytest.mark.parametrize('size', [(15, 16), (10, 24)])
def test_averages_are_kept_exactly(same_content: ModuleType, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    fine = same_content.finer(images, size)
    assert fine.shape == (2, 3, *size)
    torch.testing.assert_close(resize(fine, (5, 8)), images, rtol=0, atol=1e-12)
    torch.testing.assert_close(same_content.coarser(fine, (5, 8)), images, rtol=0, atol=1e-12)
    # Bicubic interpolation keeps them only to some 10 percent.
    assert (resize(resize(images, size), (5, 8)) - images).norm() > 0.05 * images.norm()


def test_a_wave_is_continued(same_content: ModuleType) -> None:
    """Averages of a cosine over 6 cells give its averages over 18."""
    edges = (torch.arange(19, dtype=torch.float64) / 18 * 2 * torch.pi).sin() / (2 * torch.pi)
    averages = {count: edges[:: 18 // count].diff() * count for count in (6, 18)}
    torch.testing.assert_close(same_content.finer_axis(6, 18) @ averages[6], averages[18], rtol=0, atol=1e-12)
