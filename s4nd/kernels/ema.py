"""EMA: the multi-dimensional damped exponential moving average of Mega (arXiv 2209.10655).

x_k = q x_{k-1} + p β u_k and y_k = γ·x_k / √N with p = σ(α), q = 1 - p σ(δ): K[l] = Σ_n (γ_n/√N) p_n β_n q_nˡ.
All is real. Shape legend: see base.py; N real decays per feature.
"""

import math

import torch
from torch import Tensor

from s4nd.kernels.base import RecurrentKernel, empty_parameters
from s4nd.kernels.diagonal import scan_from
from s4nd.ops import at_least_float32, wide
from s4nd.ops.exponentials import block_split


class EMAKernel(RecurrentKernel):
    """Damped moving averages, weighted by trained γ.

    At another step the decay of a sample is q^step, and its weight is that of an input held over the step,
    p·(1 - q^step)/(1 - q): a constant input gives the same output at every step.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature, which share α, δ and β.
        d_state: N, moving averages per feature (the paper takes 16).

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        if d_state < 1:
            raise ValueError(f'd_state must be at least 1, got {d_state}')
        self.d_state, self.state_shape = d_state, (d_model, d_state)
        empty = empty_parameters(device, dtype)
        self.alpha = empty(d_model, d_state)
        self.delta = empty(d_model, d_state)
        self.beta = empty(d_model, d_state)
        self.gamma = empty(channels, d_model, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: α and δ from N(0, 0.2²), β alternately ±1 plus N(0, 0.02²), γ from N(0, 1)."""
        with torch.no_grad():
            self.alpha.normal_(std=0.2)
            self.delta.normal_(std=0.2)
            self.beta.normal_(std=0.02)
            self.beta[:, 0::2] += 1
            self.beta[:, 1::2] -= 1
            self.gamma.normal_()

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        log_q = self._log_q() * step
        return self._decays(self._readout() * self._weight(log_q), log_q, length)

    def _decays(self, weight: Tensor, log_q: Tensor, length: int) -> Tensor:
        """Σ_n w_n q_nˡ for l = 0 … length - 1: w (c, H, N), log q (H, N) -> (c, H, length)."""
        rows, columns = block_split(length)
        lags = torch.arange(max(rows, columns), device=log_q.device, dtype=log_q.dtype)
        right = torch.exp(log_q[..., None] * lags[:columns])  # (H, N, columns)
        left = torch.exp(log_q[:, None] * (columns * lags[:rows, None]))  # (H, rows, N)
        left = weight[:, :, None] * left  # (c, H, rows, N)
        taps = torch.bmm(left.transpose(0, 1).flatten(1, 2), right)  # (H, c·rows, columns)
        taps = taps.reshape(self.d_model, self.channels, rows * columns)[..., :length].transpose(0, 1)
        return taps.to(at_least_float32(self.gamma.dtype))

    def discretized(self, step: float) -> list[Tensor]:
        """Decay, input weight and readout."""
        log_q = self._log_q() * step
        return [log_q.exp(), self._weight(log_q), self._readout()]

    def states(self, u: Tensor, x: Tensor, dt: Tensor) -> Tensor:
        """See `RecurrentKernel.states`; here by a scan."""
        self.refresh()
        log_q = self._log_q() * wide(dt)[..., None, None]  # (B, L, H, N)
        log_q, weight = log_q.to(x.dtype), self._weight(log_q).to(x.dtype)
        drive = weight * u.to(x.dtype).transpose(1, 2)[..., None]  # (B, L, H, N)
        factor, drive, x = (torch.stack([t, torch.zeros_like(t)], -1) for t in (log_q.exp(), drive, x))
        return scan_from(x, factor, drive)[..., 0]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One sample: u (B, H), x (B, H, N) -> y (B, c, H), new x."""
        decay, weight, _ = system
        x = decay * x + weight * u.to(x.dtype)[..., None]
        return EMAKernel.observe(x, system), x

    @staticmethod
    def observe(x: Tensor, system: list[Tensor]) -> Tensor:
        """See `RecurrentKernel.observe`."""
        return (system[2] * x[:, None]).sum(-1)

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `RecurrentKernel.response`; x (H, N)."""
        self.refresh()
        return self._decays(self._readout() * wide(x), self._log_q() * step, length)

    def _log_q(self) -> Tensor:
        """log q (H, N), float64: what the step multiplies."""
        return torch.log1p(-torch.sigmoid(wide(self.alpha)) * torch.sigmoid(wide(self.delta)))

    def _weight(self, log_q: Tensor) -> Tensor:
        """The weight of an input, float64, for log q·step (…, H, N)."""
        return wide(self.beta) * -torch.expm1(log_q) / torch.sigmoid(wide(self.delta))

    def _readout(self) -> Tensor:
        return wide(self.gamma) / math.sqrt(self.d_state)
