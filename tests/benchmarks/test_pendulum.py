"""The pendulum: the physics, the film of it, and that every system follows frames at irregular times."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from s4nd.resolution import time_steps

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def pendulum(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, found as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pendulum

    return pendulum


def test_film(pendulum: ModuleType) -> None:
    """Half of the frames, others in each clip, the same for a seed; on clear frames the spot lies where the bob is."""
    film = pendulum.film(40, 3)
    assert all(torch.equal(one, other) for one, other in zip(film, pendulum.film(40, 3), strict=True))
    assert film.frames.shape == (40, 30, 576) and film.times.max() <= 59 and not torch.equal(*film.times[:2])
    time_steps(film.times)
    torch.testing.assert_close(film.target.square().sum(-1), torch.ones(40, 30))
    assert film.target[..., 1].mean() > 0.1  # gravity
    pixels = film.frames * 0.25 + 0.25
    clear = pixels.sum(-1) < 20  # (the spot alone; noise adds up to 288)
    assert 0.05 < clear.float().mean() < 0.6
    place = pixels[clear].argmax(-1)
    found = torch.stack([place % 24 - 11.5, place // 24 - 11.5], -1) / 8.5
    assert (found - film.target[clear]).abs().max() < 0.15


def test_every_system_follows(pendulum: ModuleType) -> None:
    film = pendulum.film(2, 0)
    for make, timed in pendulum.SYSTEMS.values():
        torch.manual_seed(0)
        model = pendulum.Follower(make(), timed)
        y = model(film.frames, time_steps(film.times))
        assert y.shape == (2, 30, 2)
        later = model(film.frames, time_steps(film.times) + 1)
        assert torch.equal(y, later) != timed


def test_picture(pendulum: ModuleType) -> None:
    """Each panel has labels; the legend names the truth and every system once."""
    film = pendulum.film(3, 0)
    figure = pendulum.draw(film, {name: torch.randn(3, 30, 2) for name in pendulum.SYSTEMS})
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['truth', *pendulum.SYSTEMS]
