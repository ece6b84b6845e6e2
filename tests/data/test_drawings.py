import numpy as np
import pytest

from s4nd.data.synthetic.drawings import DRAWINGS, draw


@pytest.mark.parametrize('name', DRAWINGS)
def test_a_smaller_drawing_is_the_area_average_of_a_larger_one(name: str) -> None:
    large, small = (np.asarray(draw(name, size), float) for size in (64, 16))
    means = large.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(means - small).max() <= 1  # each is rounded to whole levels
    assert small.std() > 30 and not np.array_equal(small, np.asarray(draw(name, 16, seed=1)))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cat'.*ship"):
        draw('cat')
    with pytest.raises(ValueError, match='257'):
        draw('ship', 257)
