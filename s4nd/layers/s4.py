"""S4: one causal axis, as a convolution over a whole clip or one sample at a time (arXiv 2111.00396)."""

import torch
from torch import Tensor

from s4nd.kernels import KERNELS
from s4nd.layers.s4nd import S4ND


class S4(S4ND):
    """The causal 1-D face of S4ND, with a recurrence.

    Args:
        d_model: H, number of features.
        kernel: a key of s4nd.kernels.KERNELS that has a recurrence.
        The rest: as S4ND.

    `forward`: (B, H, L) -> (B, H, L). `step`: one sample (B, H) and a state -> (B, H) and the new state; stepping
    through a clip from `init_state` equals the forward.

    Raises:
        ValueError: for a kernel without a recurrence, and as S4ND.
    """

    def __init__(
        self,
        d_model: int,
        *,
        kernel: str = 's4',
        d_state: int = 64,
        init: str | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        skip: bool = True,
        kernel_options: dict | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if kernel in KERNELS and not KERNELS[kernel].has_recurrence:
            raise ValueError(f"kernel '{kernel}' has no recurrence, which a causal streaming layer needs")
        super().__init__(
            d_model,
            spatial_dims=1,
            kernel=kernel,
            d_state=d_state,
            init=init,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            bidirectional=False,
            skip=skip,
            kernel_options=kernel_options,
            device=device,
            dtype=dtype,
        )

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """The zero state: a flat dict of tensors, batch first."""
        return self.kernels[0].init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The discretized recurrence at `step`: compute it once before a loop of `step` calls."""
        return self.kernels[0].system(step)

    def step(
        self, x: Tensor, state: dict[str, Tensor], system: list[Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample (B, H) -> (B, H) and the new state; `state` is left as it was.

        `system` None discretizes anew, which costs more than the step itself.

        Raises:
            ValueError: if x is not (B, H).
        """
        if x.dim() != 2 or x.shape[1] != self.d_model:
            raise ValueError(f'step expects (batch, {self.d_model}), got shape {list(x.shape)}')
        y, new = self.kernels[0].advance(x, state['x'], self.system() if system is None else system)
        y = y[:, 0].to(x.dtype)
        if self.D is not None:
            y = y + self.D[0].to(x.dtype) * x
        return y, {'x': new}
