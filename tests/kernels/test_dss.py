"""DSS: the golden cases, both signs of Re Λ, the window of the softmax, the published initialization."""

import math

import pytest
import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels import DSSExpKernel, DSSSoftmaxKernel, make_kernel
from tests.golden_cases import load, tensor

GOLDEN = {name: case for name, case in load('kernels_diag').items() if case['meta']['disc'] == 'dss'}


def golden_kernel(case: dict, dtype: torch.dtype) -> DSSSoftmaxKernel:
    """The published kernel: its C·B is our C, its L samples at `rate` are a length of L·rate."""
    meta = case['meta']
    kernel = DSSSoftmaxKernel(
        meta['H'], d_state=meta['N'], n_ssm=meta['n_ssm'], length=meta['L'] * meta['rate'], dtype=dtype
    )
    A = torch.from_numpy(case['A'])
    with torch.no_grad():
        kernel.log_dt.copy_(torch.from_numpy(case['dt']).log())
        kernel.A_real.copy_(A.real)
        kernel.A_imag.copy_(-A.imag)
        kernel.C.copy_(tensor(case['C'] * case['B']))
    return kernel


@pytest.mark.parametrize('name', GOLDEN)
def test_golden(name: str) -> None:
    case = GOLDEN[name]
    meta = case['meta']
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-6)):
        kernel = golden_kernel(case, dtype)
        taps = kernel(meta['L'], meta['rate'])
        torch.testing.assert_close(taps.double(), tensor(case['K_true']), atol=tolerance, rtol=0)
        kernel.epsilon = 0.0
        taps = kernel(meta['L'], meta['rate'])
        torch.testing.assert_close(taps.double(), tensor(case['K_true_noeps']), atol=tolerance, rtol=0)


def test_golden_cases_hold_both_signs() -> None:
    if not GOLDEN:
        pytest.skip('the folder of golden files holds no dss case')
    assert any((case['A'].real > 0).any() and (case['A'].real < 0).any() for case in GOLDEN.values())


@pytest.mark.parametrize('step', [1.0, 0.5])
def test_both_signs_are_stable_over_a_long_axis(step: float) -> None:
    """100 k samples, where e^{Re Λ dt L} is e^{±5000}: finite, with finite gradients, and as large as it should be."""
    length = 100_000
    kernel = DSSSoftmaxKernel(2, d_state=8, dt_min=0.1, dt_max=0.1, length=length)
    with torch.no_grad():
        kernel.A_real.copy_(torch.tensor([[-0.5, 0.5, 1e-3, -1e-3]]))
    taps = kernel(int(length / step), step)
    assert taps.isfinite().all()
    for gradient in torch.autograd.grad(taps.square().sum(), list(kernel.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
    # A decaying mode lives at the beginning, a growing one at the end.
    for mode, place in ((0, slice(0, 2000)), (1, slice(-2000, None))):
        with torch.no_grad():
            kernel.C.zero_()
            kernel.C[:, :, mode] = 1.0
            alone = kernel(int(length / step), step)
        assert alone[..., place].square().sum() > 0.999 * alone.square().sum() > 0


def test_the_two_forms_agree_up_to_the_normalization() -> None:
    """With w divided by e^{Λ dt L} - 1 the exponential form is the softmax form."""
    softmax = make_kernel('dss-softmax', 2, d_state=4, length=40, args={'n_ssm': 2}, dt_min=0.1, dtype=torch.float64)
    plain = make_kernel('dss-exp', 2, d_state=4, args={'n_ssm': 2}, dt_min=0.1, dtype=torch.float64)
    softmax.epsilon = 0.0
    A = torch.complex(softmax.A_real, -softmax.A_imag)
    with torch.no_grad():
        plain.log_dt.copy_(softmax.log_dt)
        plain.A_imag.copy_(softmax.A_imag)
        weight = torch.view_as_complex(softmax.C) / (torch.exp(A * softmax.log_dt.exp() * 40) - 1)
        plain.C.copy_(torch.view_as_real(weight))
    torch.testing.assert_close(softmax(40), plain(40), atol=1e-12, rtol=0)


def test_softmax_is_normalized_over_its_axis_whatever_is_asked() -> None:
    """The taps of other lengths are the same taps; there are none after the window; a finer grid sums to the same."""
    kernel = make_kernel('dss-softmax', 3, d_state=8, length=16, dt_min=0.01, dtype=torch.float64)
    whole = kernel(16)
    torch.testing.assert_close(kernel(5), whole[..., :5], atol=1e-13, rtol=0)
    torch.testing.assert_close(kernel(40)[..., :16], whole, atol=1e-13, rtol=0)
    assert kernel(40)[..., 16:].abs().max() == 0
    fine = kernel(64, 0.25).unflatten(-1, (16, 4)).sum(-1)
    torch.testing.assert_close(fine, whole, atol=1e-12, rtol=0)


def test_no_factor_two() -> None:
    kernel = DSSExpKernel(1, d_state=4, dt_min=0.2, dt_max=0.2, dtype=torch.float64)
    A = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)[0]
    first = (torch.view_as_complex(kernel.C[0, 0]) * (torch.exp(0.2 * A) - 1) / A).sum().real
    torch.testing.assert_close(kernel(1)[0, 0, 0], first, atol=1e-12, rtol=0)


def real_part(kernel: DSSExpKernel | DSSSoftmaxKernel) -> Tensor:
    return kernel.A_real if isinstance(kernel, DSSSoftmaxKernel) else -kernel.log_A_real.exp()


def test_softmax_refuses_a_step_beyond_its_axis() -> None:
    kernel = make_kernel('dss-softmax', 3, d_state=8, length=16)
    assert kernel(4, 16.0).isfinite().all()
    with pytest.raises(ValueError, match=r"'dss-softmax' is normalized over an axis of 16\.0 samples, .* 17\.0 apart"):
        kernel(4, 17.0)


@pytest.mark.parametrize('name', ['dss-exp', 'dss-softmax'])
def test_published_initialization(name: str) -> None:
    torch.manual_seed(0)
    kernel = make_kernel(name, 64, d_state=128, length=1024)
    w, *_ = hippo.nplr('legs', 128)
    torch.testing.assert_close(real_part(kernel), torch.full((1, 64), -0.5))
    torch.testing.assert_close(kernel.A_imag.double()[0], -w.imag, rtol=1e-6, atol=0)
    assert abs(kernel.C.std().item() - 1) < 0.05
    assert math.log(1e-3) <= kernel.log_dt.min() < kernel.log_dt.max() <= math.log(1e-1)
