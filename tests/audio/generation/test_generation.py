"""Sampling and the command `s4nd generate`."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import audio
from audio import cli
from audio.cli import generate as main
from audio.generation import Generator, Sampling, generate, load_generator, sampling, stream
from audio.generation.sampling import draw, sample_codes, stream_codes
from audio.io import resample
from audio.models.denoiser import DiffusionSaShiMi
from audio.models.sashimi import SaShiMi
from audio.quantization import Quantizer
from s4nd.training.checkpoint import save_weights

ARGS = {'d_model': 4, 'n_layers': 1, 'pool': [2, 2], 'd_state': 4}
LINEAR = Quantizer('linear', 6)


@pytest.fixture(scope='module')
def model() -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(6, **ARGS).eval()


@pytest.fixture(scope='module')
def source(model: SaShiMi) -> Generator:
    return Generator(model, LINEAR, 500)


@pytest.fixture
def run_folder(tmp_path: Path, model: SaShiMi) -> Path:
    metadata = {'model': 'sashimi', 'args': json.dumps(ARGS), 'quantizer': LINEAR.to_json(), 'sample_rate': '500'}
    save_weights(tmp_path / 'best.safetensors', model, metadata)
    return tmp_path


def codes(model: SaShiMi, **options: object) -> torch.Tensor:
    return sample_codes(model, 32, Sampling(length=40, **options))


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


def shares(probabilities: list[float], temperature: float, top_p: float) -> torch.Tensor:
    """How often each code is drawn over an even grid of uniform numbers."""
    uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    logits = torch.tensor(probabilities).log().expand(4096, -1)
    return torch.bincount(draw(logits, uniform, temperature, top_p), minlength=len(probabilities)) / 4096


def test_draw_keeps_the_likeliest_codes() -> None:
    for top_p, expected in [
        (1.0, [0.3, 0.05, 0.5, 0.15]),
        (0.9, [0.3 / 0.95, 0, 0.5 / 0.95, 0.15 / 0.95]),
        (0.6, [0.375, 0, 0.625, 0]),
        (0.4, [0.0, 0, 1, 0]),
    ]:
        found = shares([0.3, 0.05, 0.5, 0.15], 1.0, top_p)
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=0)


def test_draw_is_the_inverse_of_the_distribution_function() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(6, -1)
    uniform = torch.tensor([0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2.0**-24], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_temperature_sharpens() -> None:
    expected = torch.tensor([0.25, 0.09, 0.04]) / 0.38
    torch.testing.assert_close(shares([0.5, 0.3, 0.2], 0.5, 1.0), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize('method', ['eager', 'auto'])
def test_however_the_work_is_cut(model: SaShiMi, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = codes(model, seed=3, batch=2, method=method)
    # A clock that stands still makes every block twice as long as the one before it, one that runs makes them short.
    ticks = iter(range(10_000))
    monkeypatch.setattr(sampling.time, 'perf_counter', lambda: float(next(ticks)))
    blocks = list(stream_codes(model, 32, Sampling(length=40, seed=3, batch=2, method=method)))
    assert [block.shape[1] for block in blocks][:3] == [16, 4, 1]
    assert torch.equal(torch.cat(blocks, 1), whole)


def test_progress_reaches_the_total(source: Generator) -> None:
    seen = []
    generate(source, length=40, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40) and seen == sorted(seen)


@torch.no_grad()
def test_a_prompt_is_continued(source: Generator) -> None:
    """Greedy continuation of a prompt is what the forward says of prompt and continuation together."""
    prompt = torch.linspace(-0.9, 0.9, 13)
    waves = generate(source, length=20, batch=2, top_p=1e-9, prompt=prompt)
    assert waves.shape == (2, 33) and waves.dtype == torch.float32
    drawn = LINEAR.encode(waves)
    assert torch.equal(drawn[:, :13], LINEAR.encode(prompt).expand(2, -1))
    inputs = torch.nn.functional.pad(drawn[:, :-1], (1, 0), value=32)
    assert torch.equal(drawn[:, 13:], source.model(inputs).argmax(-1)[:, 13:])
    # One row a prompt; and going on from what was generated goes on as it would have.
    rows = torch.stack([prompt, -prompt])
    both = generate(source, length=9, batch=2, top_p=1e-9, prompt=rows)
    torch.testing.assert_close(both[0], waves[0, :22])
    again = generate(source, length=11, top_p=1e-9, prompt=waves[0, :22])
    torch.testing.assert_close(again[0], waves[0])


def test_a_prompt_may_be_far_longer_than_a_training_clip(source: Generator) -> None:
    waves = generate(source, seconds=0.01, prompt=torch.zeros(20_000))
    assert waves.shape == (1, 20_005) and waves.isfinite().all()


def test_a_prompt_from_a_file_is_resampled(source: Generator, tmp_path: Path) -> None:
    wave = 0.5 * torch.sin(torch.arange(400) / 9)
    soundfile.write(tmp_path / 'p.wav', wave.numpy(), 1000, subtype='FLOAT')
    waves = generate(source, length=3, prompt=tmp_path / 'p.wav')
    torch.testing.assert_close(waves[0, :200], LINEAR.decode(LINEAR.encode(resample(wave, 1000, 500))))


def test_classes_by_name_and_number() -> None:
    torch.manual_seed(0)
    source = Generator(SaShiMi(6, **ARGS, num_classes=3).eval(), LINEAR, 500, ('cat', 'dog', 'ox'))
    torch.nn.init.normal_(source.model.class_embedding.weight, std=5)
    clips = [generate(source, length=50, label=label, seed=1) for label in ('cat', 'dog', 'ox')]
    assert not torch.equal(clips[0], clips[1]) and not torch.equal(clips[1], clips[2])
    assert torch.equal(generate(source, length=50, label=1, seed=1), clips[1])
    mixed = generate(source, length=50, label=['ox', 0], batch=2, seed=1)
    assert torch.equal(mixed[0], clips[2][0])
    assert torch.equal(mixed, generate(source, length=50, label=['2', 'cat'], batch=2, seed=1, method='eager'))
    prompt = torch.zeros(7)
    assert torch.equal(generate(source, length=5, label=2, prompt=prompt, method='eager', top_p=1e-9)[0, :7], prompt)
    for label, batch, message in [
        ('cow', 1, r"unknown class 'cow': expected one of cat, dog, ox"),
        (3, 1, 'unknown class 3'),
        (-1, 1, 'unknown class -1'),
        (['cat', 'dog'], 3, 'one label, or one for each of 3 clips, got 2'),
        (None, 1, r'3 classes: give the label of what to generate \(cat, dog, ox\)'),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(source, length=5, label=label, batch=batch)


def test_bad_calls(source: Generator) -> None:
    for options, message in [
        ({}, 'either seconds or length, got seconds=None and length=None'),
        ({'seconds': 1, 'length': 5}, 'either seconds or length'),
        ({'seconds': 0}, 'seconds must be positive and finite, got 0'),
        ({'length': 0}, 'at least one sample, got 0'),
        ({'length': 5, 'batch': 0}, 'batch must be at least 1, got 0'),
        ({'length': 5, 'seed': -1}, 'seed must not be negative, got -1'),
        ({'length': 5, 'top_p': 0.0}, r'top_p must be in \(0, 1\], got 0.0'),
        ({'length': 5, 'top_p': 1.1}, 'top_p must be in'),
        ({'length': 5, 'temperature': 0.0}, 'temperature must be positive'),
        ({'length': 5, 'label': 1}, 'without classes: it takes no label, got 1'),
        ({'length': 5, 'steps': 6}, 'steps=6 is for diffusion models'),
        ({'length': 5, 'prompt': torch.zeros(0)}, r'at least one, got \(0,\)'),
        ({'length': 5, 'prompt': torch.zeros(3, 4)}, r'got \(3, 4\)'),
        ({'length': 5, 'method': 'magic'}, "unknown method 'magic'"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(source, **options)


def test_diffusion_models_generate_too() -> None:
    torch.manual_seed(0)
    model = DiffusionSaShiMi(d_model=4, n_layers=1, pool=(2,), d_state=4, condition=8, steps=5).eval()
    torch.nn.init.normal_(model.leave[-1].weight)
    source, seen = Generator(model, None, 500), []
    waves = generate(source, length=30, batch=2, seed=1, steps=3, progress=lambda *now: seen.append(now))
    assert waves.shape == (2, 30) and waves.dtype == torch.float32 and seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(waves, generate(source, length=30, batch=2, seed=1, steps=3))
    for options in ({'prompt': torch.zeros(3)}, {'temperature': 0.9}, {'top_p': 0.9}):
        with pytest.raises(ValueError, match=f'{next(iter(options))} is for autoregressive models'):
            generate(source, length=30, **options)


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
    # The levels are those of the checkpoint's quantizer.
    wanted = Sampling(length=50, seed=2, temperature=0.9, top_p=0.95)
    drawn = sample_codes(load_generator(run_folder).model, 32, wanted)
    torch.testing.assert_close(torch.from_numpy(wave).float(), LINEAR.decode(drawn)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['seconds=0'], 'seconds must be positive and finite, got 0.0'),
        (['seconds=-1'], 'seconds must be positive and finite, got -1.0'),
        (['seconds=nan'], 'seconds must be positive'),
        (['seconds=1', 'top_p=0'], r'top_p must be in (0, 1], got 0.0'),
        (['seconds=1', 'top_p=1.5'], r'top_p must be in (0, 1], got 1.5'),
        (['seconds=1', 'temperature=0'], 'temperature must be positive and finite, got 0.0'),
        (['seconds=1', 'temperature=-1'], 'temperature must be positive and finite, got -1.0'),
        (['seconds=1', 'temprature=1'], "unknown option 'temprature'; did you mean 'temperature'"),
        (['seconds=soon'], 'seconds'),
        ([], 'give either seconds or length, got seconds=None and length=None'),
        (['seconds=1', 'out=a.xyz'], "cannot write '.xyz'"),
        (['seconds=1', 'seed=-1'], 'seed must not be negative, got -1'),
        (['seconds=1', 'batch=0'], 'batch must be at least 1, got 0'),
        (['seconds=1', 'method=magic'], "unknown method 'magic': expected one of auto, compiled, captured, eager"),
        (['seconds=1', 'label=dog'], "trained without classes: it takes no label, got ['dog']"),
        (['seconds=1', 'steps=6'], 'steps=6 is for diffusion models'),
        (['seconds=1', 'prompt=none.wav'], 'no audio file at none.wav'),
        (['seconds=1', f'prompt={__file__}'], 'not a readable audio file'),
        (['seconds=1', 'prompt_seconds=1'], 'prompt_seconds=1 needs a prompt=file'),
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
    assert 's4nd_convnext_tiny' in error and 'expected sashimi or sashimi_diffusion' in error
    save_weights(image, torch.nn.Linear(2, 2), {'model': 'sashimi'})
    assert 'lacks args, sample_rate, quantizer' in run_error(image, capsys)


def test_command_with_a_batch_classes_and_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    args = {**ARGS, 'num_classes': 2}
    metadata = {'model': 'sashimi', 'args': json.dumps(args), 'quantizer': LINEAR.to_json(), 'sample_rate': '500'}
    metadata['classes'] = '["no", "yes"]'
    save_weights(tmp_path / 'last.safetensors', SaShiMi(6, **args), metadata)
    recording = np.sin(np.arange(600) / 9) / 2
    soundfile.write(tmp_path / 'p.wav', recording, 1000, subtype='FLOAT')
    prompt = [f'prompt={tmp_path / "p.wav"}', 'prompt_seconds=0.2']
    arguments = [f'checkpoint={tmp_path}', 'seconds=0.1', 'batch=2', f'out={tmp_path / "a.wav"}', *prompt]
    assert main([*arguments, 'label=yes,no']) == 0
    printed = capsys.readouterr()
    assert 'resampled from 1000 to 500 Hz' in printed.out and 'times real time' in printed.out
    assert 0 < float(re.search(r'([0-9.]+)× real time', printed.err)[1]) < 1000
    start = resample(torch.from_numpy(recording[:200]).float(), 1000, 500)
    expected = generate(load_generator(tmp_path), length=50, batch=2, label=['yes', 'no'], prompt=start)
    for i in range(2):
        wave, rate = soundfile.read(tmp_path / f'a-{i}.wav', dtype='float32')
        assert rate == 500 and (tmp_path / f'a-{i}.png').is_file()
        torch.testing.assert_close(torch.from_numpy(wave), expected[i], atol=1e-4, rtol=0)
    for extra, message in [
        (['label=maybe'], "unknown class 'maybe': expected one of no, yes"),
        ([], 'this model has 2 classes: give the label of what to generate (no, yes)'),
        (['label=yes', 'prompt_seconds=0.7'], 'lasts 0.600 s'),
    ]:
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_what_it_has(
    run_folder: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, handler, lengths = run_folder / 'long.wav', signal.getsignal(signal.SIGTERM), []
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped(*arguments: object) -> Iterator[torch.Tensor]:
        for block in stream(*arguments):
            yield block
            # In a long run the file grows from time to time: here, after every block.
            lengths.append(soundfile.info(out).frames)
            if len(lengths) == 3:
                signal.raise_signal(number)

    monkeypatch.setattr(cli, 'stream', stopped)
    monkeypatch.setattr(cli, 'WRITE_EVERY', 0.0)
    assert main([f'checkpoint={run_folder}', 'seconds=3600', f'out={out}']) == 130
    printed = capsys.readouterr()
    made = lengths[-1]
    assert f'interrupted: {made / 500:.2f} of 3600 s generated' in printed.err and 'long.wav' in printed.out
    assert 0 < lengths[0] < lengths[1] < made
    wave, rate = soundfile.read(out)
    assert (len(wave), rate) == (made, 500) and out.with_suffix('.png').is_file()
    expected = LINEAR.decode(sample_codes(load_generator(run_folder).model, 32, Sampling(length=made)))[0]
    torch.testing.assert_close(torch.from_numpy(wave).float(), expected, atol=1e-4, rtol=0)
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGINT, ignored)


def test_interrupted_before_anything(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, 'stream', interrupted)
    assert main([f'checkpoint={run_folder}', 'seconds=1']) == 130
    assert 'nothing written' in capsys.readouterr().err and not list(run_folder.glob('*.wav'))


def test_options_as_keywords_or_as_one_object(source: Generator) -> None:
    assert audio.generate is generate
    wanted = Sampling(length=5, seed=3)
    assert torch.equal(generate(source, wanted), generate(source, length=5, seed=3))
    assert torch.equal(generate(source, wanted, seed=4), generate(source, length=5, seed=4))
    with pytest.raises(ValueError, match="generate has no option 'temprature'; did you mean 'temperature'"):
        generate(source, length=5, temprature=1.0)


def test_the_command_runs_as_a_module_without_warnings(run_folder: Path) -> None:
    command = [sys.executable, '-W', 'error::RuntimeWarning', '-m', 'audio.generate', f'checkpoint={run_folder}']
    done = subprocess.run([*command, 'seconds=0.02', 'method=eager'], capture_output=True, text=True)
    assert done.returncode == 0 and 'Warning' not in done.stderr, done.stderr


def test_the_first_block_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have compiled the loop; where there is no other, it counts."""
    now = iter([0.0, 12.0, 10.0])
    monkeypatch.setattr(cli, 'time', SimpleNamespace(perf_counter=lambda: next(now)))
    pace = cli.Pace()
    pace.marks.append((16, 10.0))
    assert pace.speed(2016) == 1000 and pace.speed(16) == 1.6
