"""The classifier of waveforms: any sample rate, the baseline, bad input."""

import math

import pytest
import torch
from torch import Tensor

from audio.models.classifier import WaveClassifier
from s4nd.layers import S4ND

SIZES = {'dims': (3, 4, 5), 'depths': (1, 2), 'pool': (4, 2), 'd_state': 8, 'reach': 20, 'kernel_size': 9}


def model(mixer: str = 's4nd', **options: object) -> WaveClassifier:
    torch.manual_seed(0)
    return WaveClassifier(6, 64, mixer=mixer, **(SIZES | options)).eval()


def tones(samples: int, band: float = 0.05) -> Tensor:
    """The same four smooth clips of one second, sampled `samples` times (in the middle of equal cells)."""
    torch.manual_seed(1)
    t = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    pitch = torch.linspace(2, 64 * band, 4, dtype=torch.float64)
    waves = torch.sin(2 * math.pi * pitch[:, None] * t) * torch.sin(math.pi * t) ** 2
    return waves.float()


@pytest.mark.parametrize('mixer', ['s4nd', 'conv1d'])
@torch.no_grad()
def test_any_length_and_rows_apart(mixer: str) -> None:
    classifier = model(mixer)
    for length in (1, 7, 63, 64, 100):
        waves = torch.randn(3, length)
        logits = classifier(waves)
        assert logits.shape == (3, 6) and torch.isfinite(logits).all()
        torch.testing.assert_close(classifier(waves[1:2]), logits[1:2], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_rate_is_the_same_sound() -> None:
    # Half and twice as many samples of smooth clips: the S4ND model hardly notices, the ConvNet does. (No pools: they
    # average over another stretch of time at another rate.)
    change = {}
    for mixer in ('s4nd', 'conv1d'):
        classifier = model(mixer, pool=(1, 1), d_state=8, bandlimit=0.25)
        there = classifier(tones(256))
        change[mixer] = [
            float((classifier(tones(size)) - there).norm() / (there - there.mean(0)).norm()) for size in (128, 512)
        ]
    assert max(change['s4nd']) < 0.1 < 5 * max(change['s4nd']) < min(change['conv1d'])


@torch.no_grad()
def test_every_mixer_knows_its_grid() -> None:
    classifier = model()
    grids = [module.grid for module in classifier.modules() if isinstance(module, S4ND)]
    assert grids == [(64,), (16,), (8,), (8,)]
    assert not any(isinstance(module, S4ND) for module in model('conv1d').modules())


@torch.no_grad()
def test_loudness_is_no_feature_and_silence_is_finite() -> None:
    classifier, waves = model(), torch.randn(2, 64)
    torch.testing.assert_close(classifier(0.01 * waves), classifier(waves), atol=1e-4, rtol=1e-4)
    silence = torch.zeros(2, 64, requires_grad=True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(classifier(silence).sum(), silence)
    assert torch.isfinite(classifier(silence)).all() and gradient.isfinite().all()


@pytest.mark.parametrize('mixer', ['s4nd', 'conv1d'])
def test_every_parameter_has_a_gradient(mixer: str) -> None:
    classifier = model(mixer, dropout=0.1).train()
    classifier(torch.randn(4, 64)).square().sum().backward()
    assert [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_baseline_has_as_many_parameters() -> None:
    counts = [
        sum(p.numel() for p in WaveClassifier(10, 8000, mixer=mixer, **options).parameters())
        for mixer, options in (('s4nd', {'d_state': 64}), ('conv1d', {'kernel_size': 127}))
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mixer': 'attention'}, "'attention': expected one of s4nd, conv1d"),
        ({'depths': (1,)}, r'depths=\(1,\)'),
        ({'dims': (3,), 'depths': (), 'pool': ()}, r'dims=\(3,\)'),
        ({'pool': (4, 0)}, 'pool must be at least 1, got 0'),
        ({'kernel_size': 8}, 'kernel_size must be odd.*got 8'),
        ({'d_state': 3}, 'd_state must be even'),
        ({'bandlimit': -1.0}, 'bandlimit must be positive'),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize('shape', [(3,), (2, 0), (2, 1, 64)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'expected waveforms \(batch, length >= 1\), got'):
        model()(torch.zeros(shape))
