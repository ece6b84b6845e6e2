"""The models of sound that ship: complete, finite, small, and taken by name."""

from pathlib import Path

import pytest
import torch

from s4nd.audio import generate, load_generator
from s4nd.audio.evaluation.metrics import load_classifier
from s4nd.audio.io import resample
from s4nd.audio.models import MODELS, build_model
from s4nd.cli import main
from s4nd.training.checkpoint import config_beside, find_weights, load_weights, read_metadata, stored_args
from s4nd.training.config import load_config
from s4nd.weights import FOLDER, shipped_names

SHIPPED = [name for name in shipped_names() if name.split('.')[0] in MODELS]


@pytest.mark.parametrize('name', SHIPPED)
def test_weights_that_ship_load_and_say_how_they_were_made(name: str) -> None:
    path = find_weights(name)
    metadata = read_metadata(path)
    load_weights(path, build_model(metadata['model'], stored_args(path, metadata)), name.split('.')[0])
    assert path.stat().st_size < 2e6 and path.with_suffix('.md').is_file()
    config = config_beside(path)
    assert config is not None and load_config(config).model.name == metadata['model']


def test_all_weights_fit_into_the_wheel() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob('*.safetensors')) < 8e6


def test_a_name_that_does_not_ship_names_those_that_do() -> None:
    with pytest.raises(FileNotFoundError, match=r'sashimi\.pian, .*sashimi\.piano'):
        find_weights('sashimi.pian')


def test_the_piano_plays_by_name_and_is_no_silence() -> None:
    model = load_generator('sashimi.piano')
    wave = generate(model, length=400, seed=1)
    assert model.sample_rate == 16000 and wave.shape == (1, 400) and wave.isfinite().all() and wave.std() > 1e-3
    assert torch.equal(wave, generate('sashimi.piano', length=400, seed=1))


def test_generate_without_a_checkpoint_writes_nothing_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(FOLDER.iterdir())
    assert main(['generate', 'seconds=0.02']) == 0
    assert (tmp_path / 'out/sashimi.piano/sample-0.wav').is_file() and sorted(FOLDER.iterdir()) == before


def test_the_classifier_of_the_metrics_loads_by_name() -> None:
    assert load_classifier('spectrogram_classifier.digits')(torch.zeros(1, 8000)).shape == (1, 10)


def test_the_digit_classifier_hears_the_same_at_half_the_rate() -> None:
    path = find_weights('audio_classifier.digits')
    metadata = read_metadata(path)
    model = build_model('audio_classifier', stored_args(path, metadata)).eval()
    load_weights(path, model, 'audio_classifier')
    waves = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0)) * torch.hann_window(2000)
    waves = resample(waves / waves.abs().amax(1, keepdim=True), 2000, 8000)  # nothing above 1 kHz
    with torch.no_grad():
        fine, coarse = model(waves), model(resample(waves, 8000, 4000))
    assert torch.equal(fine.argmax(1), coarse.argmax(1))
    assert (fine - coarse).abs().max() < 0.2 * fine.abs().max()
