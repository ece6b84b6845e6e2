"""Forms of kernels beyond the defaults: untied and split timescales, free real parts, random and mixed inits."""

import pytest
import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels import DSSExpKernel, DSSSoftmaxKernel, Kernel, S4DKernel, S4Kernel, make_kernel
from tests import oracles

DOUBLE = torch.float64


def spread(kernel: Kernel, width: int) -> Kernel:
    """With timescales that differ from each other."""
    torch.manual_seed(1)
    with torch.no_grad():
        kernel.log_dt.copy_(torch.randn(kernel.d_model, width, dtype=DOUBLE) * 0.4 - 1)
    return kernel


def check_recurrence(kernel: Kernel, step: float = 1.0) -> None:
    """Stepping an impulse gives the taps."""
    taps, system = kernel(12, step), kernel.system(step)
    x, u = kernel.init_state(1)['x'], torch.ones(1, kernel.d_model, dtype=DOUBLE)
    for lag in range(12):
        y, x = kernel.advance(u, x, system)
        torch.testing.assert_close(y[0], taps[..., lag], atol=1e-10, rtol=0)
        u = torch.zeros_like(u)


@pytest.mark.parametrize('rank', [1, 2])
@pytest.mark.parametrize('length', [9, 200])
def test_s4_with_a_timescale_per_mode(rank: int, length: int) -> None:
    """A and B are diag(dt) A and diag(dt) B, of the dense system over conjugate pairs."""
    torch.manual_seed(0)
    kernel = spread(S4Kernel(3, d_state=6, rank=rank, dt_tied=False, channels=2, dtype=DOUBLE), 3)
    w = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)[0]
    P, B, C = (torch.view_as_complex(p) for p in (kernel.P, kernel.B, kernel.C))
    for step in (1.0, 0.5):
        for h in range(3):
            A, b, c = oracles.dplr_matrices(w, P[:, 0], B[0], C[:, h])
            dt = kernel.log_dt[h].exp().repeat(2) * step
            true = oracles.bilinear_taps(1.0, dt[:, None] * A, dt * b, c, length)
            torch.testing.assert_close(kernel(length, step)[:, h], true, atol=1e-10, rtol=0)
        check_recurrence(kernel, step)
    tied = S4Kernel(3, d_state=6, rank=rank, channels=2, dtype=DOUBLE)
    same = S4Kernel(3, d_state=6, rank=rank, channels=2, dt_tied=False, dtype=DOUBLE)
    state = tied.state_dict()
    same.load_state_dict({**state, 'log_dt': state['log_dt'].expand(-1, 3)})
    torch.testing.assert_close(same(9), tied(9), atol=1e-12, rtol=0)


@pytest.mark.parametrize('name', ['s4', 's4d', 'dss-exp'])
@pytest.mark.parametrize('real', ['free', 'clip'])
def test_real_parts(name: str, real: str) -> None:
    """The same function where they decay; 'free' may grow, 'clip' not above 1e-4; parameters learn."""
    torch.manual_seed(0)
    usual = make_kernel(name, 2, d_state=8, dt_min=0.05, dtype=DOUBLE)
    kernel = make_kernel(name, 2, d_state=8, dt_min=0.05, args={'real': real}, dtype=DOUBLE)
    assert 'A_real' in dict(kernel.named_parameters()) and 'log_A_real' not in dict(kernel.named_parameters())
    state = usual.state_dict()
    decay = -state.pop('log_A_real').exp()
    kernel.load_state_dict({**state, 'A_real': decay})
    torch.testing.assert_close(kernel(20), usual(20), atol=1e-12, rtol=0)
    check_recurrence(kernel)
    kernel(20).square().sum().backward()
    assert kernel.A_real.grad.abs().min() > 0
    with torch.no_grad():
        kernel.A_real.fill_(3.0)
    assert (kernel(400).abs().max() > 1e3) == (real == 'free')
    scripted = torch.jit.script(kernel)
    torch.testing.assert_close(scripted(9), kernel(9), atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match="unknown real 'none': expected one of exp, free, clip"):
        make_kernel(name, 2, args={'real': 'none'})


def test_random_systems() -> None:
    """Normal plus low rank: Re = -1/2, frequencies of a skew matrix of unit scale; another draw each time."""
    torch.manual_seed(0)
    w, P, B = hippo.random_nplr(256)
    assert w.shape == B.shape == (128,) and P.shape == (1, 128)
    assert (w.real == -0.5).all() and (w.imag < 0).all()
    assert abs(w.imag.min() + 2.0) < 0.2  # the semicircle law: frequencies up to 2
    assert abs(P.abs().square().mean() - 1) < 0.3
    kernel = S4Kernel(4, init='random', n_ssm=2, d_state=8, dtype=DOUBLE)
    torch.testing.assert_close(kernel.real_part(), torch.full((2, 4), -0.5, dtype=DOUBLE))
    before = kernel.A_imag.clone()
    kernel.reset_parameters()
    assert not torch.equal(before, kernel.A_imag)
    check_recurrence(kernel)


def test_inv_and_lin_in_turn() -> None:
    kernel = S4DKernel(6, d_state=8, init='inv+lin', dtype=DOUBLE)
    assert kernel.n_ssm == 2
    for row, init in enumerate(('inv', 'lin')):
        A, _ = hippo.diagonal(init, 4)
        torch.testing.assert_close(-kernel.A_imag[row].detach(), A.imag)
    assert S4DKernel(6, d_state=8, init='inv+lin', n_ssm=6).A_imag.shape == (6, 4)
    with pytest.raises(ValueError, match=r"'inv\+lin' mixes 2 spectra, which must divide n_ssm, got 3"):
        S4DKernel(6, init='inv+lin', n_ssm=3)


def dss_spectrum(kernel: DSSExpKernel) -> tuple[Tensor, Tensor]:
    """Λ (n,) and z (H, n) at step 1."""
    re, im = kernel.real_part()[0], -kernel.A_imag[0]
    dt = kernel.log_dt.exp()
    return torch.complex(re, im), torch.complex(dt[:, :1] * re, dt[:, -1:] * im)


@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize('dt_split', [True, False])
def test_versions_of_dss_exp(scaled: bool, dt_split: bool) -> None:
    kernel = DSSExpKernel(3, channels=2, d_state=8, scaled=scaled, dt_split=dt_split, dtype=DOUBLE)
    kernel = spread(kernel, 2 if dt_split else 1)
    (Lambda, z), C = dss_spectrum(kernel), torch.view_as_complex(kernel.C)
    weight = C * (torch.exp(z) - 1) / Lambda if scaled else C
    true = torch.stack([(weight * torch.exp(z * lag)).sum(-1).real for lag in range(11)], -1)
    torch.testing.assert_close(kernel(11), true, atol=1e-12, rtol=0)
    check_recurrence(kernel, 0.5)
    # At half the step two taps are one, for an input that is held.
    pairs = kernel(22, 0.5).unflatten(-1, (11, 2))
    torch.testing.assert_close(pairs[..., 0] + pairs[..., 1], true, atol=1e-10, rtol=0)


def test_dss_softmax_with_two_timescales() -> None:
    kernel = spread(DSSSoftmaxKernel(2, d_state=8, length=15, dt_split=True, dtype=DOUBLE), 2)
    kernel.epsilon = 0.0
    re, im, dt = kernel.A_real[0], -kernel.A_imag[0], kernel.log_dt.exp()
    Lambda, z = torch.complex(re, im), torch.complex(dt[:, :1] * re, dt[:, 1:] * im)
    weight = torch.view_as_complex(kernel.C) * (torch.exp(z) - 1) / Lambda / (torch.exp(15 * z) - 1)
    true = torch.stack([(weight * torch.exp(z * lag)).sum(-1).real for lag in range(15)], -1)
    torch.testing.assert_close(kernel(15), true, atol=1e-12, rtol=0)


def test_the_bandlimit_of_a_split_timescale_is_that_of_im() -> None:
    kernel = spread(DSSExpKernel(3, d_state=8, dt_split=True, bandlimit=0.3, dtype=DOUBLE), 2)
    free = DSSExpKernel(3, d_state=8, dt_split=True, dtype=DOUBLE)
    free.load_state_dict(kernel.state_dict())
    cycles = kernel.log_dt[:, 1:].exp() * kernel.A_imag.abs() / (2 * torch.pi)
    assert 0 < (cycles >= 0.15).sum() < cycles.numel()
    with torch.no_grad():
        free.C[:, cycles >= 0.15] = 0
    torch.testing.assert_close(kernel(9), free(9), atol=1e-13, rtol=0)
