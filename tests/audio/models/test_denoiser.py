"""The SaShiMi that denoises, and sampling waveforms from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audio.generation.sampling import Sampling, sample_diffusion
from audio.models import DIFFUSION_NAME, build_model
from audio.models.denoiser import DenoisingBackbone, DiffusionSaShiMi
from s4nd.diffusion import step_features
from s4nd.models.s4_block import S4Block
from s4nd.training.checkpoint import load_weights, read_metadata, save_weights

ARGS = {'d_model': 4, 'n_layers': 1, 'pool': [2, 2], 'd_state': 4, 'condition': 8, 'steps': 10}


def model(num_classes: int | None = None, trained: bool = True) -> DiffusionSaShiMi:
    torch.manual_seed(0)
    model = DiffusionSaShiMi(**ARGS, num_classes=num_classes).eval()
    if trained:  # the last map begins at zero
        nn.init.normal_(model.leave[-1].weight)
    return model


def vocoder() -> DiffusionSaShiMi:
    torch.manual_seed(0)
    found = DiffusionSaShiMi(**ARGS, mel=(2, 2)).eval()
    nn.init.normal_(found.leave[-1].weight)
    return found


@torch.no_grad()
def test_a_condition_reaches_every_block() -> None:
    backbone = DenoisingBackbone(4, 2, (2, 2), mixer_args={'d_state': 4}, condition=3).double()
    x, condition = torch.randn(2, 8, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    y = backbone(x, condition)
    moved = backbone(x, condition + torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(moved[0], y[0], atol=1e-10, rtol=0)
    assert (moved[1] - y[1]).abs().max() > 1e-3
    blocks = [module for module in backbone.modules() if isinstance(module, S4Block)]
    assert len(blocks) == 2 * 2 * 2 + 2
    for block in blocks:
        kept = block.condition.weight.clone()
        block.condition.weight.zero_()
        assert (backbone(x, condition) - y).abs().max() > 1e-9
        block.condition.weight.copy_(kept)


@torch.no_grad()
def test_a_vocoder_follows_its_spectrogram(tmp_path: Path) -> None:
    mel = torch.randn(2, 80, 5)
    np.save(tmp_path / 'mel.npy', mel.numpy())
    sampling = Sampling(length=18, batch=2, steps=3, mel=mel)
    drawn = sample_diffusion(vocoder(), sampling)
    assert torch.equal(drawn, sample_diffusion(vocoder(), replace(sampling, mel=str(tmp_path / 'mel.npy'))))
    other = sample_diffusion(vocoder(), replace(sampling, mel=mel.flip(0)))
    assert drawn.isfinite().all() and not torch.allclose(drawn, other)


@pytest.mark.parametrize('length', [9, 16])
def test_silence_has_finite_predictions_and_gradients(length: int) -> None:
    """The scalar norm has no epsilon: a vector of equal features must not become NaN."""
    denoiser = model()
    y = denoiser(torch.zeros(2, length), torch.tensor([1, 7]))
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in denoiser.parameters())


def test_the_untrained_model_predicts_no_noise() -> None:
    assert not model(trained=False)(torch.randn(2, 9), torch.tensor([1, 7])).any()


@torch.no_grad()
def test_the_prediction_depends_on_step_class_and_the_whole_clip() -> None:
    denoiser, x, t = model(3), torch.randn(2, 9), torch.tensor([3, 3])
    label = torch.tensor([0, 1])
    y = denoiser(x, t, label)
    assert y.shape == (2, 9)
    assert not torch.allclose(y, denoiser(x, t + 1, label))
    other = denoiser(x, t, torch.tensor([0, 2]))
    assert torch.equal(other[0], y[0]) and not torch.allclose(other[1], y[1])
    x[0, -1] += 1
    assert (denoiser(x, t, label)[0, 0] - y[0, 0]).abs() > 1e-7


@torch.no_grad()
def test_rows_do_not_meet() -> None:
    denoiser, x, t, label = model(3), torch.randn(3, 11), torch.tensor([1, 5, 10]), torch.tensor([2, 0, 1])
    together = denoiser(x, t, label)
    for row in range(3):
        alone = denoiser(x[row : row + 1], t[row : row + 1], label[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_every_parameter_has_a_gradient() -> None:
    denoiser = model(3)
    denoiser(torch.randn(3, 12), torch.tensor([1, 5, 10]), torch.arange(3)).square().sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_step_features_are_those_of_the_released_code() -> None:
    features = step_features(torch.tensor([7]))
    assert features.shape == (1, 128)
    for i in (0, 21, 63):
        phase = torch.tensor(7 * 10 ** (i * -4 / 63), dtype=torch.float64)
        assert float(features[0, i]) == pytest.approx(float(phase.sin()), abs=1e-6)
        assert float(features[0, 64 + i]) == pytest.approx(float(phase.cos()), abs=1e-6)


@pytest.mark.parametrize('steps', [None, 4])
def test_same_seed_same_samples(steps: int | None) -> None:
    denoiser, done = model(3), []
    label = torch.tensor([1, 2])
    sampling = Sampling(length=9, batch=2, seed=5, label=label, steps=steps)
    first = sample_diffusion(denoiser, sampling, done.append)
    assert first.shape == (2, 9) and torch.isfinite(first).all()
    assert done == list(range(1, (steps or 10) + 1))
    assert torch.equal(first, sample_diffusion(denoiser, sampling))
    assert not torch.allclose(first, sample_diffusion(denoiser, replace(sampling, seed=6)))
    assert not torch.allclose(first, sample_diffusion(denoiser, replace(sampling, label=label.flip(0))))


def test_the_short_sampler_ends_at_the_signal_it_predicts() -> None:
    denoiser, last = model(), {}

    def remember(_module: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        last['x'], last['t'], last['noise'] = *inputs[:2], output

    denoiser.register_forward_hook(remember)
    out = sample_diffusion(denoiser, Sampling(length=9, batch=2, steps=3))
    assert last['t'].tolist() == [1, 1]
    alpha_bar = denoiser.diffusion.alpha_bar[2]
    expected = (last['x'] - (1 - alpha_bar).sqrt() * last['noise']) / alpha_bar.sqrt()
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_carries_the_schedule(tmp_path: Path) -> None:
    saved = model(3)
    args = ARGS | {'num_classes': 3, 'beta_max': 0.3}
    metadata = {'model': DIFFUSION_NAME, 'args': json.dumps(args), 'sample_rate': '4000'}
    save_weights(tmp_path / 'a.safetensors', saved, metadata)
    loaded = build_model(DIFFUSION_NAME, json.loads(read_metadata(tmp_path / 'a.safetensors')['args']))
    load_weights(tmp_path / 'a.safetensors', loaded, DIFFUSION_NAME)
    assert (loaded.diffusion.steps, loaded.diffusion.beta_max) == (10, 0.3)
    x, t, label = torch.randn(1, 6), torch.tensor([2]), torch.tensor([1])
    assert torch.equal(loaded.eval()(x, t, label), saved(x, t, label))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: sample_diffusion(model(), Sampling(length=5, steps=11)), 'from 1 to 10, got 11'),
        (lambda: sample_diffusion(model(3), Sampling(length=5)), 'has 3 classes: a label is needed'),
        (lambda: sample_diffusion(model(3), Sampling(length=5, label=torch.tensor([3]))), r'from 0 to 2, got \[3\]'),
        (lambda: sample_diffusion(model(), Sampling(length=5, label=torch.tensor([0]))), 'without classes'),
        (lambda: model()(torch.zeros(2, 3, 4), torch.tensor([1, 1])), r'expected \(batch, length\)'),
        (lambda: model()(torch.zeros(2, 3), torch.tensor([1])), 'one step per row'),
        (lambda: DiffusionSaShiMi(num_classes=0), 'num_classes must be at least 1'),
        (lambda: DiffusionSaShiMi(condition=0), 'condition must be at least 1'),
        (lambda: DiffusionSaShiMi(mel=(2,)), r'mel must be two factors of at least 1.*got \(2,\)'),
        (lambda: DiffusionSaShiMi(length=3), 'length must be at least the product of the pools, 16, got 3'),
        (lambda: model()(torch.zeros(1, 3), torch.tensor([1]), mel=torch.zeros(1, 80, 9)), 'takes no mel'),
        (lambda: vocoder()(torch.zeros(1, 3), torch.tensor([1])), r'needs a spectrogram'),
        (lambda: vocoder()(torch.zeros(1, 17), torch.tensor([1]), mel=torch.zeros(1, 80, 4)), 'which makes 16'),
        (lambda: sample_diffusion(vocoder(), Sampling(length=5, mel='none.npy')), 'none.npy cannot be read'),
        (lambda: DiffusionSaShiMi(steps=0), 'steps must be at least 1'),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
