"""Forecasters: the past of some series in, their next values out.

Shape legend: B = batch, P = samples of the past, H = horizon, C = input columns, K = target columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.models.sequence import SequenceModel

__all__ = ['DLinear', 'S4Forecaster', 'fit_linear', 'last_value', 'seasonal_naive']


class S4Forecaster(nn.Module):
    """Map the past (B, P, C) to a forecast (B, H, K) by a `SequenceModel` over past and horizon.

    The horizon holds zeros and a mark, and the output there is the forecast, as in the experiments of S4 (2111.00396).
    Each window is centered on the last value of each column and divided by its standard deviation before, and brought
    back after.

    Args:
        channels: C.
        horizon: H.
        targets: the numbers of the K columns; None: all.
        layer, options: of the `SequenceModel`; layers are two-sided unless bidirectional=False.

    Raises:
        ValueError: as `SequenceModel`, and in the forward for inputs that are not (B, P, C).
    """

    def __init__(
        self,
        channels: int,
        horizon: int,
        targets: Sequence[int] | None = None,
        layer: str = 's4',
        *,
        bidirectional: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.channels, self.horizon = channels, horizon
        self.targets = list(range(channels)) if targets is None else list(targets)
        self.model = SequenceModel(
            channels + 1, len(self.targets), layer, head='step', bidirectional=bidirectional, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise ValueError(f'expected (batch, length, {self.channels}), got shape {list(x.shape)}')
        last, spread = x[:, -1:], x.std(1, keepdim=True, correction=0).clamp(min=1e-3)
        y = F.pad((x - last) / spread, (0, 0, 0, self.horizon))
        mark = y.new_zeros(y.shape[1], 1)
        mark[x.shape[1] :] = 1
        y = self.model(torch.cat([y, mark.expand(len(y), -1, -1)], 2))[:, x.shape[1] :]
        return y * spread[..., self.targets] + last[..., self.targets]


class DLinear(nn.Module):
    """Map the past to a forecast by two linear maps, of its moving average and of the rest (DLinear, 2205.13504).

    All columns share the maps: (B, P, C) -> (B, H, K).

    Args:
        context: P.
        horizon: H.
        targets: the numbers of the K columns; None: all.
        window: samples of the moving average, odd; beyond the ends the end values count.

    Raises:
        ValueError: for an even window, and in the forward for another length than P.
    """

    def __init__(self, context: int, horizon: int, targets: Sequence[int] | None = None, *, window: int = 25) -> None:
        super().__init__()
        if window < 1 or not window % 2:
            raise ValueError(f'window must be odd, got {window}')
        self.context, self.window = context, window
        self.targets = None if targets is None else list(targets)
        self.trend, self.rest = nn.Linear(context, horizon), nn.Linear(context, horizon)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[1] != self.context:
            raise ValueError(f'expected (batch, {self.context}, channels), got shape {list(x.shape)}')
        y = (x if self.targets is None else x[..., self.targets]).transpose(1, 2)  # (B, K, P)
        side = self.window // 2
        trend = F.avg_pool1d(F.pad(y, (side, side), mode='replicate'), self.window, stride=1)
        return (self.trend(trend) + self.rest(y - trend)).transpose(1, 2)


def last_value(past: Tensor, horizon: int) -> Tensor:
    """Repeat the last value: (B, P, K) -> (B, H, K)."""
    return past[:, -1:].expand(-1, horizon, -1)


def seasonal_naive(past: Tensor, horizon: int, period: int) -> Tensor:
    """Repeat the last `period` samples, or all there are: (B, P, K) -> (B, H, K)."""
    period = min(period, past.shape[1])
    return past[:, past.shape[1] - period + torch.arange(horizon) % period]


def fit_linear(past: Tensor, future: Tensor, penalty: float = 1e-3) -> Tensor:
    """Fit the linear map with a constant, shared by all columns, of least squared error plus `penalty` · N · |W|².

    past (N, P, K), future (N, H, K) -> W (P + 1, H) in float64. It is the best that a `DLinear` can be on these data:
    both of its maps are linear in the past. Apply it by `torch.cat([past, 1]) @ W` along the time axis.
    """
    rows = F.pad(past.double().transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)  # (N·K, P + 1)
    wanted = future.double().transpose(1, 2).flatten(0, 1)  # (N·K, H)
    ridge = penalty * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0
    return torch.linalg.lstsq(rows.T @ rows + ridge, rows.T @ wanted).solution
