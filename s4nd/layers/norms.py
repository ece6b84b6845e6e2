"""Norms over the last axis, chosen by name, for layers whose recipes differ in nothing else.

Shape legend: C = d_model; … = any axes before, such as batch and length.
"""

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


class BatchNorm(nn.BatchNorm1d):
    """Normalize each feature over the batch and all positions: (…, C) -> (…, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


NORMS = ('layer', 'scale', 'rms', 'batch')


def make_norm(
    name: str, d_model: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Build a norm of (…, d_model) by its name, one of NORMS; eps is 1e-5.

    Raises:
        ValueError: for an unknown name.
    """
    place = {'device': device, 'dtype': dtype}
    if name == 'layer':
        return nn.LayerNorm(d_model, eps=EPS, **place)
    if name == 'scale':
        return ScaleNorm(**place)
    if name == 'rms':
        return nn.RMSNorm(d_model, eps=EPS, **place)
    if name == 'batch':
        return BatchNorm(d_model, eps=EPS, **place)
    raise ValueError(f'unknown norm {name!r}: expected one of {", ".join(NORMS)}')
