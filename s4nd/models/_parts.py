"""Parts of the blocks that the families share, and input checks.

Shapes: B batch, C channels, (h, w) positions of a feature map. A *grid* is the (height, width) that a layer is trained
on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import LayerScale, Mlp
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.models._clip_conv import I3DConv, S3DConv

Grid = tuple[int, int]


def image_size(img_size: int | tuple[int, ...] | list[int], axes: int = 2) -> tuple[int, ...]:
    """One int or one for each axis, such as a pair (height, width) in pixels -> one for each axis.

    Raises:
        ValueError: not one or `axes` positive integers.
    """
    sizes = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size,) * axes
    if len(sizes) != axes or any(not isinstance(n, int) or n < 1 for n in sizes):
        expected = 'a pair (height, width)' if axes == 2 else f'a tuple of {axes}'
        raise ValueError(f'img_size must be one positive integer or {expected}, got {img_size!r}')
    return sizes


def choose(option: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`, else a ValueError that names the option."""
    if value not in choices:
        raise ValueError(f'{option} must be one of {", ".join(map(repr, choices))}, got {value!r}')
    return value


def check_stages(depths: Sequence[int], dims: Sequence[int]) -> None:
    """Raise ValueError unless there is one depth, and one width, for each of one stage or more."""
    if len(depths) != len(dims) or not depths or min(*depths, *dims) < 1:
        raise ValueError(
            f'depths and dims must hold a positive number for every stage, got {tuple(depths)} and {tuple(dims)}'
        )


def level_windows(window: float | Sequence[Any], stages: int, axes: int = 2) -> list[Any]:
    """The window of the layers on each grid: that of the image, then that of each stage.

    Args:
        window: one value or one for each axis, such as (height, width), for all grids, or so for each grid, as
            `set_input_size` leaves behind where the sizes do not divide evenly.

    Raises:
        ValueError: one for each grid, but not for the image and each stage.
    """
    if not isinstance(window, (tuple, list)) or not any(isinstance(w, (tuple, list)) for w in window):
        return [window] * (stages + 1)
    if len(window) != stages + 1 or any(not isinstance(w, (tuple, list)) or len(w) != axes for w in window):
        each = 'a pair' if axes == 2 else 'a triple'
        raise ValueError(f'window must be one value, {each}, or {each} for each of {stages + 1} grids, got {window}')
    return [tuple(w) for w in window]


@register_notrace_function
def check_image(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    """`x` itself if it is (B, in_chans, H, W) with H, W >= min_size, else a ValueError that shows its shape."""
    if x.dim() != 4 or x.shape[1] != in_chans or x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(
            f'expected images (batch, {in_chans}, height, width), {min_size} pixels a side or more, got {list(x.shape)}'
        )
    return x


def set_grids(module: nn.Module, grid: Grid) -> None:
    """Re-anchor every S4ND inside `module`; a one-axis layer reads the grid as one raster-ordered sequence."""
    for layer in module.modules():
        if isinstance(layer, S4ND):
            layer.set_grid(grid if layer.spatial_dims == len(grid) else (math.prod(grid),))


class RasterS4ND(nn.Module):
    """S4ND along the raster-ordered sequence of all positions: (B, C, h, w) -> (B, channels * C, h, w).

    The published 1-D recipe for vision transformers. Its step is training positions / positions, one number for a
    sequence that has two directions, so it does not follow a change of resolution as the 2-D layer does.
    """

    def __init__(self, d_model: int, grid: Grid, **options: Any) -> None:
        super().__init__()
        self.layer = S4ND(d_model, (math.prod(grid),), **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))


def make_mixer(
    mixer: str,
    dim: int,
    grid: Grid,
    ssm: Mapping[str, Any],
    kernel_size: int = 7,
    dilation: int = 1,
    device: Any = None,
    dtype: Any = None,
) -> nn.Module:
    """The spatial mixing of a block, per channel: (B, dim, …) -> (B, dim, …), times the `channels` of `ssm`.

    Args:
        mixer: 's4nd'; 's4nd_1d' (raster order); 'conv2d' (depthwise, with bias), the baseline; 'i3d' or 's3d', those of
            clips.
        grid: (height, width) it is trained on, or (time, height, width).
        ssm: keywords of `S4ND`, or of `I3DConv` and `S3DConv`; unused by 'conv2d'.
        kernel_size: height and width of a convolution. dilation: of 'conv2d'.

    Raises:
        ValueError: unknown mixer.
    """
    choose('mixer', mixer, ('s4nd', 's4nd_1d', 'conv2d', 'i3d', 's3d'))
    if mixer in ('i3d', 's3d'):
        conv = I3DConv if mixer == 'i3d' else S3DConv
        return conv(dim, kernel_size, **ssm, device=device, dtype=dtype)
    if mixer == 'conv2d':
        padding = dilation * (kernel_size - 1) // 2
        return nn.Conv2d(
            dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim, device=device, dtype=dtype
        )
    layer = S4ND if mixer == 's4nd' else RasterS4ND
    return layer(dim, grid, **ssm, device=device, dtype=dtype)


class ChannelOutput(nn.Module):
    """What follows a mixer: GELU -> 1x1, then GLU if gated. (B, C, h, w) -> (B, out_chs, h, w)."""

    def __init__(self, in_chs: int, out_chs: int, gated: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.gated = gated
        self.proj = nn.Conv2d(in_chs, 2 * out_chs if gated else out_chs, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(F.gelu(x))
        return F.glu(x, dim=1) if self.gated else x


class ChannelMlp(nn.Module):
    """LayerNorm -> linear to `ratio` times the width -> GELU -> linear, optionally scaled. (B, C, …) -> the same.

    Args:
        layer_scale: initial value of a learned scale a channel, None for none.
    """

    def __init__(
        self, dim: int, ratio: float = 4.0, layer_scale: float | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(ratio * dim), **dd)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        x = self.scale(self.mlp(self.norm(x)))
        return x.movedim(-1, 1)
