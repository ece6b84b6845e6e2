"""Kernels against the oracles: steps, lengths, gradients, recurrence, bandlimit, dtypes, bad input."""

import copy

import pytest
import torch
from torch import Tensor

from s4nd.kernels import KERNELS, Kernel, S4DKernel, S4Kernel, dplr, make_kernel
from tests import oracles

STEPS = [1 / 3, 0.5, 1.0, 1.5, 2.0]
EVERY = [
    ('s4d', {'init': 'lin'}),
    ('s4d', {'init': 'inv'}),
    ('s4d', {'init': 'legs'}),
    ('s4d', {'init': 'real'}),
    ('s4d', {'init': 'lin', 'options': {'discretization': 'bilinear'}}),
    ('s4d', {'init': 'lin', 'n_ssm': 3, 'options': {'dt_tied': False}}),
    ('s4', {'init': 'legs'}),
    ('s4', {'init': 'legt'}),
    ('s4', {'init': 'fout'}),
    ('s4', {'init': 'hippo', 'n_ssm': 2}),
    ('s4', {'init': 'legs', 'options': {'rank': 3}}),
]
IDS = [f'{name}-{"-".join(map(str, options.values()))}' for name, options in EVERY]


@pytest.fixture(params=['stepwise', 'squaring'])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which the DPLR kernel computes its taps."""
    monkeypatch.setattr(dplr, '_STEPWISE_UP_TO', {'stepwise': 1000, 'squaring': 0}[request.param])


def build(name: str, options: dict, **more: object) -> Kernel:
    torch.manual_seed(0)
    defaults = {'channels': 2, 'd_state': 8, 'dt_min': 0.01, 'dt_max': 0.5, 'dtype': torch.float64}
    return make_kernel(name, 6, **{**defaults, **options, **more})


def complex_(pair: Tensor) -> Tensor:
    return torch.view_as_complex(pair.contiguous())


def oracle(kernel: Kernel, length: int, step: float) -> Tensor:
    """The same taps from the definitions, differentiable in the kernel's parameters."""
    H = kernel.d_model
    rows = torch.arange(H) % kernel.n_ssm
    dt = kernel.log_dt.exp() * step
    if isinstance(kernel, S4DKernel):
        imag = torch.zeros_like(kernel.log_A_real) if kernel.A_imag is None else kernel.A_imag
        A = torch.complex(-kernel.log_A_real.exp(), -imag)[rows]
        B, C = (kernel.B, kernel.C) if kernel.is_real else (complex_(kernel.B), complex_(kernel.C))
        return oracles.diagonal_taps(dt, A, B[rows], C, length, kernel.discretization)
    w = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)
    B, C, P = complex_(kernel.B), complex_(kernel.C), complex_(kernel.P)
    taps = []
    for h in range(H):
        s = h % kernel.n_ssm
        taps.append(oracles.bilinear_taps(dt[h], *oracles.dplr_matrices(w[s], P[:, s], B[s], C[:, h]), length))
    return torch.stack(taps, 1)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
@pytest.mark.parametrize('length', [1, 2, 7, 33])
@pytest.mark.usefixtures('route')
def test_taps_are_exact_at_every_step(name: str, options: dict, length: int) -> None:
    kernel = build(name, options)
    for step in STEPS:
        torch.testing.assert_close(kernel(length, step), oracle(kernel, length, step), atol=1e-10, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
@pytest.mark.usefixtures('route')
def test_gradients(name: str, options: dict) -> None:
    kernel = build(name, options)
    weight = torch.randn(2, 6, 13, dtype=torch.float64)
    parameters = dict(kernel.named_parameters())
    ours = torch.autograd.grad((kernel(13, 0.7) * weight).sum(), list(parameters.values()))
    true = torch.autograd.grad((oracle(kernel, 13, 0.7) * weight).sum(), list(parameters.values()))
    for key, a, b in zip(parameters, ours, true, strict=True):
        assert b.abs().max() > 0, key
        torch.testing.assert_close(a, b, atol=1e-10 * b.abs().max().item(), rtol=1e-9, msg=lambda m, k=key: f'{k}: {m}')


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_evaluation_changes_nothing(name: str, options: dict) -> None:
    kernel = build(name, options)
    before = copy.deepcopy(kernel.state_dict())
    first = kernel(9, 1.0)
    for length, step in ((30, 0.5), (4, 2.0), (17, 1.0)):
        kernel(length, step)
    assert torch.equal(kernel(9, 1.0), first)
    assert all(torch.equal(value, before[key]) for key, value in kernel.state_dict().items())
    torch.testing.assert_close(kernel(30)[..., :9], first, atol=1e-12, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
@pytest.mark.parametrize('step', [1.0, 0.5])
def test_stepping_equals_convolving(name: str, options: dict, step: float) -> None:
    kernel = build(name, options)
    u = torch.randn(3, 6, 20, dtype=torch.float64)
    taps = kernel(20, step)
    state, y = kernel.init_state(3), []
    for u_k in u.unbind(-1):
        kept = {key: value.clone() for key, value in state.items()}
        y_k, new = kernel.step(u_k, state, step)
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        state = new
        y.append(y_k)
    true = torch.stack([oracles.direct_conv(u, k, [0]) for k in taps], 1)
    torch.testing.assert_close(torch.stack(y, -1), true, atol=1e-10, rtol=0)


@pytest.mark.parametrize(('name', 'init'), [('s4d', 'lin'), ('s4d', 'legs'), ('s4', 'legs'), ('s4', 'fout')])
def test_float32_steps_stay_with_the_convolution(name: str, init: str) -> None:
    torch.manual_seed(0)
    kernel = make_kernel(name, 2, d_state=64, init=init)
    taps = kernel(1500)
    state, y = kernel.init_state(1), []
    impulse = torch.ones(1, 2)
    with torch.no_grad():
        for _ in range(1500):
            y_k, state = kernel.step(impulse, state)
            y.append(y_k[0, 0])
            impulse = torch.zeros(1, 2)
    assert (torch.stack(y, -1) - taps[0]).abs().max() < 1e-4 * max(1.0, taps.abs().max().item())


@pytest.mark.parametrize('name', KERNELS)
@pytest.mark.parametrize('n_ssm', [1, 2, 3, 6])
def test_bandlimit_masks_the_true_C(name: str, n_ssm: int) -> None:
    options = {'n_ssm': n_ssm, 'dt_min': 0.3, 'dt_max': 1.0}
    limited, free = build(name, options, bandlimit=0.5), build(name, options)
    free.load_state_dict({**limited.state_dict(), 'bandlimit': torch.tensor(torch.inf)})
    rows = torch.arange(6) % n_ssm
    frequency = limited.log_dt.exp() * limited.A_imag[rows].abs() / (2 * torch.pi)
    keep = frequency < 0.25
    assert keep.any()
    assert not keep.all()
    with torch.no_grad():
        free.C.mul_(keep[..., None])
    for step in (0.5, 1.0, 2.0):
        torch.testing.assert_close(limited(8, step), free(8, step), atol=1e-12, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_rescaled_time_is_another_step(name: str, options: dict) -> None:
    kernel = build(name, options, bandlimit=0.4)
    before = kernel(12, 0.75)
    kernel.rescale_time(1.5)
    torch.testing.assert_close(kernel(12, 0.5), before, atol=1e-12, rtol=0)


def test_initial_values() -> None:
    """dt spans its range; Re A = 0 starts at -1e-4 and Im A = 0 at 0; B is not clipped."""
    torch.manual_seed(0)
    kernel = S4Kernel(512, init='fout', n_ssm=1, dt_min=0.1, dt_max=1.0)
    dt = kernel.log_dt.exp()
    assert 0.1 <= dt.min() < 0.12
    assert 0.85 < dt.max() <= 1.0
    torch.testing.assert_close(kernel.log_A_real.exp(), torch.full((1, 32), 1e-4))
    assert kernel.A_imag.min() == 0
    assert S4Kernel(2, init='legs').B[..., 1].abs().max() > 40


@pytest.mark.parametrize('name', KERNELS)
def test_dtype_follows_and_meta_builds(name: str) -> None:
    kernel = build(name, {}, dtype=torch.float32)
    assert kernel(5).dtype == torch.float32
    assert kernel.to(torch.bfloat16)(5).dtype == torch.float32
    assert kernel.double()(5).dtype == torch.float64
    assert all(not p.is_complex() for p in kernel.parameters())
    meta = make_kernel(name, 6, device='meta')
    assert meta(5).shape == (1, 6, 5)
    meta.to_empty(device='cpu').reset_parameters()
    assert meta(5).isfinite().all()


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: make_kernel('s5', 4), "unknown kernel 's5'.*s4d, s4"),
    (lambda: make_kernel('s4d', 4, init='legt'), "unknown init 'legt' for kernel 's4d'.*lin"),
    (lambda: make_kernel('s4', 4, init='lin'), "unknown init 'lin' for kernel 's4'.*legs"),
    (lambda: make_kernel('s4d', 4, n_ssm=3), 'n_ssm=3 and d_model=4'),
    (lambda: make_kernel('s4d', 0), 'd_model.*0'),
    (lambda: make_kernel('s4d', 4, channels=0), 'channels.*0'),
    (lambda: make_kernel('s4d', 4, d_state=5), 'd_state.*5'),
    (lambda: make_kernel('s4d', 4, dt_min=-0.1), 'dt_min=-0.1'),
    (lambda: make_kernel('s4', 4, dt_min=0.2, dt_max=0.1), 'dt_min=0.2 and dt_max=0.1'),
    (lambda: make_kernel('s4d', 4, bandlimit=0.0), 'bandlimit.*0.0'),
    (lambda: make_kernel('s4d', 4, options={'discretization': 'euler'}), "'euler'.*zoh, bilinear"),
    (lambda: make_kernel('s4d', 4, options={'rank': 2}), "no option.*rank.*discretization"),
    (lambda: make_kernel('s4', 4, init='legt', options={'rank': 1}), "'legt' needs rank 2.*1"),
    (lambda: make_kernel('s4', 3, init='hippo', n_ssm=3), "'hippo' mixes 2.*3"),
    (lambda: make_kernel('s4d', 4)(0), 'length.*0'),
    (lambda: make_kernel('s4d', 4)(8, 0.0), 'step.*0.0'),
    (lambda: make_kernel('s4', 4)(8, float('nan')), 'step.*nan'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
