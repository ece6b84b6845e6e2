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

# The mask of FlexConv begins with this standard deviation, in coordinates, and the centers of the filters within this
# distance of the middle of the mask.
INITIAL_WIDTH = 0.075
INITIAL_REACH = 1.667 * INITIAL_WIDTH


class Affine(nn.Linear):
    """A linear map in float64, which autocast leaves alone."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)


class SIREN(nn.Module):
    """sin(ω0 (W x + b)), `layers` - 1 times, then linear: (M, D) coordinates -> (M, outputs) (the network of CKConv).

    Args:
        dims: D.
        hidden: W.
        outputs: values at a coordinate.
        omega_0: the first layer starts with up to omega_0 / 2π cycles per unit of a coordinate.
        layers: linear maps, the last one included, at least 2.
    """

    def __init__(
        self,
        dims: int,
        hidden: int,
        outputs: int,
        omega_0: float = 30.0,
        layers: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        check_layers(layers, 2)
        self.omega_0 = omega_0
        self.linears = nn.ModuleList(Affine(hidden if i else dims, hidden, **dd) for i in range(layers - 1))
        self.out = Affine(hidden, outputs, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as released: first layer uniform in ±1/D, others in ±√(6/W)/ω0, no biases; see `reset_output`."""
        for i, layer in enumerate(self.linears):
            bound = math.sqrt(6 / layer.in_features) / self.omega_0 if i else 1 / layer.in_features
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        reset_output(self.out)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.linears:
            x = torch.sin(self.omega_0 * layer(x))
        return self.out(x)


class Gabor(nn.Module):
    """exp(-½ |γ (x - μ)|²) sin(W x + b): (M, D) -> (M, W), a filter of MAGNet with a width γ per dimension."""

    def __init__(
        self,
        dims: int,
        hidden: int,
        order: int,
        omega_0: float | Sequence[float],
        centers: tuple[float, float] = (-1.0, 1.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.order, self.omega_0, self.centers = order, omega_0, centers
        empty = empty_parameters(device, dtype)
        self.mu, self.gamma = empty(hidden, dims), empty(hidden, dims)
        self.weight, self.bias = empty(hidden, dims), empty(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """μ uniform in `centers`, γ ~ Gamma(6/order, 1), W uniform in ±2πω0γ/√D (ω0 one, or one per axis), no b."""
        omega_0 = torch.as_tensor(self.omega_0, device=self.gamma.device, dtype=self.gamma.dtype)
        scale = 2 * math.pi / math.sqrt(self.mu.shape[1])
        with torch.no_grad():
            self.mu.uniform_(*self.centers)
            concentration = torch.full(self.gamma.shape, 6.0 / self.order, device='cpu')
            self.gamma.copy_(torch.distributions.Gamma(concentration, 1.0).sample())
            self.weight.uniform_(-scale, scale).mul_(omega_0 * self.gamma)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        distance = (wide(self.gamma) * (x[:, None] - wide(self.mu))).square().sum(-1)
        return torch.exp(-0.5 * distance) * torch.sin(affine(x, self.weight, self.bias))


class MAGNet(nn.Module):
    """h_0 = g_0, h_{i+1} = g_{i+1} (W_i h_i + b_i) for `layers` maps, then linear: (M, D) -> (M, outputs).

    Args:
        dims, hidden, outputs: as SIREN.
        omega_0: the Gabor filter g_i starts with up to ω0·γ_i/√D cycles per unit of a coordinate, where
            E γ_i = 6/(i + 1); one value, or one for each dimension.
        layers: hidden maps; there is one filter more.
        centers: where the centers of the filters start, uniformly; near the middle of the kernel's mask.
    """

    def __init__(
        self,
        dims: int,
        hidden: int,
        outputs: int,
        omega_0: float | Sequence[float],
        layers: int = 3,
        centers: tuple[float, float] = (-1.0, 1.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        check_layers(layers, 1)
        self.filters = nn.ModuleList(Gabor(dims, hidden, i + 1, omega_0, centers, **dd) for i in range(layers + 1))
        self.linears = nn.ModuleList(Affine(hidden, hidden, **dd) for _ in range(layers))
        self.out = Affine(hidden, outputs, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as released: filters, maps uniform with the variance of their inputs and biases 1, the output."""
        for gabor in self.filters:
            gabor.reset_parameters()
        for layer in self.linears:
            reset_output(layer)
            nn.init.ones_(layer.bias)
        reset_output(self.out)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, gabor in enumerate(self.filters):
            # (TorchScript indexes no list of modules by a variable.)
            for j, layer in enumerate(self.linears):
                if j == i - 1:
                    h = layer(h)
            h = h * gabor(x) if i > 0 else gabor(x)
        return self.out(h)


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
        layers: of the network, see MAGNet and SIREN.
        omega_0: of the network. None: 30 for 'siren'; for 'magnet' such that the products of its filters, of
            `mean_frequency(layers)`·ω0 cycles per unit on average, begin below the Nyquist limit of the training grid
            (length / 4).

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
        layers: int = 3,
        omega_0: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_axis('ckconv', length, 2)
        check_network(network, hidden)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.length = float(length)
        outputs = channels * d_model
        if network == 'siren':
            self.network = SIREN(1, hidden, outputs, 30.0 if omega_0 is None else omega_0, layers, **dd)
        else:
            omega_0 = self.length / (4 * mean_frequency(layers)) if omega_0 is None else omega_0
            self.network = MAGNet(1, hidden, outputs, omega_0, layers, (-1.0, INITIAL_REACH - 1.0), **dd)
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


def check_layers(layers: int, minimum: int) -> None:
    """Raise ValueError unless there are at least `minimum` layers."""
    if layers < minimum:
        raise ValueError(f'layers must be at least {minimum}, got {layers}')


def mean_frequency(layers: int) -> float:
    """Σ E γ_i of the filters of MAGNet: of their product, in units of ω0."""
    return sum(6.0 / (i + 1) for i in range(layers + 1))


def reset_output(layer: nn.Linear) -> None:
    """Weights uniform in ±√(3/in), which keeps the variance of what comes in, and no bias."""
    bound = math.sqrt(3 / layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b in float64."""
    return torch.addmm(wide(bias), x, wide(weight).T)
