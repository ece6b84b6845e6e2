"""LSSL: a trained dense A, its gradient by finite differences, HiPPO at the start."""

import pytest
import torch

from s4nd import hippo
from s4nd.kernels import LSSLKernel, S4Kernel
from s4nd.kernels.lssl import STRUCTURES
from tests import oracles

DOUBLE = torch.float64


def test_a_trained_matrix_equals_the_oracle() -> None:
    """Any A, not only HiPPO's; long enough for many squarings."""
    torch.manual_seed(0)
    kernel = LSSLKernel(2, d_state=4, dt_min=0.1, dt_max=0.2, dtype=DOUBLE)
    with torch.no_grad():
        kernel.A.add_(0.3 * torch.randn(1, 4, 4, dtype=DOUBLE))
    taps = kernel(600, 1.5)
    for h in range(2):
        dt = kernel.log_dt[h].exp() * 1.5
        true = oracles.bilinear_taps(dt, kernel.A[0], kernel.B[0], kernel.C[:, h], 600)
        torch.testing.assert_close(taps[:, h], true, atol=1e-10, rtol=0)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    kernel = LSSLKernel(2, d_state=4, dtype=DOUBLE)
    names = [name for name, _ in kernel.named_parameters()]
    assert names == ['log_dt', 'A', 'B', 'C']

    def taps(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (7, 0.5))

    assert torch.autograd.gradcheck(taps, tuple(p.detach().requires_grad_() for p in kernel.parameters()))


@pytest.mark.parametrize(('structure', 'measure'), [(s, m) for s, measures in STRUCTURES.items() for m in measures])
def test_every_structure_starts_at_hippo_and_learns(structure: str, measure: str) -> None:
    kernel = LSSLKernel(2, d_state=8, init=measure, structure=structure, dt_min=0.1, dtype=DOUBLE)
    for found, true in zip(kernel.transition(), hippo.transition(measure, 8), strict=True):
        torch.testing.assert_close(found[0].detach(), true, atol=1e-11, rtol=1e-11)
    names = [name for name, _ in kernel.named_parameters()]

    def taps(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (7, 0.5))

    values = tuple(p.detach().requires_grad_() for p in kernel.parameters())
    assert torch.autograd.gradcheck(taps, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(taps, values, fast_mode=True)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(taps(*values).square().sum(), values))
    scripted = torch.jit.script(kernel)
    torch.testing.assert_close(scripted(9, 0.5), kernel(9, 0.5), atol=1e-12, rtol=0)


def test_structures_refuse_other_measures() -> None:
    with pytest.raises(ValueError, match="'fout' for the structure 'tridiagonal': expected one of legs, legt, lagt"):
        LSSLKernel(2, d_state=4, init='fout', structure='tridiagonal')
    with pytest.raises(ValueError, match="unknown structure 'toeplitz'"):
        LSSLKernel(2, d_state=4, structure='toeplitz')


@pytest.mark.parametrize('measure', hippo.MEASURES)
def test_starts_as_the_dense_form_of_s4(measure: str) -> None:
    """The same A, B and readout in the diagonal-plus-low-rank form of S4 give the same taps."""
    dense = LSSLKernel(1, d_state=8, init=measure, dt_min=0.1, dt_max=0.1, dtype=DOUBLE)
    plus_low_rank = S4Kernel(1, d_state=8, init=measure, dt_min=0.1, dt_max=0.1, dtype=DOUBLE)
    _, _, _, V = hippo.nplr(measure, 8)
    with torch.no_grad():
        # C over x is C V over the modes; S4 takes twice the real part of one of each conjugate pair.
        plus_low_rank.C.copy_(torch.view_as_real(dense.C[0, 0].to(V) @ V)[None, None])
    # S4 starts with Re Λ = -1e-4 where the measure has 0.
    torch.testing.assert_close(dense(30), plus_low_rank(30), atol=1e-9 if measure == 'legs' else 2e-3, rtol=0)
