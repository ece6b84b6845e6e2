"""Kernels against the oracles: steps, lengths, gradients, recurrence, bandlimit, dtypes, bad input."""

import copy

import pytest
import torch
from torch import Tensor

from s4nd import S4
from s4nd.kernels import (
    KERNELS,
    CKConvKernel,
    DSSExpKernel,
    DSSSoftmaxKernel,
    EMAKernel,
    Kernel,
    LMUKernel,
    LSSLKernel,
    RecurrentKernel,
    S4DKernel,
    S4Kernel,
    SGConvKernel,
    make_kernel,
)
from s4nd.kernels.ckconv import SIREN
from s4nd.ops import lowrank
from tests import oracles

STEPS = [1 / 3, 0.5, 1.0, 1.5, 2.0]
EVERY = [
    ('s4d', {'init': 'lin'}),
    ('s4d', {'init': 'inv'}),
    ('s4d', {'init': 'legs'}),
    ('s4d', {'init': 'real'}),
    ('s4d', {'init': 'lin', 'args': {'discretization': 'bilinear'}}),
    ('s4d', {'init': 'lin', 'args': {'n_ssm': 3, 'dt_tied': False}}),
    ('s4', {'init': 'legs'}),
    ('s4', {'init': 'legt'}),
    ('s4', {'init': 'fout'}),
    ('s4', {'init': 'hippo', 'args': {'n_ssm': 2}}),
    ('s4', {'init': 'legs', 'args': {'rank': 3}}),
    ('dss-exp', {}),
    ('dss-exp', {'args': {'n_ssm': 3}}),
    ('dss-softmax', {'args': {'n_ssm': 2}}),
    ('lmu', {'args': {'theta': 12.5}}),
    ('lssl', {}),
    ('lssl', {'init': 'legt', 'args': {'n_ssm': 2}}),
    ('ema', {}),
    ('sgconv', {'d_state': 3}),
    ('sgconv', {'d_state': 64}),
    ('ckconv', {'args': {'hidden': 5}}),
    ('ckconv', {'args': {'network': 'siren', 'mask': False}}),
]


def ids(cases: list[tuple[str, dict]]) -> list[str]:
    return ['-'.join([name, *map(str, options.values())]) for name, options in cases]


IDS = ids(EVERY)
DPLR = [case for case in EVERY if case[0] == 's4']
RECURRENT = [case for case in EVERY if issubclass(KERNELS[case[0]], RecurrentKernel)]


def build(name: str, options: dict, **more: object) -> Kernel:
    torch.manual_seed(0)
    defaults = {'channels': 2, 'd_state': 8, 'dt_min': 0.01, 'dt_max': 0.5, 'length': 20, 'dtype': torch.float64}
    kernel = make_kernel(name, 6, **{**defaults, **options, **more})
    if isinstance(kernel, DSSSoftmaxKernel):
        # Both signs of Re Λ; ε is met in test_dss.py.
        kernel.epsilon = 0.0
        with torch.no_grad():
            kernel.A_real[..., ::2] *= -1
    return kernel


def complex_(pair: Tensor) -> Tensor:
    return torch.view_as_complex(pair.contiguous())


def oracle(kernel: Kernel, length: int, step: float) -> Tensor:
    """The same taps from the definitions, differentiable in the kernel's parameters."""
    if isinstance(kernel, EMAKernel):
        p = torch.sigmoid(kernel.alpha)
        q = 1 - p * torch.sigmoid(kernel.delta)
        return oracles.ema_taps(p, q, kernel.beta, kernel.gamma, length, step)
    if isinstance(kernel, SGConvKernel):
        return oracles.sgconv_taps(kernel.weight, length, step) / kernel.norm
    if isinstance(kernel, CKConvKernel):
        return coordinate_taps(kernel, length, step)
    if isinstance(kernel, LMUKernel):
        return oracles.zoh_taps(step / kernel.theta, *oracles.lmu_matrices(kernel.d_state), kernel.C, length)
    H = kernel.d_model
    rows = torch.arange(H) % kernel.n_ssm
    dt = kernel.log_dt.exp() * step
    if isinstance(kernel, S4DKernel):
        imag = torch.zeros_like(kernel.log_A_real) if kernel.A_imag is None else kernel.A_imag
        A = torch.complex(-kernel.log_A_real.exp(), -imag)[rows]
        B, C = (kernel.B, kernel.C) if kernel.is_real else (complex_(kernel.B), complex_(kernel.C))
        return oracles.diagonal_taps(dt, A, B[rows], C, length, kernel.discretization)
    if isinstance(kernel, (DSSExpKernel, DSSSoftmaxKernel)):
        softmax = isinstance(kernel, DSSSoftmaxKernel)
        A = torch.complex(kernel.A_real if softmax else -kernel.log_A_real.exp(), -kernel.A_imag)[rows]
        window = kernel.length if softmax else None
        return oracles.dss_taps(dt / step, A, complex_(kernel.C), length, step, window)
    if isinstance(kernel, LSSLKernel):
        systems = [(dt[h], kernel.A[h % kernel.n_ssm], kernel.B[h % kernel.n_ssm], kernel.C[:, h]) for h in range(H)]
        return torch.stack([oracles.bilinear_taps(*system, length) for system in systems], 1)
    w = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)
    B, C, P = complex_(kernel.B), complex_(kernel.C), complex_(kernel.P)
    taps = []
    for h in range(H):
        s = h % kernel.n_ssm
        taps.append(oracles.bilinear_taps(dt[h], *oracles.dplr_matrices(w[s], P[:, s], B[s], C[:, h]), length))
    return torch.stack(taps, 1)


def coordinate_taps(kernel: CKConvKernel, length: int, step: float) -> Tensor:
    """The network of a CKConv kernel at one coordinate after the other, times mask and step."""
    network, taps = kernel.network, []
    names = ('first', 'second', 'out') if isinstance(network, SIREN) else ('second', 'third', 'out')
    layers = [(getattr(network, name).weight, getattr(network, name).bias) for name in names]
    for lag in range(length):
        t = (lag + 0.5) * step / kernel.length
        x = torch.tensor([2 * t - 1], dtype=torch.float64)
        if isinstance(network, SIREN):
            value = oracles.siren(x, layers, network.omega_0)
        else:
            value = oracles.magnet(x, [(g.gamma, g.mu, g.weight, g.bias) for g in network.filters], layers)
        value = value.reshape(kernel.channels, -1) * step / kernel.length * (t < 1) / kernel.norm
        if kernel.log_width is not None:
            value = value * torch.exp(-0.5 * (2 * t / kernel.log_width[..., 0].exp()) ** 2)
        taps.append(value)
    return torch.stack(taps, -1)


def check_taps(kernel: Kernel, lengths: tuple[int, ...] = (1, 2, 7, 33)) -> None:
    for step in STEPS:
        true = oracle(kernel, max(lengths), step)
        for length in lengths:
            torch.testing.assert_close(kernel(length, step), true[..., :length], atol=1e-10, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_taps_are_exact_at_every_step(name: str, options: dict) -> None:
    kernel = build(name, options)
    check_taps(kernel)
    true = oracle(kernel, 33, 1.0)
    for length in range(1, 34):
        torch.testing.assert_close(kernel(length), true[..., :length], atol=1e-10, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_long_taps(name: str, options: dict) -> None:
    kernel = build(name, options, length=1000)
    with torch.no_grad():
        torch.testing.assert_close(kernel(1500, 0.7), oracle(kernel, 1500, 0.7), atol=1e-9, rtol=0)


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_gradients(name: str, options: dict) -> None:
    check_gradients(build(name, options))


@pytest.mark.parametrize(('name', 'options'), DPLR, ids=ids(DPLR))
def test_dplr_by_squaring(name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short DPLR kernels are computed by stepping; long ones like this."""
    monkeypatch.setattr(lowrank, 'STEPWISE_UP_TO', 0)
    kernel = build(name, options)
    check_taps(kernel)
    check_gradients(kernel)


def check_gradients(kernel: Kernel) -> None:
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


@pytest.mark.parametrize(('name', 'options'), RECURRENT, ids=ids(RECURRENT))
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


@pytest.mark.parametrize(('name', 'init'), [
    ('s4d', 'lin'), ('s4d', 'legs'), ('s4', 'legs'), ('s4', 'fout'), ('dss-exp', None), ('lmu', None), ('lssl', 'legs'),
    ('lssl', 'fout'), ('ema', None)])  # fmt: skip
def test_float32_steps_stay_with_the_convolution(name: str, init: str) -> None:
    torch.manual_seed(0)
    kernel = make_kernel(name, 2, d_state=64, init=init)
    y, impulse = [], torch.ones(1, 2)
    with torch.no_grad():
        taps, system, x = kernel(1500), kernel.system(), kernel.init_state(1)['x']
        for _ in range(1500):
            y_k, x = kernel.advance(impulse, x, system)
            y.append(y_k[0, 0])
            impulse = torch.zeros(1, 2)
    assert (torch.stack(y, -1) - taps[0]).abs().max() < 1e-4 * max(1.0, taps.abs().max().item())


@pytest.mark.parametrize('name', ['s4d', 's4', 'dss-exp', 'dss-softmax'])
@pytest.mark.parametrize('n_ssm', [1, 2, 3, 6])
def test_bandlimit_masks_the_true_C(name: str, n_ssm: int) -> None:
    options = {'args': {'n_ssm': n_ssm}, 'dt_min': 0.3, 'dt_max': 1.0}
    limited, free = build(name, options, bandlimit=0.5), build(name, options)
    free.load_state_dict(limited.state_dict())
    rows = torch.arange(6) % n_ssm
    frequency = limited.log_dt.exp() * limited.A_imag[rows].abs() / (2 * torch.pi)
    keep = frequency < 0.25
    assert keep.any()
    assert not keep.all()
    with torch.no_grad():
        free.C.mul_(keep[..., None])
    for step in (0.5, 1.0, 2.0):
        torch.testing.assert_close(limited(8, step), free(8, step), atol=1e-12, rtol=0)


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
    meta = make_kernel(name, 6, length=20, device='meta')
    assert meta(5).shape == (1, 6, 5)
    meta.to_empty(device='cpu').reset_parameters()
    assert meta(5).isfinite().all()


@pytest.mark.parametrize('name', KERNELS)
def test_torchscript(name: str) -> None:
    kernel = build(name, {}, dtype=torch.float32)
    scripted = torch.jit.script(kernel)
    for length, step in ((5, 1.0), (33, 0.5)):
        torch.testing.assert_close(scripted(length, step), kernel(length, step), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('name', [name for name, kernel in KERNELS.items() if not issubclass(kernel, RecurrentKernel)])
def test_a_causal_layer_needs_a_recurrence(name: str) -> None:
    with pytest.raises(ValueError, match=f"kernel '{name}' has no recurrence"):
        S4(6, kernel=name, kernel_args={'length': 20})
    assert S4(6, kernel=name, kernel_args={'length': 20}, bidirectional=True)(torch.randn(1, 6, 20)).isfinite().all()


@pytest.mark.parametrize(('name', 'options'), EVERY, ids=IDS)
def test_second_derivatives(name: str, options: dict) -> None:
    kernel = build(name, options, channels=1, d_state=4)
    names = [key for key, _ in kernel.named_parameters()]

    def taps(*values: Tensor) -> Tensor:
        return torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (5, 0.7, True))

    inputs = tuple(p.detach().clone().requires_grad_() for p in kernel.parameters())
    assert torch.autograd.gradgradcheck(taps, inputs, atol=1e-4)


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: make_kernel('s5', 4), "unknown kernel 's5'.*s4d, s4"),
    (lambda: make_kernel('s4d', 4, init='legt'), "unknown init 'legt' for kernel 's4d'.*lin"),
    (lambda: make_kernel('s4', 4, init='lin'), "unknown init 'lin' for kernel 's4'.*legs"),
    (lambda: make_kernel('s4d', 4, args={'n_ssm': 3}), 'n_ssm=3 and d_model=4'),
    (lambda: make_kernel('s4d', 0), 'd_model.*0'),
    (lambda: make_kernel('s4d', 4, channels=0), 'channels.*0'),
    (lambda: make_kernel('s4d', 4, d_state=5), 'd_state.*5'),
    (lambda: make_kernel('s4d', 4, dt_min=-0.1), 'dt_min=-0.1'),
    (lambda: make_kernel('s4', 4, dt_min=0.2, dt_max=0.1), 'dt_min=0.2 and dt_max=0.1'),
    (lambda: make_kernel('s4d', 4, bandlimit=0.0), 'bandlimit.*0.0'),
    (lambda: make_kernel('s4d', 4, args={'discretization': 'euler'}), "'euler'.*zoh, bilinear"),
    (lambda: make_kernel('s4d', 4, args={'rank': 2}), "no option.*rank.*discretization"),
    (lambda: make_kernel('s4', 4, init='legt', args={'rank': 1}), "'legt' needs rank 2.*1"),
    (lambda: make_kernel('s4', 3, init='hippo', args={'n_ssm': 3}), "'hippo' mixes 2.*3"),
    (lambda: make_kernel('lssl', 4, init='lin'), "unknown init 'lin' for kernel 'lssl'.*legs"),
    (lambda: make_kernel('lssl', 4, bandlimit=0.5), "'lssl' has no bandlimit.*0.5"),
    (lambda: make_kernel('ema', 4, args={'n_ssm': 2}), "'ema' has no option.*n_ssm"),
    (lambda: make_kernel('ema', 4, d_state=0), 'd_state.*0'),
    (lambda: make_kernel('lmu', 4, args={'theta': -1.0}), 'theta.*-1.0'),
    (lambda: make_kernel('lmu', 4, d_state=0), 'd_state.*0'),
    (lambda: make_kernel('dss-exp', 4, init='lin'), "'dss-exp' has no init.*'lin'"),
    (lambda: make_kernel('dss-exp', 4, d_state=2), 'd_state.*2'),
    (lambda: make_kernel('dss-softmax', 4), "'dss-softmax' spans its axis and needs its length"),
    (lambda: make_kernel('sgconv', 4), "'sgconv' spans its axis and needs its length"),
    (lambda: make_kernel('sgconv', 4, length=0.5), "'sgconv' needs an axis of at least 1.*0.5"),
    (lambda: make_kernel('sgconv', 4, d_state=0, length=8), 'd_state.*0'),
    (lambda: make_kernel('ckconv', 4), "'ckconv' spans its axis and needs its length"),
    (lambda: make_kernel('ckconv', 4, length=1), "'ckconv' needs an axis of at least 2.*1"),
    (lambda: make_kernel('ckconv', 4, length=8, args={'network': 'mlp'}), "'mlp'.*magnet, siren"),
    (lambda: make_kernel('ckconv', 4, length=8, args={'hidden': 0}), 'hidden.*0'),
    (lambda: make_kernel('s4d', 4, args={'length': 8}), r"no option \['length'\]"),
    (lambda: make_kernel('s4d', 4)(0), 'length.*0'),
    (lambda: make_kernel('s4d', 4)(8, 0.0), 'step.*0.0'),
    (lambda: make_kernel('s4', 4)(8, float('nan')), 'step.*nan'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
