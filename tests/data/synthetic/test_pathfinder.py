"""Pathfinder: its labels are what the pictures show, and nothing simpler than a path tells them."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from s4nd.data.synthetic.pathfinder import pathfinder

SIDE, COUNT = 32, 120


def disks(picture: np.ndarray) -> list[tuple[float, float]]:
    """The centers of the two disks: where more than half of 3 × 3 pixels is bright, which no line is."""
    thick = ndimage.uniform_filter(picture.astype(float), 3, mode='constant') > 135
    places, count = ndimage.label(thick)
    return ndimage.center_of_mass(thick, places, range(1, count + 1))


def connected(picture: np.ndarray, ends: list[tuple[float, float]]) -> bool:
    """Whether both ends lie on what is one piece once the gaps between the dashes are closed."""
    places, _ = ndimage.label(ndimage.binary_closing(np.pad(picture > 10, 2), np.ones((3, 3))), np.ones((3, 3)))
    first, second = (places[round(row) + 2, round(column) + 2] for row, column in ends)
    return bool(first == second)


@pytest.fixture(scope='module')
def drawn() -> tuple[np.ndarray, np.ndarray]:
    found = pathfinder(COUNT, SIDE, 0)
    assert found.inputs.shape == (COUNT, SIDE * SIDE, 1) and found.inputs.dtype == torch.uint8
    return found.inputs.view(-1, SIDE, SIDE).numpy(), found.targets.numpy()


def test_labels_are_what_the_pictures_show(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pictures, labels = drawn
    assert labels.sum() == COUNT // 2
    found = [disks(picture) for picture in pictures]
    assert [len(ends) for ends in found] == [2] * COUNT
    assert [connected(picture, ends) for picture, ends in zip(pictures, found, strict=True)] == labels.tolist()


def test_no_simple_figure_tells_the_class(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pictures, labels = drawn
    ink = pictures.reshape(COUNT, -1).mean(1)
    apart = np.array([np.linalg.norm(np.subtract(*disks(picture))) for picture in pictures])
    for figure in (ink, apart):
        ranks = figure.argsort().argsort()
        area = (ranks[labels == 1].mean() - ranks[labels == 0].mean()) / COUNT + 0.5  # under the ROC curve
        assert 0.35 < area < 0.65


def test_pictures_follow_from_the_seed_and_grow() -> None:
    first, again, other = (pathfinder(3, SIDE, seed) for seed in (5, 5, 6))
    assert torch.equal(first.inputs, again.inputs) and not torch.equal(first.inputs, other.inputs)
    large = pathfinder(2, 64, 0)
    assert large.inputs.shape == (2, 4096, 1)
    assert (large.inputs > 128).sum() > 1.5 * (pathfinder(2, 32, 0).inputs > 128).sum()


def test_too_many_paths_are_refused() -> None:
    with pytest.raises(ValueError, match=r'paths of 30 dashes and 1 distractors find no room in 16 × 16'):
        pathfinder(1, 16, 0, dashes=30)
