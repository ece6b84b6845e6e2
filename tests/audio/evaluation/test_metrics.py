"""Metrics of generated sound against closed forms and hand-made distributions, and the command end to end."""

import json
import math
from pathlib import Path

import pytest
import torch

from audio.cli import metrics as main
from audio.evaluation.metrics import (
    am_score,
    bits_of_clips,
    evaluate,
    fid,
    generated_bits,
    inception_score,
    likelihood_rejection,
    modified_inception_score,
    nll,
    table,
)
from audio.io import write_audio
from audio.models.sashimi import SaShiMi
from audio.models.spectrogram import SpectrogramClassifier
from audio.quantization import Quantizer
from s4nd.train import main as train


def test_fid_of_equal_sets_is_zero() -> None:
    a = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert fid(a, a) == pytest.approx(0, abs=1e-10)
    assert fid(a[:5], a[:5]) == pytest.approx(0, abs=1e-6)  # fewer clips than features


def test_fid_is_the_closed_form_of_two_gaussians() -> None:
    # Exact moments: rows ±√2 sᵢ eᵢ have mean 0 and, over n - 1, covariance diag(4 s²/(n - 1)).
    def spread(scales: list[float]) -> torch.Tensor:
        side = torch.diag(torch.tensor(scales, dtype=torch.float64))
        rows = torch.cat([side, -side])
        return rows * math.sqrt((len(rows) - 1) / 2)

    a, b = spread([1.0, 2.0, 3.0]), spread([2.0, 2.0, 0.5])
    torch.testing.assert_close(torch.cov(a.T).diag(), torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = 1 + 4 + 0.25 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert fid(a, b + shift) == pytest.approx(expected, rel=1e-9)
    # Covariances that do not commute: a rotation of both changes nothing.
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert fid(a @ turn, (b + shift) @ turn) == pytest.approx(expected, rel=1e-9)


def test_fid_needs_two_clips() -> None:
    with pytest.raises(ValueError, match='at least two clips on each side, got 1 and 3'):
        fid(torch.zeros(1, 2), torch.zeros(3, 2))


def certain(classes: list[int], k: int = 4) -> torch.Tensor:
    return torch.eye(k)[classes]


def test_scores_of_certain_and_balanced_predictions() -> None:
    p = certain([0, 1, 2, 3] * 100)
    assert 3.8 < inception_score(p) <= 4.0 / 0.9
    # Pairs of different classes have an infinite divergence, here that of log 1e12; 3 pairs in 4 differ.
    mean = math.log(modified_inception_score(p)) / math.log(1e12)
    assert mean == pytest.approx(0.75, abs=0.02)
    assert am_score(p, p) == pytest.approx(0, abs=1e-9)


def test_scores_of_undecided_predictions() -> None:
    p = torch.full((10, 4), 0.25)
    assert inception_score(p) == pytest.approx(1) and modified_inception_score(p) == pytest.approx(1)
    assert am_score(p, p) == pytest.approx(math.log(4))


def test_scores_by_hand() -> None:
    # Every row is one of two, so each half of the IS holds them in some proportion, here known: both rows are equal.
    p = torch.tensor([[0.9, 0.1]] * 6)
    assert inception_score(p) == pytest.approx(1)
    real, made = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1) + 0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / 2
    divergence = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert am_score(real, made) == pytest.approx(entropy + divergence, rel=1e-6)
    # Two rows a half apart: half of the pairs have KL 0, the others the mean of the two directions.
    pair = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    forward = 0.8 * math.log(2) + 0.2 * math.log(0.2 / 0.6)
    back = 0.4 * math.log(0.5) + 0.6 * math.log(3)
    assert modified_inception_score(pair, pairs=200_000) == pytest.approx(math.exp((forward + back) / 4), rel=0.01)


def test_inception_score_holds_one_half_against_the_other() -> None:
    p = certain([0, 1], 2)
    # Whatever the order, one half is the first class and the other the second.
    assert inception_score(p) == pytest.approx(1e12)
    assert inception_score(certain([0] * 9 + [1], 2), seed=1) == inception_score(certain([0] * 9 + [1], 2), seed=1)


@pytest.mark.parametrize('count', [20, 100, 512])
def test_rejection_keeps_the_stated_share(count: int) -> None:
    bits = torch.randperm(count, generator=torch.Generator().manual_seed(0)).float()
    kept = likelihood_rejection(bits)
    assert len(kept) == round(0.95 * count) - round(0.4 * count)
    # Fewer bits, more likely: the worst 40 % are those with most bits.
    assert set(bits[kept].int().tolist()) == set(range(count - round(0.95 * count), count - round(0.4 * count)))


def test_bits_of_clips_equal_the_loss() -> None:
    torch.manual_seed(0)
    model, codes = SaShiMi(4, d_model=4, n_layers=1, pool=(2,), d_state=4), torch.randint(0, 16, (3, 20))
    bits = bits_of_clips(model.eval(), codes, 8)
    inputs = torch.cat([torch.full((3, 1), 8), codes[:, :-1]], 1)
    chosen = model(inputs).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(bits, -chosen.mean(1) / math.log(2))


def test_the_picture_ignores_loudness_and_checks_length() -> None:
    model = SpectrogramClassifier(3, 2000, 4000, n_mels=16).eval()
    wave = torch.randn(2, 2000)
    torch.testing.assert_close(model.picture(0.25 * wave), model.picture(wave), atol=0.01, rtol=0)
    features, probabilities = model.features(wave)
    assert features.shape[0] == 2 and probabilities.shape == (2, 3)
    torch.testing.assert_close(model(wave).softmax(-1), probabilities)
    torch.testing.assert_close(model.net.get_classifier()(features).softmax(-1), probabilities)
    assert model(wave[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r'\(batch, 2000\), got \(2, 1999\)'):
        model(wave[:, 1:])
    with pytest.raises(ValueError, match=r'floating-point numbers, got torch\.int64'):
        model(wave.long())
    with pytest.raises(ValueError, match="no model 'resnet1000'"):
        SpectrogramClassifier(3, 2000, 4000, backbone='resnet1000')


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained toy classifier of high and low tones, a toy generator, and a folder of 'generated' clips."""
    root = tmp_path_factory.mktemp('metrics')
    random = torch.Generator().manual_seed(0)
    t = torch.arange(1500) / 4000
    for folder, count in (('real', 24), ('generated', 20)):
        (root / folder).mkdir()
        for i in range(count):
            pitch = (300 if i % 2 else 900) + 40 * torch.rand((), generator=random)
            wave = 0.6 * torch.sin(2 * math.pi * pitch * t) + 0.01 * torch.randn(1500, generator=random)
            write_audio(root / folder / f'{"low" if i % 2 else "high"}_x_{i}.wav', wave, 4000)
    data = [f'data.root={root}/real', 'data.sample_rate=4000', 'data.clip_samples=1600', 'data.kind=digits', 'epochs=1']
    (root / 'a.yaml').write_text('task: audio\n')
    judge = ['model.name=spectrogram_classifier', 'data.labels=name', 'model.args.n_mels=16', 'epochs=6']
    train([str(root / 'a.yaml'), *data, *judge, 'data.batch_size=7', 'optim.lr=0.01', f'out={root}/judge'])
    tiny = [f'model.args.{word}' for word in ('d_model=4', 'n_layers=1', 'pool=[4]', 'd_state=4')]
    train([str(root / 'a.yaml'), *data, *tiny, 'model.name=sashimi', 'data.bits=4', f'out={root}/model'])
    return root


def test_metrics_of_a_folder(runs: Path, capsys: pytest.CaptureFixture) -> None:
    out = runs / 'metrics.json'
    main([f'generated={runs}/generated', f'classifier={runs}/judge', f'checkpoint={runs}/model', f'out={out}'])
    report, shown = json.loads(out.read_text()), capsys.readouterr().out
    everything, rejected = report['rows']['generated, all'], list(report['rows'].values())[-1]
    assert (everything['n'], rejected['n'], report['passed_over']) == (20, 11, 0)
    assert report['rows']['real test clips']['n'] == 5 and report['real_training_clips'] == 14
    assert all(math.isfinite(row[key]) for row in report['rows'].values() for key in ('FID', 'IS', 'mIS', 'AM'))
    for text in (
        'seed 0',
        '20 clips, 0 passed over',
        '40% least and 5% most likely dropped',
        'of the test clips right',
    ):
        assert text in shown


def test_without_likelihoods_there_is_no_rejection(runs: Path) -> None:
    (runs / 'generated' / 'broken.wav').write_bytes(b'RIFF')
    with pytest.warns(UserWarning, match='broken'):
        report = evaluate(runs / 'generated', runs / 'judge')
    (runs / 'generated' / 'broken.wav').unlink()
    assert report['passed_over'] == 1 and list(report['rows']) == ['real test clips', 'generated, all']
    assert 'no rejection' in table(report)
    with pytest.raises(ValueError, match='20 usable files, but likelihoods of 3'):
        evaluate(runs / 'generated', runs / 'judge', bits=torch.zeros(3))
    # A model may make silence, which counts.
    write_audio(runs / 'generated' / 'silent.wav', torch.zeros(1000), 4000)
    with pytest.raises(ValueError, match='21 usable files, but likelihoods of 3'):
        evaluate(runs / 'generated', runs / 'judge', bits=torch.zeros(3))
    (runs / 'generated' / 'silent.wav').unlink()
    # Generated tones sound like the real ones, and noise does not.
    (runs / 'noise').mkdir()
    for i in range(20):
        write_audio(runs / 'noise' / f'{i}.wav', 0.2 * torch.randn(1600), 4000)
    noise = evaluate(runs / 'noise', runs / 'judge')
    assert noise['rows']['generated, all']['FID'] > 2 * report['rows']['generated, all']['FID']


def test_likelihoods_from_the_files_are_those_of_the_codes(runs: Path) -> None:
    from audio.generation import load_generator

    source = load_generator(runs / 'model')
    assert source.quantizer == Quantizer('mu-law', 4) and source.sample_rate == 4000
    codes = torch.randint(0, 16, (3, 300), generator=torch.Generator().manual_seed(0))
    (runs / 'coded').mkdir()
    for i, clip in enumerate(codes):
        write_audio(runs / 'coded' / f'{i}.wav', source.quantizer.decode(clip), 4000)
    torch.testing.assert_close(generated_bits(runs / 'model', runs / 'coded'), bits_of_clips(source.model, codes, 8))


def test_likelihoods_given_the_class(runs: Path) -> None:
    words = [
        f'data.root={runs}/real',
        'data.sample_rate=4000',
        'data.clip_samples=1600',
        'data.kind=digits',
        'epochs=1',
    ]
    words += [f'model.args.{word}' for word in ('d_model=4', 'n_layers=1', 'pool=[4]', 'd_state=4')]
    train([str(runs / 'a.yaml'), *words, 'model.name=sashimi', 'data.labels=name', f'out={runs}/by_class'])
    with pytest.raises(ValueError, match=r'labels=folder or labels=name \(high, low\)'):
        generated_bits(runs / 'by_class', runs / 'generated')
    bits = generated_bits(runs / 'by_class', runs / 'generated', 'name')
    assert bits.shape == (20,) and torch.isfinite(bits).all()


def test_nll_of_a_run_is_that_of_its_report(runs: Path, capsys: pytest.CaptureFixture) -> None:
    found = nll(runs / 'model', 'test')
    assert found['clips'] == 5
    assert found['bits'] == pytest.approx(
        json.loads((runs / 'model' / 'report.json').read_text())['results']['test_nll']
    )
    main([f'checkpoint={runs}/model', 'part=val'])
    assert 'bits per sample on 5 val clips' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'give checkpoint=… (its bits per sample) or generated=…'),
        (['generate=x', 'checkpoint=y'], "unknown option 'generate'; did you mean 'generated'"),
        (['generated={}/generated'], 'classifier must be given'),
        (['generated={}/generated', 'classifier=spectrogram_classifier.digits'], 'real must be given (real=…)'),
        (['checkpoint=sashimi.piano'], 'real must be given (real=…)'),
        (['generated={}/generated', 'classifier={}/model'], 'weights of sashimi, expected spectrogram_classifier'),
        (['generated={}/generated', 'classifier={}/nothing'], 'no checkpoint at'),
        (['generated={}/nothing', 'classifier={}/judge'], 'no folder at'),
        (['checkpoint={}/judge'], 'only an autoregressive model has bits per sample'),
        (['checkpoint={}/model', 'part=dev'], "unknown part 'dev': expected one of train, val, test"),
        (['generated={}/generated', 'classifier={}/judge', 'checkpoint={}/judge'], 'spectrogram_classifier'),
        (['generated={}/generated', 'classifier={}/judge', 'checkpoint={}/model', 'labels=name'], 'has none'),
    ],
)
def test_bad_input(runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([word.replace('{}', str(runs)) for word in words]) == 2
    assert message in capsys.readouterr().err
