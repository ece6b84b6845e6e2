"""A folder of two sounds that tell by their samples where they were cut."""

from pathlib import Path

import pytest
import torch

from audio.io import write_audio


def ramp(samples: int) -> torch.Tensor:
    """Every sample differs from its neighbors by 1/16384, so a window tells where it was cut."""
    return torch.arange(1, samples + 1) / 16384


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'sub').mkdir()
    write_audio(tmp_path / 'a.wav', ramp(1000), 8000)
    write_audio(tmp_path / 'sub' / 'b.flac', ramp(2000), 8000)
    return tmp_path
