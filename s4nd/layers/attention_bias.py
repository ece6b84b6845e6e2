"""What attention adds to its logits: trained functions of the lag between a query and a key.

Shape legend: n = heads, K = lags, M = most samples that see each other.
"""

import math

import torch
from torch import Tensor, nn

from s4nd.ops import wide


class RotaryBias(nn.Module):
    """A trained function of the lag that is added to attention logits, a head at a time (Mega, arXiv 2209.10655).

    bias(i - j) = ⟨R_i α, R_j β⟩, where R_i turns every pair of entries by an angle proportional to i: a sum of waves
    of fixed wavelengths, 2π … 2π·10⁴ samples, which knows lags of any size.
    """

    max_length = math.inf

    def __init__(
        self,
        num_heads: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(num_heads, width, 2, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(num_heads, width, 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: N(0, 0.02²)."""
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)

    def forward(self, lags: Tensor) -> Tensor:
        """Lags (K,) -> bias (n, K)."""
        alpha, beta = wide(self.alpha), wide(self.beta)
        width = alpha.shape[1]
        frequency = 1e4 ** (-torch.arange(width, device=lags.device, dtype=alpha.dtype) / width)
        angle = lags[:, None] * frequency
        even = (alpha * beta).sum(-1)  # ⟨R_m α, β⟩ = Σ (α·β) cos + (α ∧ β) sin
        odd = alpha[..., 0] * beta[..., 1] - alpha[..., 1] * beta[..., 0]
        return (even @ angle.cos().T + odd @ angle.sin().T).to(self.alpha.dtype)


class LagTable(nn.Module):
    """A trained number per lag that is added to attention logits, a head at a time (the 'simple' bias of Mega).

    Args:
        num_heads: n.
        max_length: M, most samples that see each other; lags are below it.

    Raises:
        ValueError: for a max_length below 1.
    """

    def __init__(
        self,
        num_heads: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f'max_length must be at least 1, got {max_length}')
        self.max_length = max_length
        self.weight = nn.Parameter(torch.empty(num_heads, 2 * max_length - 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, lags: Tensor) -> Tensor:
        """Lags (K,), query minus key -> bias (n, K)."""
        return self.weight.index_select(1, self.max_length - 1 - lags)
