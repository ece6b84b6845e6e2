"""Averaging over the cells of another grid, against a loop over cells and pixels."""

import pytest
import torch

from s4nd.models._sampling import AreaPool
from s4nd.resolution import area_resize
from tests.models.families import image


def overlap(size: int, cells: int) -> torch.Tensor:
    """(cells, size): the share of each pixel in each cell, one pair at a time."""
    share = torch.zeros(cells, size, dtype=torch.float64)
    width = size / cells
    for i in range(cells):
        for j in range(size):
            share[i, j] = max(0.0, min((i + 1) * width, j + 1) - max(i * width, j)) / width
    return share


@pytest.mark.parametrize(('size', 'cells'), [((7, 5), (3, 4)), ((4, 6), (8, 9)), ((5, 5), (5, 2)), ((1, 3), (4, 1))])
def test_area_resize_matches_the_loop(size: tuple[int, int], cells: tuple[int, int]) -> None:
    x = image(size).double()
    rows, columns = (overlap(n, m) for n, m in zip(size, cells, strict=True))
    expected = torch.einsum('ih,jw,bchw->bcij', rows, columns, x)
    torch.testing.assert_close(area_resize(x, list(cells)), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(area_resize(x, list(cells)).mean((2, 3)), x.mean((2, 3)), atol=1e-6, rtol=0)


def test_area_resize_gradient() -> None:
    x = image((5, 4), batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: area_resize(t, [3, 6]), x, atol=1e-4)


@pytest.mark.parametrize(('size', 'expected'), [((8, 6), (4, 3)), ((7, 6), (4, 3)), ((1, 5), (1, 3))])
def test_area_pool_covers_the_whole_map(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pool = AreaPool(2)
    x = image(size)
    y = pool(x)
    assert y.shape[-2:] == expected
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    if size == (8, 6):
        torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 2), atol=0, rtol=0)
