"""What kernels with a dense state matrix share: taps C Āˡ B̄, and the step in the full state.

Shape legend: see base.py; here the state is real, S' is 1 or H: the number of distinct discretized systems.
"""

import torch
from torch import Tensor, nn

from s4nd.kernels.base import RecurrentKernel
from s4nd.ops import at_least_float32, krylov, wide


class DenseKernel(RecurrentKernel):
    """K[l] = C Āˡ B̄ with full matrices; a subclass has C (c, H, N) and gives `matrices` and `readout`.

    The state is {'x': (B, H, N)}.
    """

    d_state: int
    C: nn.Parameter

    def matrices(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā (S', N, N) and B̄ (S', N) at `step`, float64."""
        raise NotImplementedError

    def readout(self) -> Tensor:
        """C (c, H, N) as it is applied, float64."""
        return wide(self.C)

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        A, B = self.matrices(step)
        C = self.readout().reshape(-1, A.shape[0], self.d_state)  # (c·H/S', S', N): feature h uses system h % S'
        taps = krylov(A, B, C, length)
        return taps.reshape(self.channels, self.d_model, length).to(at_least_float32(self.C.dtype))

    def discretized(self, step: float) -> list[Tensor]:
        """Ā - I, B̄ and C."""
        A, B = self.matrices(step)
        # What a step adds to the state is small where windows are long, and would be lost in float32 beside the 1 of Ā.
        return [A - torch.eye(self.d_state, device=A.device, dtype=A.dtype), B, self.readout()]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = Ā x_{k-1} + B̄ u_k, y_k = C x_k: u (B, H), x (B, H, N) -> y (B, c, H), new x."""
        change, B, _ = system
        x = x + ((change * x[:, :, None]).sum(-1) + B * u.to(x.dtype)[..., None])
        return DenseKernel.observe(x, system), x

    @staticmethod
    def observe(x: Tensor, system: list[Tensor]) -> Tensor:
        """See `RecurrentKernel.observe`."""
        return (system[2] * x[:, None]).sum(-1)

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `RecurrentKernel.response`; x (H, N)."""
        self.refresh()
        A, _ = self.matrices(step)
        A = A.repeat(self.d_model // A.shape[0], 1, 1)
        return krylov(A, wide(x), self.readout(), length).to(at_least_float32(self.C.dtype))
