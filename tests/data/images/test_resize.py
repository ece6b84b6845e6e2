"""Area averages are exact for any ratio; interpolation invents nothing."""

import pytest
import torch

from s4nd.data.images.resize import area_weights, resize, to_bytes, to_float


@pytest.mark.parametrize(('source', 'size'), [(32, 16), (32, 8), (28, 12), (10, 7), (5, 5), (7, 1)])
def test_area_weights_equal_the_integral_of_the_pixel_staircase(source: int, size: int) -> None:
    """On a grid of source·size points both the pixels and the cells are whole numbers of points."""
    line = torch.rand(source, dtype=torch.float64)
    fine = line.repeat_interleave(size)
    expected = fine.reshape(size, source).mean(1)
    assert torch.allclose(area_weights(source, size) @ line, expected, atol=1e-14)


@pytest.mark.parametrize(('shape', 'size'), [((12, 12), 4), ((12, 12), 5), ((9, 12), 6), ((8, 20), 8)])
def test_resize_averages_both_axes(shape: tuple[int, int], size: int) -> None:
    images = torch.rand(2, 3, *shape, dtype=torch.float64)
    fine = images.repeat_interleave(size, 2).repeat_interleave(size, 3)
    expected = fine.reshape(2, 3, size, shape[0], size, shape[1]).mean((3, 5))
    assert torch.allclose(resize(images, size), expected, atol=1e-14)


@pytest.mark.parametrize('size', [(4, 6), (5, 12), (12, 3), (7, 11)])
def test_each_axis_has_a_size_of_its_own(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    expected = area_weights(12, size[0]) @ images @ area_weights(12, size[1]).mT
    assert torch.allclose(resize(images, size), expected, atol=1e-12)
    # One axis may grow where the other shrinks.
    stripes = images[..., :1].expand_as(images)
    expected = (area_weights(12, size[0]) @ stripes[..., :1]).expand(-1, -1, -1, 20)
    assert torch.allclose(resize(stripes, (size[0], 20)), expected, atol=1e-7)


def test_the_mean_of_an_image_survives_averaging() -> None:
    images = torch.rand(4, 3, 30, 30, dtype=torch.float64)
    for size in (1, 7, 15, 29, 30):
        assert torch.allclose(resize(images, size).mean((2, 3)), images.mean((2, 3)), atol=1e-14)


def test_enlarging_keeps_constants_the_range_and_the_scene() -> None:
    line = torch.linspace(0.2, 0.8, 8, dtype=torch.float64)
    images = line.expand(1, 1, 8, 8)
    larger = resize(images, 32)
    assert larger.shape == (1, 1, 32, 32) and larger.min() >= 0.2 and larger.max() <= 0.8
    # Pixel i is the cell [i, i + 1]: a ramp stays the same ramp at the new cells' centers, away from the border.
    centers = (torch.arange(32, dtype=torch.float64) + 0.5) / 4 - 0.5
    assert torch.allclose(larger[0, 0, 16, 8:24], 0.2 + 0.6 * centers[8:24] / 7, atol=1e-6)
    assert torch.allclose(resize(torch.full((1, 3, 8, 8), 0.3), 20), torch.tensor(0.3))


def test_bytes_round_and_come_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(values)), values)


@pytest.mark.parametrize('images', [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_wrong_input_to_resize(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r'expected float images \(B, C, H, W\), got'):
        resize(images, 4)
