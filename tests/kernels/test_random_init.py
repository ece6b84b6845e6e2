"""S4D with a random diagonal: drawn anew, decaying, B = 1, and used like the others."""

import pytest
import torch

from s4nd.kernels import make_kernel


@pytest.mark.parametrize('discretization', ['zoh', 'bilinear'])
def test_random_init(discretization: str) -> None:
    torch.manual_seed(0)
    args = {'n_ssm': 2, 'discretization': discretization}
    kernels = [make_kernel('s4d', 4, d_state=4000, init='random', args=args) for _ in range(2)]
    assert (kernels[0].A_imag != kernels[1].A_imag).all() and (kernels[0].A_imag[0] != kernels[0].A_imag[1]).all()
    for kernel in kernels:
        real, imag = -kernel.log_A_real.exp(), kernel.A_imag
        assert abs(imag.mean()) < 0.1 and abs(imag.std() - 1) < 0.1
        assert abs(real.square().mean() - 1) < 0.1 and (real < 0).all()
        assert torch.equal(kernel.B, torch.tensor([1.0, 0.0]).expand(2, 2000, 2))
        assert kernel(100).isfinite().all()
