"""Models at one size: the kernels of their long convolutions are stored, so that graph tools see plain operations.

Shape legend: B = batch, H = features, L1…Ld = size per axis, K = lags of an axis.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.layers import S4ND, CKConv
from s4nd.ops import full_conv, separable_conv, toeplitz, use_toeplitz
from s4nd.resolution import axis_steps

__all__ = ['FrozenCKConv', 'FrozenS4ND', 'freeze']

# A frozen CKConv of at most so many taps is a plain convolution, which exporters and quantizers know; one of more is
# faster by FFT.
_PLAIN_UP_TO = 1024


@torch.no_grad()
def freeze(model: nn.Module, *example: Tensor) -> nn.Module:
    """A copy in which every S4ND and CKConv layer that `example` reaches stores its kernel for the size it sees there.

    Nothing of the kernels is left to compute, which makes the graph small. The copy is in evaluation mode and runs at
    no other size.

    Raises:
        ValueError: a layer sees two sizes, or is given a step or a state.
    """
    model = copy.deepcopy(model).eval()
    sizes: dict[nn.Module, list[int]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x, *others = *inputs, *options.values()
        if any(value is not None for value in others):
            raise ValueError(f'{layer} is given a step or a state: only plain calls can be frozen')
        size = list(x.shape[2:])
        if sizes.setdefault(layer, size) != size:
            raise ValueError(f'{layer} sees the sizes {sizes[layer]} and {size}: it can be frozen at one only')

    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (S4ND, CKConv))
    }
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in set(layers.values())]
    model(*example)
    for hook in hooks:
        hook.remove()
    frozen = {layer: _frozen(layer, size) for layer, size in sizes.items()}
    for name, layer in layers.items():
        if layer is model:
            return frozen[layer]
        if layer in sizes:
            model.set_submodule(name, frozen[layer])
    return model


def _frozen(layer: nn.Module, size: list[int]) -> nn.Module:
    return FrozenCKConv(layer, size) if isinstance(layer, CKConv) else FrozenS4ND(cast('S4ND', layer), size)


class FrozenS4ND(nn.Module):
    """An S4ND layer at one size of its axes: the taps, or the matrices made of them, are buffers.

    Raises ValueError in the forward for another size.
    """

    def __init__(self, layer: S4ND, size: Sequence[int]) -> None:
        super().__init__()
        self.size, self.method, self.exact, self.channels = list(size), layer.method, layer.exact, layer.channels
        self.D = layer.D
        operators, self.centers = layer.operators(self.size, axis_steps(list(layer.grid or ()), self.size))
        for axis, length in enumerate(self.size):
            if operators[axis].dim() == 3 and use_toeplitz(self.size, axis, self.method):
                operators[axis] = toeplitz(operators[axis], self.centers[axis], length)
            if operators[axis].dim() == 4:
                self.centers[axis] = 0  # of no meaning for a matrix, which has fewer columns than there are taps
            self.register_buffer(f'axis_{axis}', operators[axis])

    def forward(self, x: Tensor) -> Tensor:
        operators = [self.get_buffer(f'axis_{axis}') for axis in range(len(self.size))]
        skip = None if self.D is None else self.D.flatten()
        return _frozen_conv(x, operators, self.size, self.centers, self.method, self.channels, skip, self.exact)


class FrozenCKConv(nn.Module):
    """A CKConv layer at one size of its axes: the taps are a buffer.

    Raises ValueError in the forward for another size.
    """

    taps: Tensor

    def __init__(self, layer: CKConv, size: Sequence[int]) -> None:
        super().__init__()
        self.size, self.out_channels, self.bias = list(size), layer.out_channels, layer.bias
        taps = layer.kernel(self.size, axis_steps(list(layer.grid or ()), self.size))
        self.register_buffer('taps', taps)  # (H, K1, …, Kd), of O·H for `out_channels`

    def forward(self, x: Tensor) -> Tensor:
        return _frozen_full_conv(x, self.taps, self.bias, self.size, self.out_channels)


def _frozen_conv(
    x: Tensor, operators: list[Tensor], size: list[int], centers: list[int], method: str, channels: int,
    skip: Tensor | None, exact: bool,
) -> Tensor:  # fmt: skip
    """What a frozen S4ND does; torch.fx passes over it."""
    _check_size(x, size)
    u = x if channels == 1 else torch.cat([x] * channels, 1)
    return separable_conv(u, operators, centers, method, skip, exact)


def _frozen_full_conv(x: Tensor, taps: Tensor, bias: Tensor, size: list[int], out_channels: int | None) -> Tensor:
    """What a frozen CKConv does; torch.fx passes over it."""
    _check_size(x, size)
    features, axes = x.shape[1], len(size)
    if math.prod(taps.shape[1:]) <= _PLAIN_UP_TO:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        # torch's convolutions are correlations.
        weight = taps.to(x.dtype).flip(list(range(1, axes + 1)))
        weight = weight[:, None] if out_channels is None else weight.unflatten(0, (out_channels, features))
        padding = [lags // 2 for lags in taps.shape[1:]]
        return convolve(x, weight, bias.to(x.dtype), 1, padding, 1, features if out_channels is None else 1)
    shift = bias.reshape([-1] + [1] * axes).to(x.dtype)
    if out_channels is None:
        return full_conv(x, taps) + shift
    y = full_conv(torch.cat([x] * out_channels, 1), taps)
    return y.unflatten(1, (out_channels, features)).sum(2) + shift


def _check_size(x: Tensor, size: list[int]) -> None:
    if list(x.shape[2:]) != size:
        raise ValueError(f'the layer was frozen at size {size}, got an input of shape {list(x.shape)}')


for name in ('_frozen_conv', '_frozen_full_conv'):
    torch.fx.wrap(name)
