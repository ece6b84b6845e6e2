"""What mixes positions in a block, by name: S4ND and the convolutions that it is compared with.

Shapes: B batch, C channels, (t, h, w) positions of a feature map (t in clips only), R tensor rank, K lags. A *grid* is
the size of each axis that a layer is trained on. A mixer is built by `cls(dim, grid, **mixer_args)` and maps (B, C,
[t,] h, w) to the same, or to `channels` · C features.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.layers import S4ND, GridLayer
from s4nd.layers.s4nd import per_axis
from s4nd.layers.together import Request
from s4nd.models._arguments import choose, keywords
from s4nd.models._clip_conv import I3DConv, S3DConv
from s4nd.ops import toeplitz_replicate


class RasterS4ND(nn.Module):
    """S4ND along the raster-ordered sequence of all positions: (B, C, h, w) -> (B, channels · C, h, w).

    The published 1-D recipe for vision transformers. Its step is training positions / positions, one number for a
    sequence that has two directions, so it does not follow a change of resolution as the 2-D layer does. Arguments: as
    `S4ND`.
    """

    wraps = S4ND

    def __init__(self, d_model: int, grid: tuple[int, ...], *, cell: str = 'input', **mixer_args: Any) -> None:
        super().__init__()
        self.layer = S4ND(d_model, (math.prod(grid),), cell=cell, **mixer_args)

    @torch.jit.unused
    def requests(self, size: list[int]) -> list[Request]:
        """See `S4ND.requests`."""
        return self.layer.requests([math.prod(size)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))


class ClipS4ND(S4ND):
    """S4ND over (time, height, width): (B, C, t, h, w) -> (B, channels · C, t, h, w).

    Args:
        causal: no frame sees a later one; height and width stay two-sided.
        time_padding: the signal before and after the clip, 'zeros' or 'replicate' (the first and the last frame stand
            still, so the output for a still clip does not depend on the number of frames).
        time_tied: False gives each feature its own A and B in time.
        The rest: as `S4ND`, but for `bidirectional`.
    """

    time_padding: str

    def __init__(
        self,
        d_model: int,
        grid: tuple[int, ...],
        *,
        causal: bool = False,
        time_padding: str = 'zeros',
        time_tied: bool = True,
        kernel_args: Any = None,
        **mixer_args: Any,
    ) -> None:
        choose('time_padding', time_padding, ('zeros', 'replicate'))
        if not time_tied:
            time, *space = per_axis(kernel_args, 3, 'kernel_args')
            kernel_args = ({**(time or {}), 'n_ssm': d_model}, *space)
        bidirectional = (not causal, True, True)
        super().__init__(d_model, grid, bidirectional=bidirectional, kernel_args=kernel_args, **mixer_args)
        self.time_padding = time_padding

    def operators(self, size: list[int], steps: list[float]) -> tuple[list[Tensor], list[int]]:
        """What `ops.separable_conv` takes: lag taps (R, c·H, K), or in time, where it replicates, matrices."""
        operators, centers = self.all_taps(self.lags(size, steps), steps)
        if self.time_padding == 'replicate':
            operators[0] = toeplitz_replicate(operators[0], centers[0], size[0])
        return operators, centers

    def lags(self, size: list[int], steps: list[float]) -> list[int]:
        """See `S4ND.lags`."""
        time = self.reach(size[0], steps[0]) if self.time_padding == 'replicate' else size[0]
        return [time, size[1], size[2]]

    def reach(self, length: int, step: float) -> int:
        """Lags in time that count where the clip of `length` frames is continued beyond its ends.

        They span twice the training clip, however it is sampled, so that the sum of the taps does not follow the size.
        """
        return 1 + max(length, int(math.ceil(2 * self._grid[0] / step)))  # noqa: RUF046 (TorchScript gives a float)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution of images, the baseline: (B, C, h, w) -> the same."""

    def __init__(
        self, dim: int, grid: tuple[int, ...], *, kernel_size: int = 7, dilation: int = 1, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim, device=device, dtype=dtype
        )


_IMAGES: dict[str, type[nn.Module]] = {'s4nd': S4ND, 's4nd_1d': RasterS4ND, 'conv2d': DepthwiseConv}
_CLIPS: dict[str, type[nn.Module]] = {'s4nd': ClipS4ND, 'i3d': I3DConv, 's3d': S3DConv}


def mixer_class(mixer: str, choices: Sequence[str], clips: bool) -> type[nn.Module]:
    """The class of a mixer, whose keywords are those of a model's `mixer_args`.

    Raises:
        ValueError: for a name that is not among the `choices`, or that has no form for clips (or images).
    """
    classes = _CLIPS if clips else _IMAGES
    return classes[choose('mixer', mixer, [name for name in choices if name in classes])]


def image_args(mixer: type[nn.Module], mixer_args: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the S4ND layers outside the blocks, which see one image or frame: those of the mixer, if it is S4ND.

    Of three values, one for each axis of a clip, the last two are for height and width.
    """
    if not issubclass(mixer, (S4ND, RasterS4ND)):
        return {}
    shared = keywords(S4ND).keys() - {'bidirectional', 'channels', 'l_max', 'skip'}
    return {
        name: value[-2:] if isinstance(value, (tuple, list)) else value
        for name, value in mixer_args.items()
        if name in shared
    }


def assign_grid(module: nn.Module, grid: tuple[int, ...]) -> None:
    """Assign a training grid to every layer inside `module`; one with one axis reads it in raster order."""
    for layer in module.modules():
        if isinstance(layer, GridLayer) and layer.grid is not None:
            layer.grid = grid if len(layer.grid) == len(grid) else (math.prod(grid),)
