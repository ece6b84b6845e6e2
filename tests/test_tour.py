"""The guided tour: every difference that it states is measured, its pictures are those that the command writes."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from benchmarks import tour

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'tour.md').read_text(encoding='utf-8')
STATED = {claim: float(bound) for claim, bound in re.findall(r'^\| (.+?) \| below (\S+).*\|$', TEXT, re.MULTILINE)}
DRIFT = {'centered taps, three times as fine': 0.00054, 'taps that begin at 0 and -1, three times as fine': 0.031}


@pytest.fixture(scope='module')
def measured() -> dict[str, float]:
    return tour.claims()


def test_the_text_states_every_claim(measured: dict[str, float]) -> None:
    assert STATED.keys() | DRIFT.keys() == measured.keys() and len(STATED) == 13


@pytest.mark.parametrize('claim', STATED)
def test_a_claim_holds(claim: str, measured: dict[str, float]) -> None:
    assert 0 <= measured[claim] < STATED[claim] <= 1e-8


@pytest.mark.parametrize('claim', DRIFT)
def test_a_change_is_as_large_as_stated(claim: str, measured: dict[str, float]) -> None:
    assert f'{100 * DRIFT[claim]:.2g} %' in TEXT
    assert measured[claim] == pytest.approx(DRIFT[claim], rel=0.05)


def test_the_pictures_are_those_of_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tour.main(tmp_path)
    printed = capsys.readouterr().out
    assert [claim for claim in STATED if claim not in printed] == []
    names = set(re.findall(r'pictures/(tour_[\w-]+)\.png', TEXT))
    assert names == {path.stem for path in tmp_path.iterdir()}
    assert names == {*tour.PICTURES, *(f'{name}-dark' for name in tour.PICTURES)}
    for name in names:
        # Fonts differ between machines by a little; what is drawn does not.
        kept, fresh = (matplotlib.image.imread(folder / f'{name}.png') for folder in (ROOT / 'docs/pictures', tmp_path))
        assert kept.shape == fresh.shape and np.abs(kept - fresh).mean() < 0.0005
