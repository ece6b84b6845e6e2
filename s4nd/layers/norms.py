"""Norms over the last axis, chosen by name, for layers whose recipes differ in nothing else.

Shape legend: C = d_model; … = any axes before, such as batch and length.
"""

from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-5


class ScaleNorm(nn.Module):
    """Divide each vector by its root mean square and multiply it by one trained number: (…, C) -> (…, C).

    Source: arXiv 1910.05895, in the form of Mega's code, x · g / √(mean(x²) + 1e-5).
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the factor to 1."""
        nn.init.ones_(self.scalar)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.scalar.to(x.dtype)


class ScalarNorm(nn.Module):
    """Normalize each vector with one trained shift and scale for all features: (…, C) -> (…, C).

    y = s (x - mean + m) / std, with the biased deviation and no epsilon: the norm of state-spaces/s4 and
    diffwave-sashimi where features come first ('transposed'). A vector of equal numbers gives 0, not NaN.
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.s = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the shift to 0 and the scale to 1."""
        nn.init.zeros_(self.m)
        nn.init.ones_(self.s)

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        inverse = torch.rsqrt(variance.clamp(min=torch.finfo(x.dtype).tiny))
        scale = self.s.to(x.dtype) * torch.where(variance > 0, inverse, 0.0)
        return scale * (centered + self.m.to(x.dtype))


class BatchNorm(nn.BatchNorm1d):
    """Normalize each feature over the batch and all positions: (…, C) -> (…, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def normalized(norm: nn.Module, x: Tensor, padding: Tensor | None = None) -> Tensor:
    """norm(x) of x (B, L, C); a batch norm takes its statistics over the samples where padding (B, L) is false.

    What is padded is zero there.
    """
    if padding is None or not (isinstance(norm, BatchNorm) and norm.training):
        return norm(x)
    real = ~padding
    return torch.zeros_like(x).index_put((real,), norm(x[real]))


NORMS = ('layer', 'scale', 'scalar', 'rms', 'batch')


def make_norm(
    name: str, d_model: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Build a norm of (…, d_model) by its name, one of NORMS; eps is 1e-5 where there is one.

    Raises:
        ValueError: for an unknown name.
    """
    place: dict[str, Any] = {'device': device, 'dtype': dtype}
    if name == 'layer':
        return nn.LayerNorm(d_model, eps=EPS, **place)
    if name == 'scale':
        return ScaleNorm(**place)
    if name == 'scalar':
        return ScalarNorm(**place)
    if name == 'rms':
        return nn.RMSNorm(d_model, eps=EPS, **place)
    if name == 'batch':
        return BatchNorm(d_model, eps=EPS, **place)
    raise ValueError(f'unknown norm {name!r}: expected one of {", ".join(NORMS)}')
