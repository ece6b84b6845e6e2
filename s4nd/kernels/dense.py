"""What kernels with a dense state matrix share: taps C Āˡ B̄, and the step in the full state.

Shape legend: see base.py; here the state is real, S' is 1 or H: the number of distinct discretized systems.
"""

import torch
from torch import Tensor

from s4nd.kernels.base import SSMKernel, check_length_and_step, eager, wide
from s4nd.ops.krylov import krylov, plain_krylov


class DenseKernel(SSMKernel):
    """K[l] = C Āˡ B̄ with full matrices. A subclass has C (c, H, N) and gives `_discretize` and `_readout`."""

    C: Tensor

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        """Taps (channels, d_model, length) at spacing `step`; raises ValueError unless length >= 1 and step > 0."""
        check_length_and_step(length, step)
        A, B = self._discretize(step)
        C = self._readout().reshape(-1, A.shape[0], self.d_state)  # (c·H/S', S', N): feature h uses system h % S'
        taps = krylov_taps(A, B, C, length)
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return taps.reshape(self.channels, self.d_model, length).to(dtype)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """{'x': (B, H, N)}."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return {'x': torch.zeros(batch, self.d_model, self.d_state, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The one-step form [Ā - I, B̄, C], for `advance`."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        A, B = self._discretize(step)
        # What a step adds to the state is small where windows are long, and would be lost in float32 beside the 1 of Ā.
        change = A - torch.eye(self.d_state, device=A.device, dtype=A.dtype)
        return [t.to(dtype) for t in [change, B, self._readout()]]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = Ā x_{k-1} + B̄ u_k, y_k = C x_k: u (B, H), x (B, H, N) -> y (B, c, H), new x."""
        change, B, C = system
        x = x + ((change * x[:, :, None]).sum(-1) + B * u.to(x.dtype)[..., None])
        return (C * x[:, None]).sum(-1), x

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `Kernel.response`; x (H, N)."""
        A, _ = self._discretize(step)
        A = A.repeat(self.d_model // A.shape[0], 1, 1)
        taps = krylov_taps(A, wide(x), self._readout(), length)
        return taps.to(torch.promote_types(self.C.dtype, torch.float32))

    def _discretize(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā (S', N, N) and B̄ (S', N) at `step`, float64."""
        raise NotImplementedError

    def _readout(self) -> Tensor:
        """C (c, H, N) as it is applied, float64."""
        raise NotImplementedError


def krylov_taps(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """C Aˡ B for l = 0 … length - 1, by the path that the device and the compiler can take (ops/krylov.py)."""
    if torch.jit.is_scripting() or not eager(C):
        return plain_krylov(A, B, C, length)
    return krylov(A, B, C, length)
