"""The compiled loop equals the model's own step and its forward."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from audio.generation.sampling import EagerLoop, Sampling, draw, sample_codes
from audio.models.sashimi import SaShiMi
from s4nd.kernels import KERNELS, RecurrentKernel

pytest.importorskip('numba', reason='the compiled loop needs numba')
from audio.generation import loops
from audio.generation.engine import Engine, why_not

# Float32 against float32: logits here are of order 1.
TOLERANCE = {'atol': 2e-5, 'rtol': 0}


def sashimi(bits: int = 4, d_model: int = 4, n_layers: int = 1, **options: object) -> SaShiMi:
    torch.manual_seed(0)
    return SaShiMi(bits, **({'d_model': d_model, 'n_layers': n_layers, 'pool': (2, 2), 'd_state': 8} | options)).eval()


def tokens(model: SaShiMi, batch: int, length: int) -> Tensor:
    return torch.randint(2**model.bits, (batch, length), generator=torch.Generator().manual_seed(1))


def steps(engine: Engine, codes: Tensor) -> Tensor:
    return torch.stack([engine.step(code) for code in codes.unbind(1)], 1)


OPTIONS = [
    *({'pool': pool, 'unet': unet} for pool, unet in itertools.product([(), (2,), (3, 2), (4, 1)], [False, True])),
    {'n_layers': 2, 'unet': True},
    {'glu': False},
    {'ff': 0},
    {'ff': 3, 'expand': 1},
    {'d_model': 9, 'd_state': 6, 'bits': 3},  # nothing is a multiple of a vector
    {'n_ssm': 'd_model'},
    {'init': 'legt'},  # rank 2
    {'init': 'fout'},
    {'kernel': 's4d', 'pool': (3, 2)},
    {'kernel': 's4d', 'init': 'real'},
    {'kernel': 'dss-exp'},
    {'num_classes': 5},
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('batch', [1, 3])
@torch.no_grad()
def test_engine_equals_step_equals_forward(options: dict[str, object], batch: int) -> None:
    model = sashimi(**options)
    label = None if model.num_classes is None else torch.tensor([4, 0, 2])[:batch]
    codes = tokens(model, batch, 2 * model.backbone.period + 3)
    expected = model(codes, label=label)
    engine = Engine(model, batch, label=label)
    torch.testing.assert_close(steps(engine, codes), expected, **TOLERANCE)
    state, system = model.init_state(batch), model.system()
    for code in codes.unbind(1):
        logits, state = model.step(code, state, system, label=label)
    torch.testing.assert_close(logits, expected[:, -1], **TOLERANCE)
    mine = engine.state()
    assert mine.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(mine[name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize('kernel', ['s4', 's4d'])
@torch.no_grad()
def test_over_a_thousand_samples(kernel: str) -> None:
    model = sashimi(8, 16, 2, pool=(4, 4), d_state=64, kernel=kernel)
    codes = tokens(model, 1, 1000)
    torch.testing.assert_close(steps(Engine(model), codes), model(codes), atol=1e-4, rtol=0)


@pytest.mark.parametrize('kernel', ['s4', 's4d'])
@torch.no_grad()
def test_a_million_samples_neither_grow_nor_drift(kernel: str) -> None:
    model = sashimi(pool=(4, 4), kernel=kernel, ff=1, dt_min=0.01)
    engine, count, first = Engine(model), 1_000_000, torch.tensor([8])
    codes = engine.sample(first, np.random.default_rng(0).random((1, count)))
    logits, state = engine.step(codes[:, -1]), engine.state()
    # The same tokens by convolution, over a window long against every memory of the model: nothing older may show.
    window = 160_000 + count % model.backbone.period + 1
    double = copy.deepcopy(model).double()
    found, fresh = double.backbone(double.embed(codes[:, -window:]), double.init_state(1))
    expected = double.head(found[:, -1])
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=0)
    for name, value in state.items():
        torch.testing.assert_close(value.to(fresh[name].dtype), fresh[name], atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_it_goes_on_from_a_state_again_and_again() -> None:
    model = sashimi(unet=True, pool=(3, 2))
    codes = tokens(model, 2, 31)
    expected = model(codes)
    for cut in (1, 4, 12):
        _, state = model(codes[:, :cut], model.init_state(2))
        engine = Engine(model, 2, state=state)
        for _ in range(2):
            torch.testing.assert_close(steps(engine, codes[:, cut:]), expected[:, cut:], **TOLERANCE)
            engine.load(state)
        # And back: the model's own step takes the engine's state.
        steps(engine, codes[:, cut:17])
        logits, _ = model.step(codes[:, 17], engine.state())
        torch.testing.assert_close(logits, expected[:, 17], **TOLERANCE)
    state['phase'] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r'same phase, got \[0, 1\]'):
        engine.load(state)


@pytest.mark.parametrize(('temperature', 'top_p'), [(1.0, 1.0), (0.7, 0.9), (2.0, 1e-9)])
def test_it_samples_what_the_plain_loop_samples(temperature: float, top_p: float) -> None:
    model = sashimi(6, 8, n_layers=2)
    options = {'length': 200, 'batch': 3, 'seed': 4, 'temperature': temperature, 'top_p': top_p}
    plain = sample_codes(model, 32, Sampling(method='eager', **options))
    assert torch.equal(sample_codes(model, 32, Sampling(method='compiled', **options)), plain)


def test_a_row_does_not_depend_on_the_batch() -> None:
    model = sashimi(6)
    three = sample_codes(model, 32, Sampling(length=100, batch=3, seed=7))
    assert torch.equal(sample_codes(model, 32, Sampling(length=100, batch=2, seed=7)), three[:2])
    assert not torch.equal(three[0], three[1])


def test_drawing_is_the_same_in_both() -> None:
    rng = np.random.default_rng(0)
    for top_p, temperature in itertools.product((0.2, 0.9, 1.0), (0.3, 1.0)):
        logits = rng.standard_normal((500, 11)).astype(np.float32) * 3
        logits[:100] = logits[:100].round()  # ties
        logits[100:110, 3:] = -np.inf
        uniform = rng.random(500, np.float32).astype(np.float64)
        uniform[:50], uniform[50:100] = 0, 1 - 2.0**-24
        expected = draw(torch.from_numpy(logits), torch.from_numpy(uniform), temperature, top_p)
        found = [loops.draw(row, u, temperature, top_p) for row, u in zip(logits, uniform, strict=True)]
        assert found == expected.tolist()


def test_the_engine_keeps_the_weights_it_was_made_with() -> None:
    model = sashimi()
    engine, codes = Engine(model), tokens(model, 1, 9)
    with torch.no_grad():
        expected = model(codes)
        for parameter in model.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(steps(engine, codes), expected, **TOLERANCE)


def test_what_it_cannot_run() -> None:
    unfit = sorted(
        name
        for name, cls in KERNELS.items()
        if issubclass(cls, RecurrentKernel) and name not in ('s4', 'nplr', 's4d', 'dss-exp')
    )
    assert unfit
    for name in unfit:
        model = sashimi(kernel=name, init=None)
        assert why_not(model) == type(model.backbone.center[0].s4.kernels[0]).__name__
        with pytest.raises(ValueError, match='no compiled loop for'):
            Engine(model)
        # 'auto' takes the plain loop.
        plain = EagerLoop(model).sample(torch.tensor([8]), np.random.default_rng((0, 0)).random((1, 5), np.float32))
        assert torch.equal(sample_codes(model, 8, Sampling(length=5)), plain)
    assert why_not(sashimi(dtype=torch.float64)) == 'float64'
    assert why_not(sashimi()) is None
