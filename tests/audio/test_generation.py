"""Sampling and the command `python -m audio.generate`."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from audio.generate import main
from audio.generation import draw, load_generator, sample_codes
from audio.quantization import Quantizer
from audio.sashimi import SaShiMi
from s4nd.training.checkpoint import save_weights

ARGS = {'d_model': 4, 'n_layers': 1, 'pool': [2, 2], 'd_state': 4}
LINEAR = Quantizer('linear', 6)


@pytest.fixture(scope='module')
def model() -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(6, **ARGS).eval()


@pytest.fixture
def run_folder(tmp_path: Path, model: SaShiMi) -> Path:
    metadata = {'model': 'sashimi', 'args': json.dumps(ARGS), 'quantizer': LINEAR.to_json(), 'sample_rate': '500'}
    save_weights(tmp_path / 'best.safetensors', model, metadata)
    return tmp_path


def codes(model: SaShiMi, **options: object) -> torch.Tensor:
    return sample_codes(model, 40, 32, **options)


def test_same_seed_same_samples(model: SaShiMi) -> None:
    first = codes(model, seed=5, batch=2)
    assert first.shape == (2, 40) and first.dtype == torch.int64
    assert torch.equal(first, codes(model, seed=5, batch=2))
    assert not torch.equal(first, codes(model, seed=6, batch=2))
    assert not torch.equal(first[0], first[1])


@torch.no_grad()
def test_each_code_is_drawn_from_the_models_own_prediction(model: SaShiMi) -> None:
    greedy = codes(model, top_p=1e-9)
    inputs = torch.nn.functional.pad(greedy[:, :-1], (1, 0), value=32)
    assert torch.equal(greedy, model(inputs).argmax(-1))


def test_draw_keeps_the_likeliest_codes() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).repeat(4000, 1)
    random = torch.Generator().manual_seed(0)
    shares = {}
    for top_p in (0.4, 0.6, 0.9, 1.0):
        shares[top_p] = torch.bincount(draw(probabilities.log(), 1.0, top_p, random), minlength=4) / 4000
    assert shares[0.4].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(shares[0.6], torch.tensor([0.625, 0.375, 0, 0]), atol=0.03, rtol=0)
    assert shares[0.9][3] == 0 and shares[0.9][2] > 0.1
    torch.testing.assert_close(shares[1.0], probabilities[0], atol=0.03, rtol=0)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(4000, 1)
    random = torch.Generator().manual_seed(0)
    cold = torch.bincount(draw(logits, 0.5, 1.0, random), minlength=3) / 4000
    torch.testing.assert_close(cold, torch.tensor([0.25, 0.09, 0.04]) / 0.38, atol=0.03, rtol=0)


def test_progress_counts_every_sample(model: SaShiMi) -> None:
    seen = []
    sample_codes(model, 5, 32, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_loading(run_folder: Path, model: SaShiMi) -> None:
    for path in (run_folder, run_folder / 'best.safetensors'):
        source = load_generator(path)
        assert source.quantizer == LINEAR and source.sample_rate == 500 and not source.model.training
        assert all(torch.equal(a, b) for a, b in zip(source.model.parameters(), model.parameters(), strict=True))


def test_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f'checkpoint={run_folder}', 'seconds=0.1', 'seed=2', 'temperature=0.9', 'top_p=0.95']
    assert main(arguments) == 0
    wave, rate = soundfile.read(run_folder / 'sample-2.wav')
    assert (len(wave), rate) == (50, 500)
    assert (run_folder / 'sample-2.png').read_bytes().startswith(b'\x89PNG')
    printed = capsys.readouterr().out
    assert 'sample-2.wav' in printed and 'sample-2.png' in printed and 'samples/s' in printed
    assert main([*arguments, f'out={run_folder / "again.flac"}']) == 0
    again, _ = soundfile.read(run_folder / 'again.flac')
    assert abs(again - wave).max() < 1e-4
    # The levels are those of the checkpoint's quantiser.
    drawn = sample_codes(load_generator(run_folder).model, 50, 32, seed=2, temperature=0.9, top_p=0.95)
    torch.testing.assert_close(torch.from_numpy(wave).float(), LINEAR.decode(drawn)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['seconds=0'], 'seconds must be positive, got 0.0'),
        (['seconds=-1'], 'seconds must be positive, got -1.0'),
        (['seconds=nan'], 'seconds must be positive'),
        (['seconds=1', 'top_p=0'], r'top_p must be in (0, 1], got 0.0'),
        (['seconds=1', 'top_p=1.5'], r'top_p must be in (0, 1], got 1.5'),
        (['seconds=1', 'temperature=0'], 'temperature must be positive and finite, got 0.0'),
        (['seconds=1', 'temperature=-1'], 'temperature must be positive and finite, got -1.0'),
        (['seconds=1', 'temprature=1'], "'temprature=1': expected key=value"),
        (['seconds=soon'], 'seconds'),
        ([], 'seconds must be given'),
        (['seconds=1', 'out=a.xyz'], "cannot write '.xyz'"),
        (['seconds=1', 'device=abacus'], "device: 'abacus' cannot be used"),
    ],
)
def test_bad_options(run_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f'checkpoint={run_folder}', *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith('error: ') and message in printed.err and printed.err.count('\n') == 1
    assert not list(run_folder.glob('*.wav'))


def run_error(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([f'checkpoint={path}', 'seconds=1']) == 2
    return capsys.readouterr().err


def test_bad_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'no checkpoint at' in run_error(tmp_path / 'none.safetensors', capsys)
    assert 'no best.safetensors or last.safetensors in' in run_error(tmp_path, capsys)
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'nothing')
    assert 'broken.safetensors' in run_error(broken, capsys)
    image = tmp_path / 'image.safetensors'
    save_weights(image, torch.nn.Linear(2, 2), {'model': 's4nd_convnext_tiny'})
    error = run_error(image, capsys)
    assert 's4nd_convnext_tiny' in error and 'expected sashimi' in error
    save_weights(image, torch.nn.Linear(2, 2), {'model': 'sashimi'})
    assert 'lacks args, quantizer, sample_rate' in run_error(image, capsys)
