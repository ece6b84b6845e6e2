"""The procedural scenes: one scene at every size, the same for the same seed."""

import pytest
import torch

from s4nd.data.images.resize import resize, to_float
from s4nd.data.synthetic.shapes import CLASSES, ShapeSet


def test_the_classes_take_turns_and_the_seed_decides() -> None:
    scenes = ShapeSet.draw(25, seed=3)
    assert scenes.labels.tolist() == [index % 10 for index in range(25)] and len(CLASSES) == 10
    assert torch.equal(scenes.at(8), ShapeSet.draw(25, seed=3).at(8))
    assert not torch.equal(scenes.at(8), ShapeSet.draw(25, seed=4).at(8))


@pytest.mark.parametrize(('large', 'small'), [(64, 32), (64, 16), (64, 8), (32, 8), (128, 64)])
def test_a_smaller_picture_is_the_area_average_of_a_larger_one(large: int, small: int) -> None:
    scenes = ShapeSet.draw(20, seed=0)
    averaged = resize(to_float(scenes.at(large)), small) * 255
    assert (averaged - scenes.at(small).float()).abs().max() <= 1.0  # two roundings to bytes, half a step each


def test_sizes_that_do_not_divide_the_sample_grid_show_the_same_scene() -> None:
    scenes = ShapeSet.draw(20, seed=1)
    averaged = resize(to_float(scenes.at(96)), 24) * 255
    assert (averaged - scenes.at(24).float()).abs().mean() < 1.0


def test_a_picture_that_is_not_square_shows_the_same_scene() -> None:
    scenes = ShapeSet.draw(20, seed=4)
    averaged = resize(to_float(scenes.at(32)), (8, 16)) * 255
    assert (averaged - scenes.at((8, 16)).float()).abs().max() <= 1.0


def test_pictures_use_the_range_without_clipping() -> None:
    pictures = ShapeSet.draw(200, seed=2).at(16)
    assert pictures.dtype == torch.uint8 and pictures.shape == (200, 3, 16, 16)
    assert pictures.min() > 0 and pictures.max() < 255 and pictures.float().std() > 40


def test_every_picture_has_a_figure() -> None:
    contrast = ShapeSet.draw(100, seed=5).at(16).float().flatten(2).std(2).amax(1)
    assert contrast.min() > 8


def test_selecting_scenes_selects_pictures() -> None:
    scenes, chosen = ShapeSet.draw(30, seed=6), torch.tensor([3, 17, 4])
    part = scenes.select(chosen)
    assert torch.equal(part.at(8), scenes.at(8)[chosen]) and torch.equal(part.labels, scenes.labels[chosen])
