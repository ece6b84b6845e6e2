"""The unconstrained kernel of the first S4: against dense matrices, and its start against the stable form."""

import torch
from torch import Tensor

from s4nd.kernels import NPLRKernel, S4Kernel
from s4nd.layers import S4

DOUBLE = torch.float64


def dense_taps(kernel: NPLRKernel, length: int, step: float) -> Tensor:
    """2 Re C Āˡ B̄ over both of each conjugate pair, by powers of matrices."""
    H = kernel.d_model
    rows = torch.arange(H) % kernel.n_ssm
    complex_of = torch.view_as_complex
    A = torch.complex(kernel.A_real, -kernel.A_imag)[rows]  # (H, n)
    A = torch.diag_embed(torch.cat([A, A.conj()], -1))
    P, Q = (complex_of(t.detach()) for t in (kernel.P, kernel.Q))
    for p, q in zip(P, Q, strict=True):
        p, q = torch.cat([p, p.conj()], -1), torch.cat([q, q.conj()], -1)
        A = A - p[:, :, None] * q.conj()[:, None]
    half = kernel.log_dt.exp()[..., None] * step / 2 * A
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    bar = torch.linalg.solve(eye - half, eye + half)
    B = complex_of(kernel.B.detach())
    x = kernel.log_dt.exp() * step * torch.linalg.solve(eye - half, torch.cat([B, B.conj()], -1)[..., None])[..., 0]
    C = complex_of(kernel.C.detach())
    C, taps = torch.cat([C, C.conj()], -1), []
    for _ in range(length):
        taps.append((C * x).sum(-1).real)
        x = (bar @ x[..., None])[..., 0]
    return torch.stack(taps, -1)


@torch.no_grad()
def test_taps_equal_dense_powers() -> None:
    torch.manual_seed(0)
    kernel = NPLRKernel(4, channels=2, d_state=8, n_ssm=2, dt_min=0.05, dt_max=0.2, dtype=DOUBLE)
    kernel.Q.add_(0.2 * torch.randn_like(kernel.Q))
    kernel.P.add_(0.2 * torch.randn_like(kernel.P))
    kernel.A_real.add_(0.3 * torch.rand_like(kernel.A_real))
    for length, step in ((30, 1.0), (200, 0.5)):
        torch.testing.assert_close(kernel(length, step), dense_taps(kernel, length, step), atol=1e-11, rtol=1e-11)


@torch.no_grad()
def test_it_streams() -> None:
    torch.manual_seed(0)
    layer = S4(4, kernel='nplr', d_state=8, dtype=DOUBLE)
    layer.kernels[0].Q.add_(0.1 * torch.randn_like(layer.kernels[0].Q))
    x, state, outputs = torch.randn(2, 4, 20, dtype=DOUBLE), layer.init_state(2), []
    for sample in x.unbind(-1):
        y, state = layer.step(sample, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, -1), layer(x), atol=1e-10, rtol=0)


def test_it_starts_as_s4() -> None:
    kernels = []
    for cls in (NPLRKernel, S4Kernel):
        torch.manual_seed(0)
        kernels.append(cls(4, d_state=8, init='hippo', dtype=DOUBLE))
    torch.testing.assert_close(kernels[0](20), kernels[1](20), atol=1e-12, rtol=0)
    kernels[0].reset_parameters()
    assert torch.equal(kernels[0].Q, kernels[0].P)
