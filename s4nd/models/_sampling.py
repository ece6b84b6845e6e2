"""What changes the size of a map: stems, downsampling, averaging over the cells of another grid.

Shapes: B batch, C channels, (H, W) pixels, (h, w) positions of a feature map. Stems and downsampling have
`set_grid(grid) -> grid`: anchor to the training grid that enters, return the one that leaves.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, LayerNorm2d, create_conv2d
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.models._parts import Grid, check_image, choose, set_grids


@register_notrace_function
def area_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Average (B, C, H, W) over the cells of another grid, weighting pixels by the area they share with a cell."""
    if x.shape[2] != height:
        x = torch.matmul(_cell_overlap(x.shape[2], height, x), x)
    if x.shape[3] != width:
        x = torch.matmul(x, _cell_overlap(x.shape[3], width, x).transpose(0, 1))
    return x


@register_notrace_function
def area_pool(x: Tensor, stride: int) -> Tensor:
    """Average (B, C, h, w) over ceil(h / stride) x ceil(w / stride) equal cells that cover the whole map."""
    if x.shape[2] % stride == 0 and x.shape[3] % stride == 0:
        return F.avg_pool2d(x, stride)
    return area_resize(x, (x.shape[2] + stride - 1) // stride, (x.shape[3] + stride - 1) // stride)


def _cell_overlap(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): the share of pixel j in cell i where both grids cover the same extent; rows sum to 1."""
    # In units of 1 / (size · cells) of the extent all edges are integers.
    cell = torch.arange(cells, device=like.device).unsqueeze(1) * size
    pixel = torch.arange(size, device=like.device) * cells
    overlap = torch.minimum(cell + size, pixel + cells) - torch.maximum(cell, pixel)
    return overlap.clamp(min=0).to(like.dtype) / size


class AreaPool(nn.Module):
    """Average pooling that covers the whole map whatever its size: (B, C, h, w) -> (B, C, ⌈h/stride⌉, ⌈w/stride⌉).

    Where the stride does not divide the size the cells are not whole positions, and the layers that follow still see
    the whole scene: their step is grid / size.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return area_pool(x, self.stride)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> Grid:
        return (-(-grid[0] // self.stride), -(-grid[1] // self.stride))


class PatchStem(nn.Module):
    """Non-overlapping patches by a strided convolution: (B, in_chans, H, W) -> (B, dim, H // patch, W // patch).

    Args:
        min_size: smallest height and width accepted, at least the patch.
        norm: LayerNorm over channels after the convolution.
    """

    follows_size = True

    def __init__(
        self, in_chans: int, dim: int, patch: int, min_size: int, norm: bool, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_chans, self.patch, self.min_size = in_chans, patch, min_size
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch, device=device, dtype=dtype)
        self.norm = LayerNorm2d(dim, device=device, dtype=dtype) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = check_image(x, self.in_chans, self.min_size)
        return self.norm(self.proj(x))

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> Grid:
        return (grid[0] // self.patch, grid[1] // self.patch)


class ResampleStem(PatchStem):
    """Patches whose physical extent is fixed: an image of any size gives the token grid of the training size.

    The patch kernel is a piecewise constant function of the position in the scene, resampled with the input by exact
    cell areas. Applying it equals averaging the image over the cells of the training grid first, which is what is
    done: the size of a patch need not be a whole number of pixels.
    """

    follows_size = False

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int,
        img_size: Grid,
        norm: bool,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_chans, dim, patch, min_size=1, norm=norm, device=device, dtype=dtype)
        self.size = img_size

    def forward(self, x: Tensor) -> Tensor:
        x = check_image(x, self.in_chans, self.min_size)
        x = area_resize(x, self.size[0], self.size[1])
        return self.norm(self.proj(x))


class S4NDStem(nn.Module):
    """S4ND from the image to 32 features -> average pool -> linear -> GLU (S4ND, arXiv 2210.06583).

    (B, in_chans, H, W) -> (B, dim, ⌈H/patch⌉, ⌈W/patch⌉). The kernels are continuous, so the features follow the
    resolution: at twice the size there are twice as many tokens a side.

    Args:
        patch: pixels a side that are averaged.
        min_size: smallest height and width accepted, at least the patch.
        img_size: training size in pixels.
        ssm: keywords of `S4ND`.
        norm: LayerNorm over channels at the end.
        extent: length of the kernels to each side, in pixels of the training size (one value, or height and width).
    """

    follows_size = True
    hidden = 32

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int,
        min_size: int,
        img_size: Grid,
        ssm: Mapping[str, Any],
        norm: bool,
        extent: float | tuple[float, float] = 16,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.in_chans, self.patch, self.min_size, self.img_size = in_chans, patch, min_size, img_size
        self.extent = (extent, extent) if isinstance(extent, (int, float)) else tuple(extent)
        self.mixer = S4ND(in_chans, img_size, out_channels=self.hidden, l_max=self.extent, **ssm, **dd)
        self.pool = AreaPool(patch)
        self.proj = nn.Conv2d(self.hidden, 2 * dim, 1, **dd)
        self.norm = LayerNorm2d(dim, **dd) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(check_image(x, self.in_chans, self.min_size))
        return self.norm(F.glu(self.proj(self.pool(x)), dim=1))

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> Grid:
        self.mixer.set_grid(grid)
        self.extent = tuple(e * (new / old) for e, new, old in zip(self.extent, grid, self.img_size, strict=True))
        self.img_size = grid
        return self.pool.set_grid(grid)


def make_stem(
    stem: str,
    in_chans: int,
    dim: int,
    patch: int,
    min_size: int,
    img_size: Grid,
    ssm: Mapping[str, Any],
    norm: bool,
    extent: float | tuple[float, float] = 16,
    device: Any = None,
    dtype: Any = None,
) -> nn.Module:
    """A stem by name: 'patch' (strided convolution), 's4nd' (S4ND, then pooling) or 'resample' (fixed token grid).

    Raises:
        ValueError: unknown name, a patch of less than a pixel, or an image smaller than `min_size`.
    """
    choose('stem', stem, ('patch', 's4nd', 'resample'))
    if patch < 1:
        raise ValueError(f'the patch must be at least 1 pixel a side, got {patch}')
    if min(img_size) < min_size:
        raise ValueError(f'img_size must be at least {min_size} a side for this model, got {img_size}')
    dd = {'device': device, 'dtype': dtype}
    if stem == 's4nd':
        return S4NDStem(in_chans, dim, patch, min_size, img_size, ssm, norm, extent, **dd)
    if stem == 'resample':
        return ResampleStem(in_chans, dim, patch, img_size, norm, **dd)
    return PatchStem(in_chans, dim, patch, min_size, norm, **dd)


class Downsample(nn.Module):
    """Halves height and width: (B, in_chs, h, w) -> (B, out_chs, h / 2, w / 2).

    Args:
        kind: 'conv' (norm -> 2x2 convolution, as ConvNeXt; odd sizes are rounded down) or 's4nd' (norm -> S4ND ->
            average pool -> linear -> GLU; rounded up).
        grid: training size of the input.
        ssm: keywords of `S4ND`.
        stride: 1 keeps the size; the window still spans two positions of the training grid, `dilation` apart.

    Raises:
        ValueError: unknown kind.
    """

    def __init__(
        self,
        kind: str,
        in_chs: int,
        out_chs: int,
        grid: Grid,
        ssm: Mapping[str, Any],
        stride: int = 2,
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.kind = choose('downsample', kind, ('conv', 's4nd'))
        self.norm = LayerNorm2d(in_chs, **dd)
        if kind == 's4nd':
            self.mixer = S4ND(in_chs, grid, **ssm, **dd)
            self.pool = AreaPool(2) if stride == 2 else AvgPool2dSame(2 * dilation, 1)
            self.proj = nn.Conv2d(in_chs, 2 * out_chs, 1, **dd)
            self.gate = nn.GLU(dim=1)
        else:
            self.mixer, self.pool, self.gate = nn.Identity(), nn.Identity(), nn.Identity()
            conv = dict(stride=stride, dilation=dilation, padding=0 if stride == 2 else 'same', bias=True)
            self.proj = create_conv2d(in_chs, out_chs, 2, **conv, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.proj(self.pool(self.mixer(self.norm(x)))))

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> Grid:
        set_grids(self.mixer, grid)
        round_up = 1 if self.kind == 's4nd' else 0
        return ((grid[0] + round_up) // 2, (grid[1] + round_up) // 2)
