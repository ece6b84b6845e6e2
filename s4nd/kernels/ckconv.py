"""CKConv, FlexConv: a kernel that is a small network of the coordinate (arXiv 2102.02611, 2110.08059; CCNN 2206.03398).

The networks take coordinates in [-1, 1]^D, for the kernels over all axes of ckconv_nd.py too. Here is the kernel of one
axis: x = 2t/length - 1 for t from 0 to the length of the axis, zero beyond it.
Shape legend: see base.py; M = coordinates, D = their dimensions, W = hidden width.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.kernels.base import Kernel, check_axis, check_choice, empty_parameters
from s4nd.ops import at_least_float32, wide

NETWORKS = ('magnet', 'siren')

# The mask of FlexConv begins with this standard deviation, in coordinates.
INITIAL_WIDTH = 0.075


class SIREN(nn.Module):
    """sin(ω0 (W x + b)) twice, then linear: (M, D) coordinates -> (M, outputs) (the network of CKConv).

    Args:
        dims: D.
        hidden: W.
        outputs: values at a coordinate.
        omega_0: the first layer starts with up to omega_0 / 2π cycles per unit of a coordinate.
    """

    def __init__(
        self,
        dims: int,
        hidden: int,
        outputs: int,
        omega_0: float = 30.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.omega_0 = omega_0
        self.first = nn.Linear(dims, hidden, **dd)
        self.second = nn.Linear(hidden, hidden, **dd)
        self.out = nn.Linear(hidden, outputs, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: first layer uniform in ±1/D, second in ±√(6/W)/ω0, biases as torch; unit output."""
        for layer in (self.first, self.second, self.out):
            layer.reset_parameters()
        nn.init.uniform_(self.first.weight, -1 / self.first.in_features, 1 / self.first.in_features)
        bound = math.sqrt(6 / self.second.in_features) / self.omega_0
        nn.init.uniform_(self.second.weight, -bound, bound)
        # A sine has variance ½.
        nn.init.normal_(self.out.weight, std=math.sqrt(2 / self.out.in_features))
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.omega_0 * affine(x, self.first.weight, self.first.bias))
        x = torch.sin(self.omega_0 * affine(x, self.second.weight, self.second.bias))
        return affine(x, self.out.weight, self.out.bias)


class Gabor(nn.Module):
    """exp(-½ |γ (x - μ)|²) sin(W x + b): (M, D) -> (M, W), a filter of MAGNet with a width γ per dimension."""

    def __init__(
        self,
        dims: int,
        hidden: int,
        order: int,
        omega_0: float | Sequence[float],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.order, self.omega_0 = order, omega_0
        empty = empty_parameters(device, dtype)
        self.mu, self.gamma = empty(hidden, dims), empty(hidden, dims)
        self.weight, self.bias = empty(hidden, dims), empty(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """μ uniform in [-1, 1], γ ~ Gamma(6/order, 1), W uniform in ±2πω0γ (ω0 one, or one per dimension), b in ±π."""
        omega_0 = torch.as_tensor(self.omega_0, device=self.gamma.device, dtype=self.gamma.dtype)
        with torch.no_grad():
            self.mu.uniform_(-1, 1)
            concentration = torch.full(self.gamma.shape, 6.0 / self.order, device='cpu')
            self.gamma.copy_(torch.distributions.Gamma(concentration, 1.0).sample())
            self.weight.uniform_(-1, 1).mul_(2 * math.pi * omega_0 * self.gamma)
            self.bias.uniform_(-math.pi, math.pi)

    def forward(self, x: Tensor) -> Tensor:
        distance = (wide(self.gamma) * (x[:, None] - wide(self.mu))).square().sum(-1)
        return torch.exp(-0.5 * distance) * torch.sin(affine(x, self.weight, self.bias))


class MAGNet(nn.Module):
    """h_1 = g_1, h_{i+1} = (W_i h_i + b_i) g_{i+1} with three Gabor filters, then linear: (M, D) -> (M, outputs).

    Args:
        dims, hidden, outputs: as SIREN.
        omega_0: filter i starts with up to ω0·γ_i cycles per unit of a coordinate, where E γ_i = 6/i; one value, or one
            for each dimension.
    """

    def __init__(
        self,
        dims: int,
        hidden: int,
        outputs: int,
        omega_0: float | Sequence[float],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.filters = nn.ModuleList(Gabor(dims, hidden, order, omega_0, **dd) for order in (1, 2, 3))
        self.second = nn.Linear(hidden, hidden, **dd)
        self.third = nn.Linear(hidden, hidden, **dd)
        self.out = nn.Linear(hidden, outputs, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for gabor in self.filters:
            gabor.reset_parameters()
        for layer in (self.second, self.third, self.out):
            # Keeps the variance: a sine halves it.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, gabor in enumerate(self.filters):
            if i == 0:
                h = gabor(x)
            elif i == 1:
                h = affine(h, self.second.weight, self.second.bias) * gabor(x)
            else:
                h = affine(h, self.third.weight, self.third.bias) * gabor(x)
        return affine(h, self.out.weight, self.out.bias)


class CKConvKernel(Kernel):
    """A coordinate network over the length of the axis, times a Gaussian mask of trained width about lag 0.

    A tap at step s is s times the function in the middle of its cell: at another step the same function is sampled more
    or less densely. Kernels are divided by their root mean square norm at initialization, which is kept as a buffer.
    The published crop where the mask is below 0.1 is not made: its size would depend on the data.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature; each has a mask of its own.
        length: of the axis, in samples of the training grid, at least 2.
        network: 'magnet' (FlexConv, CCNN) or 'siren' (CKConv).
        mask: whether there is a mask (FlexConv) or not (CKConv).
        hidden: W.
        omega_0: of the network. None: 30 for 'siren'; for 'magnet' such that the products of its filters, of
            11·ω0 cycles per unit on average, begin below the Nyquist limit of the training grid (length / 4).

    Raises:
        ValueError: for sizes below 1, an unknown network, or a length that is not known (infinite) or below 2.
    """

    norm: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        length: float = math.inf,
        network: str = 'magnet',
        mask: bool = True,
        hidden: int = 32,
        omega_0: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_axis('ckconv', length, 2)
        check_network(network, hidden)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.length = float(length)
        build = SIREN if network == 'siren' else MAGNet
        if omega_0 is None:
            omega_0 = 30.0 if network == 'siren' else self.length / 44
        self.network = build(1, hidden, channels * d_model, omega_0, **dd)
        self.register_buffer('norm', torch.empty((), **dd))
        self.register_parameter('log_width', nn.Parameter(torch.empty(channels, 1, 1, **dd)) if mask else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the network, the norm that it gives, and the mask.

        The mask's standard deviation is 0.075 in coordinates, as in FlexConv, but not below a sample.
        """
        self.network.reset_parameters()
        with torch.no_grad():
            if self.log_width is not None:
                self.log_width.fill_(math.log(max(INITIAL_WIDTH, 2 / self.length)))
            self.norm.fill_(1.0)
            self.norm.copy_(self.forward(math.ceil(self.length)).square().sum(-1).mean().sqrt())

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        weight = self.network.out.weight
        cells = torch.arange(length, device=weight.device, dtype=wide(weight[:0]).dtype) + 0.5
        x = cells * (2 * step / self.length) - 1  # middle of each cell, -1 at lag 0
        taps = self.network(x[:, None]).T.reshape(self.channels, self.d_model, length)
        taps = taps * (x < 1) * (step / self.length) / wide(self.norm)
        if self.log_width is not None:
            taps = taps * torch.exp(-0.5 * ((x + 1) / wide(self.log_width).exp()).square())
        return taps.to(at_least_float32(weight.dtype))


def check_network(network: str, hidden: int) -> None:
    """Raise ValueError for an unknown network or a width below 1."""
    check_choice('network', network, NETWORKS, " for kernel 'ckconv'")
    if hidden < 1:
        raise ValueError(f'hidden must be at least 1, got {hidden}')


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b in float64, which autocast leaves alone."""
    return torch.addmm(wide(bias), x, wide(weight).T)
