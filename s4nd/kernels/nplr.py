"""S4 as first released (arXiv 2111.00396): A = Λ - P Q* with P and Q apart, as ViS4mer (2204.01692) uses it.

Shape legend: see base.py; r = rank of P and Q.
"""

import torch
from torch import Tensor, nn

from s4nd.kernels.dplr import S4Kernel


class NPLRKernel(S4Kernel):
    """Diagonal-plus-low-rank kernel without constraints: Re Λ is free, P and Q may differ, B, P and Q are per feature.

    It starts as `S4Kernel` does, with Q = P. Nothing keeps Ā a contraction in training, so that a trained kernel may
    grow with time; 's4' is the stable form.

    Args:
        d_model, channels, d_state, init, dt_min, dt_max, bandlimit: as `S4Kernel`.
        n_ssm: S, number of distinct Λ, a divisor of H; None is the number of measures in `init`.

    Raises:
        ValueError: as `S4Kernel`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        init: str = 'legs',
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        n_ssm: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model, channels=channels, d_state=d_state, init=init, dt_min=dt_min, dt_max=dt_max, bandlimit=bandlimit,
            n_ssm=n_ssm, real='free', device=device, dtype=dtype,
        )  # fmt: skip
        rows = d_model // self.n_ssm
        self.B = nn.Parameter(self.B.detach().repeat(rows, 1, 1))
        self.P = nn.Parameter(self.P.detach().repeat(1, rows, 1, 1))
        self.Q = nn.Parameter(self.P.detach().clone())

    def reset_parameters(self) -> None:
        """Initialize as `S4Kernel`, all rows of a measure alike, and Q = P."""
        super().reset_parameters()
        if hasattr(self, 'Q'):
            with torch.no_grad():
                self.Q.copy_(self.P)

    def right(self) -> Tensor:
        """See `S4Kernel.right`."""
        return self.Q
