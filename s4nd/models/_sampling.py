"""What changes the size of a map: stems and downsampling, for images and, frame by frame, for clips.

Shapes: B batch, C channels, T frames, (H, W) pixels, (h, w) positions of a feature map. Stems and downsampling have
`resize(grid) -> grid`: take the training grid that enters, ([T,] H, W), and return the one that leaves.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, create_conv2d
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.models._arguments import choose, positive
from s4nd.models._mixers import assign_grid
from s4nd.models._parts import ChannelNorm, SizedLayer, check_input, fold_time, from_frames, glu, to_frames
from s4nd.resolution import area_resize

Grid = tuple[int, ...]

register_notrace_function(area_resize)
for name in ('area_pool', 'area_resize', 'check_input', 'fold_time', 'from_frames', 'glu', 'to_frames'):
    torch.fx.wrap(name)


@register_notrace_function
def area_pool(x: Tensor, stride: int) -> Tensor:
    """Average (B, C, h, w) over ceil(h / stride) x ceil(w / stride) equal cells that cover the whole map."""
    if x.shape[2] % stride == 0 and x.shape[3] % stride == 0:
        return F.avg_pool2d(x, stride)
    return area_resize(x, [(x.shape[2] + stride - 1) // stride, (x.shape[3] + stride - 1) // stride])


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


class Stem(SizedLayer):
    """Base of the stems: (B, in_chans, [T,] H, W) -> (B, dim, [t,] h, w), clips frame by frame, t = ⌈T / time_patch⌉.

    It stores the training size of the model, `grid`, with the weights.

    Args:
        grid: ([frames,] height, width) in training.
        patch: pixels per side that it takes together.
        time_patch: frames that it takes together, their channels side by side. The last frame is repeated where they do
            not divide evenly, so one frame is enough.
        min_size: smallest height and width accepted, in training and afterwards.

    Raises:
        ValueError: for sizes out of range.
    """

    def __init__(
        self, in_chans: int, grid: Grid, patch: int, time_patch: int = 1, min_size: int = 1, device: Any = None
    ) -> None:
        super().__init__(grid, device)
        self.in_chans, self.min_size = in_chans, min_size
        self.patch, self.time_patch = positive('patch', patch), positive('time_patch', time_patch)
        if len(grid) == 2 and time_patch > 1:
            raise ValueError(
                f'only clips have frames to take together: expected num_frames with time_patch={time_patch}'
            )
        self.check_size(grid)

    def forward(self, x: Tensor) -> Tensor:
        x = check_input(x, self.in_chans, len(self._grid), self.min_size)
        self.notice(x, 2)
        x = fold_time(x, self.time_patch)
        return from_frames(self.project(to_frames(x)), x)

    def project(self, x: Tensor) -> Tensor:
        """Map frames (n, in_chans · time_patch, H, W) -> (n, dim, h, w)."""
        raise NotImplementedError

    @torch.jit.ignore
    def check_size(self, grid: Grid) -> None:
        """Raise ValueError for a training grid that is smaller than the model sees."""
        if min(grid[-2:]) < self.min_size:
            raise ValueError(f'img_size must be at least {self.min_size} per side for this model, got {grid[-2:]}')

    @torch.jit.ignore
    def resize(self, grid: Grid) -> Grid:
        """Take another training grid; returns the one that leaves."""
        self.check_size(grid)
        self.grid = grid
        frames = tuple(-(-count // self.time_patch) for count in grid[:-2])
        return frames + tuple(self.cells(size) for size in grid[-2:])

    @torch.jit.ignore
    def cells(self, size: int) -> int:
        """Positions that stand for `size` pixels."""
        return size // self.patch


class PatchStem(Stem):
    """Non-overlapping patches by a strided convolution; sizes are rounded down.

    Args:
        norm: LayerNorm over channels after the convolution.
        resample: the physical extent of a patch is fixed, so an image of any size gives the token grid of the training
            size. The patch kernel is then a piecewise constant function of the position in the scene, resampled with
            the input by exact cell areas. Applying it equals averaging the image over the cells of the training grid
            first,
            which is what is done: the size of a patch need not be a whole number of pixels.
        The rest: as `Stem`.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        grid: Grid,
        patch: int,
        *,
        time_patch: int = 1,
        min_size: int = 1,
        norm: bool = False,
        resample: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_chans, grid, patch, time_patch, 1 if resample else min_size, device)
        self.resample = resample
        self.proj = nn.Conv2d(in_chans * time_patch, dim, patch, stride=patch, device=device, dtype=dtype)
        self.norm = ChannelNorm(dim, device=device, dtype=dtype) if norm else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        if self.resample:
            x = area_resize(x, self._grid[-2:])
        return self.norm(self.proj(x))


class S4NDStem(Stem):
    """S4ND from the image to 32 features -> average pool -> linear -> GLU (S4ND, arXiv 2210.06583).

    The kernels are continuous, so the features follow the resolution: at twice the size there are twice as many tokens
    per side; sizes are rounded up. Each of the 32 features sees every input channel through a kernel of its own.

    Args:
        layer: keywords of `S4ND`.
        norm: LayerNorm over channels at the end.
        extent: length of the kernels to each side, in pixels of the training size (one value, or height and width).
        The rest: as `Stem`.
    """

    hidden = 32

    def __init__(
        self,
        in_chans: int,
        dim: int,
        grid: Grid,
        patch: int,
        layer: Mapping[str, Any],
        *,
        extent: float | tuple[float, float] = 16,
        time_patch: int = 1,
        min_size: int = 1,
        norm: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_chans, grid, patch, time_patch, min_size, device)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        mixes = {'channels': self.hidden, 'skip': False, 'l_max': extent}
        self.mixer = S4ND(in_chans * time_patch, grid[-2:], **{**layer, **mixes}, **dd)
        self.pool = AreaPool(patch)
        self.proj = nn.Conv2d(self.hidden, 2 * dim, 1, **dd)
        self.norm = ChannelNorm(dim, **dd) if norm else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        y = self.mixer(x)  # a map for each pair of a feature and an input channel
        y = y.unflatten(1, (-1, x.shape[1])).sum(2)
        return self.norm(glu(self.proj(self.pool(y))))

    @torch.jit.ignore
    def resize(self, grid: Grid) -> Grid:
        after = super().resize(grid)
        self.mixer.grid = grid[-2:]
        return after

    @torch.jit.ignore
    def cells(self, size: int) -> int:
        return -(-size // self.patch)


def make_stem(
    stem: str, in_chans: int, dim: int, grid: Grid, patch: int, stem_args: Mapping[str, Any],
    layer: Mapping[str, Any], **options: Any,
) -> Stem:  # fmt: skip
    """A stem by name: 'patch' (strided convolution), 's4nd' (S4ND, then pooling) or 'resample' (fixed token grid).

    Args:
        stem_args: `time_patch`, and for 's4nd' `extent` and keywords of its `S4ND`, over those of `layer`.
        options: min_size, norm, device and dtype.

    Raises:
        ValueError: for an unknown name, and sizes out of range.
    """
    choose('stem', stem, ('patch', 's4nd', 'resample'))
    own = {name: value for name, value in stem_args.items() if name in ('extent', 'time_patch')}
    if stem == 's4nd':
        layer = {**layer, **{name: value for name, value in stem_args.items() if name not in own}}
        return S4NDStem(in_chans, dim, grid, patch, layer, **own, **options)
    return PatchStem(in_chans, dim, grid, patch, **stem_args, resample=stem == 'resample', **options)


class Downsample(nn.Module):
    """Halves height and width: (B, in_chs, [t,] h, w) -> (B, out_chs, [t,] h / 2, w / 2), clips frame by frame.

    Args:
        kind: 'conv' (norm -> 2x2 convolution, as ConvNeXt; odd sizes are rounded down) or 's4nd' (norm -> S4ND ->
            average pool -> linear -> GLU; rounded up).
        grid: training size of the input.
        layer: keywords of `S4ND`.
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
        layer: Mapping[str, Any],
        stride: int = 2,
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.kind = choose('downsample', kind, ('conv', 's4nd'))
        self.norm = ChannelNorm(in_chs, **dd)
        if kind == 's4nd':
            self.mixer = S4ND(in_chs, grid[-2:], **layer, **dd)
            self.pool = AreaPool(2) if stride == 2 else AvgPool2dSame(2 * dilation, 1)
            self.proj = nn.Conv2d(in_chs, 2 * out_chs, 1, **dd)
            self.gate = nn.GLU(dim=1)
        else:
            self.mixer, self.pool, self.gate = nn.Identity(), nn.Identity(), nn.Identity()
            conv = dict(stride=stride, dilation=dilation, padding=0 if stride == 2 else 'same', bias=True)
            self.proj = create_conv2d(in_chs, out_chs, 2, **conv, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = to_frames(self.norm(x))
        return from_frames(self.gate(self.proj(self.pool(self.mixer(y)))), x)

    @torch.jit.ignore
    def resize(self, grid: Grid) -> Grid:
        """Take another training grid; returns the one that leaves."""
        assign_grid(self.mixer, grid[-2:])
        round_up = 1 if self.kind == 's4nd' else 0
        return grid[:-2] + tuple((size + round_up) // 2 for size in grid[-2:])
