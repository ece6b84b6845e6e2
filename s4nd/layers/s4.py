"""S4: one axis, as a convolution over a whole clip or, where it is causal, one sample at a time (arXiv 2111.00396).

Shape legend: B = batch, H = d_model, L = length, c = channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s4nd.kernels import KERNELS, RecurrentKernel
from s4nd.layers.base import check_dt, check_sample, check_signal
from s4nd.layers.irregular import irregular, two_sided
from s4nd.layers.s4nd import S4ND
from s4nd.layers.streaming import State
from s4nd.ops import run_recurrence


class S4(S4ND):
    """The 1-D face of S4ND: causal unless `bidirectional`, with a recurrence, and a grid only if it is given.

    Args:
        d_model: H, number of features.
        grid: (length,) at training; None: the step is 1 unless it is given.
        kernel: a key of s4nd.kernels.KERNELS; a causal layer needs one that has a recurrence, or l_max.
        l_max: longest lag + 1; None: all. A layer with it does not stream.
        The rest: as S4ND.

    `forward`: (B, H, L) -> (B, c·H, L). It streams by the contract of layers/streaming.py; stepping through a clip from
    `init_state` equals the forward. One NaN in a clip makes all outputs of its feature NaN in the forward, but none
    before it in `step` or where a state is given.

    Raises:
        ValueError: for a causal layer without l_max whose kernel has no recurrence, for streaming with a two-sided
            layer or with l_max, and as S4ND.
    """

    def __init__(
        self,
        d_model: int,
        grid: Sequence[int] | None = None,
        kernel: str = 's4',
        *,
        d_state: int = 64,
        init: str | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        bidirectional: bool = False,
        l_max: float | None = None,
        channels: int = 1,
        cell: str = 'training',
        skip: bool = True,
        kernel_args: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        is_recurrent = issubclass(KERNELS.get(kernel, RecurrentKernel), RecurrentKernel)
        if not (bidirectional or is_recurrent) and l_max is None:
            raise ValueError(
                f"kernel '{kernel}' has no recurrence, which a causal layer needs that streams: give l_max for one "
                'that does not'
            )
        super().__init__(
            d_model, grid, kernel, d_state=d_state, init=init, dt_min=dt_min, dt_max=dt_max, bandlimit=bandlimit,
            bidirectional=bidirectional, l_max=l_max, channels=channels, cell=cell, skip=skip, kernel_args=kernel_args,
            device=device, dtype=dtype,
        )  # fmt: skip

    def _count_axes(self, grid: Sequence[int] | None) -> int:
        if grid is not None and len(grid) != 1:
            raise ValueError(f'S4 has one axis: expected a grid of one size, got {tuple(grid)}')
        return 1

    def forward(  # type: ignore[override]
        self, x: Tensor, state: State | None = None, step: float | None = None, *, dt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Convolve x (B, H, L); with a state, go on from it and return the output and the state after x.

        Args:
            x: (B, H, L), L >= 1.
            state: from `init_state` or an earlier call; None: there is nothing before x, and no state is returned.
            step: spacing of the samples in samples of the grid; None: grid / L, but 1 where a state is given.
            dt: (B, L), time of each sample since the one before, in samples of the grid: sample k is held over dt[k].
                The recurrence runs at these steps, by a scan where the kernel is diagonal. In place of step.
        """
        if dt is not None:
            return self._irregular(x, state, dt, step)
        if state is None:
            return super().forward(x, None if step is None else [step])
        self._check_streams()
        x = check_signal(x, self.d_model, 1)
        kernel = self.kernels[0]
        y, after = run_recurrence(kernel.advance, kernel.system(1.0 if step is None else step), x, state['x'])
        return self._add_skip(y, x), {'x': after}

    def _irregular(
        self, x: Tensor, state: State | None, dt: Tensor, step: float | None
    ) -> Tensor | tuple[Tensor, State]:
        """The forward at irregular steps."""
        x = check_signal(x, self.d_model, 1)
        check_dt(dt, x)
        if step is not None:
            raise ValueError(f'dt stands in place of step: expected step=None beside it, got {step}')
        kernel = self.kernels[0]
        if not isinstance(kernel, RecurrentKernel) or self._l_max[0] != math.inf:
            raise ValueError('a kernel without a recurrence has one step: expected dt=None')
        if self.bidirectional[0]:
            if state is not None:
                self._check_streams()
            return self._add_skip(two_sided(kernel, x, dt, self.cell == 'published').to(x.dtype), x)
        before = kernel.init_state(len(x))['x'] if state is None else state['x']
        y, after = irregular(kernel, x, before, dt)
        y = self._add_skip(y, x)
        return y if state is None else (y, {'x': after})

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample, all zero."""
        self._check_streams()
        return self.kernels[0].init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize the recurrence at `step`: compute it once before a loop of `step` calls."""
        self._check_streams()
        return self.kernels[0].system(step)

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, c·H) and the new state; `state` is left as it was.

        `system` None discretizes anew at step 1, which costs more than the step itself.
        """
        check_sample(x, self.d_model)
        y, after = self.kernels[0].advance(x, state['x'], self.system() if system is None else system)
        return self._add_skip(y.flatten(1).to(x.dtype), x), {'x': after}

    def _add_skip(self, y: Tensor, x: Tensor) -> Tensor:
        """y + D x of samples or stretches: y (B, c·H, …), x (B, H, …)."""
        if self.D is None:
            return y
        D = self.D.to(y.dtype)
        return y + ((D if x.dim() == 2 else D[..., None]) * x[:, None]).flatten(1, 2)

    def _check_streams(self) -> None:
        if self.bidirectional[0]:
            raise ValueError('a bidirectional layer needs the whole clip and cannot stream: call it without a state')
        if self._l_max[0] != math.inf:
            raise ValueError(f'a kernel that ends after {self._l_max[0]} samples has no recurrence and cannot stream')
