"""The loop over fixed buffers, captured on a GPU, draws what the plain loop draws."""

import numpy as np
import pytest
import torch

from audio.generation.captured import CapturedLoop
from audio.generation.sampling import EagerLoop, Sampling, sample_codes
from audio.models.sashimi import SaShiMi

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def model(**options: int) -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(5, d_model=8, n_layers=1, d_state=8, **options).eval().to(DEVICE)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(('temperature', 'top_p'), [(1.0, 1.0), (0.7, 0.8)])
def test_same_codes_as_the_plain_loop(batch: int, temperature: float, top_p: float) -> None:
    net, rng = model(), np.random.default_rng(0)
    period = net.backbone.period
    first = torch.arange(batch, device=DEVICE)
    loops = EagerLoop(net, batch), CapturedLoop(net, batch)
    codes = first
    # Pieces that begin and end in the middle of a period, and one that is longer.
    for count in (3, period, 2 * period + 5, 1):
        uniforms = rng.random((batch, count), np.float32).astype(np.float64)
        plain, ours = (loop.sample(codes, uniforms, temperature, top_p) for loop in loops)
        assert torch.equal(plain, ours)
        codes = plain[:, -1]
    assert len(plain.unique()) > 0


def test_other_options_and_state() -> None:
    net, rng = model(num_classes=2), np.random.default_rng(0)
    label = torch.tensor([1, 0], device=DEVICE)
    seen = torch.randint(0, 32, (2, 7), device=DEVICE)
    with torch.no_grad():
        _, state = net(seen, net.init_state(2), label=label)
    kept = {name: t.clone() for name, t in state.items()}
    loops = [loop(net, 2, label=label, state=state) for loop in (EagerLoop, CapturedLoop)]
    for options in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.9)):
        uniforms = rng.random((2, 20), np.float32).astype(np.float64)
        plain, ours = (loop.sample(seen[:, -1], uniforms, *options) for loop in loops)
        assert torch.equal(plain, ours)
    assert all(torch.equal(state[name], t) for name, t in kept.items())  # the caller's state is left as it was


@pytest.mark.skipif(DEVICE == 'cuda', reason='says what happens without a GPU')
def test_it_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="'captured' needs a model on a GPU, got one on cpu"):
        sample_codes(model(), 16, Sampling(length=4, method='captured'))
