"""What the video families share: parts of the image models on every frame, and timm's interface for clips.

Only the mixers know about time. Shapes: B batch, C channels, T frames, (H, W) pixels, (t, h, w) positions of a feature
map. A *grid* is the (t, h, w) that a layer is trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.models._backbone import Backbone
from s4nd.models._parts import image_size

ClipGrid = tuple[int, int, int]

MIXERS = ('s4nd', 'i3d', 's3d')
# Keywords of a three-axis `S4ND` that are about time.
_TIME_ONLY = ('bidirectional', 'padding')


@register_notrace_function
def check_clips(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    """`x` itself if it is (B, in_chans, T, H, W) with H, W >= min_size, else a ValueError that shows its shape."""
    if x.dim() == 5 and x.shape[1] != in_chans and x.shape[2] == in_chans:
        raise ValueError(
            f'{list(x.shape)} looks like (B, T, C, H, W): expected (B, C, T, H, W), channels before frames, '
            f'with {in_chans} channels (x.transpose(1, 2))'
        )
    if x.dim() != 5 or x.shape[1] != in_chans or x.shape[2] < 1 or min(x.shape[3:]) < min_size:
        raise ValueError(
            f'expected clips (batch, {in_chans}, frames, height, width), {min_size} pixels a side or more, '
            f'got {list(x.shape)}'
        )
    return x


@register_notrace_function
def fold_time(x: Tensor, patch: int) -> Tensor:
    """(B, C, T, H, W) -> (B, C·patch, ⌈T / patch⌉, H, W); the last frame stands for those that are missing."""
    missing = -x.shape[2] % patch
    if missing:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


@register_notrace_function
def as_frames(y: Tensor, frames: int, height: int) -> Tensor:
    """(B, C, frames · height, w) -> (B, C, frames, height, w); what was pooled, (B, C), as it is."""
    return y if y.dim() == 2 else y.unflatten(2, (frames, height))


class EachFrame(nn.Module):
    """An image module on every frame: (B, C, t, h, w) -> (B, C', t, h', w')."""

    def __init__(self, frames: nn.Module) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        y = self.frames(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    @torch.jit.ignore
    def set_grid(self, grid: ClipGrid) -> ClipGrid:
        return (grid[0], *self.frames.set_grid(grid[1:]))


class ClipStem(EachFrame):
    """An image stem on every `time_patch` frames, whose channels it takes together.

    (B, in_chans, T, H, W) -> (B, dim, ⌈T / time_patch⌉, h, w). Where the frames do not divide evenly the last one is
    repeated, so one frame is enough.

    Args:
        frames: stem of an image model with in_chans · time_patch channels.
    """

    __jit_unused_properties__ = ['extent']

    def __init__(self, frames: nn.Module, in_chans: int, time_patch: int) -> None:
        super().__init__(frames)
        self.in_chans, self.time_patch = in_chans, time_patch
        self.min_size, self.follows_size = frames.min_size, frames.follows_size

    def forward(self, x: Tensor) -> Tensor:
        x = check_clips(x, self.in_chans, self.frames.min_size)
        if self.time_patch > 1:
            x = fold_time(x, self.time_patch)
        y = self.frames(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    @property
    def extent(self) -> tuple[float, float] | None:
        """Length of the kernels of an 's4nd' stem, in pixels of the training size; None for any other."""
        return getattr(self.frames, 'extent', None)

    @torch.jit.ignore
    def set_grid(self, grid: ClipGrid) -> ClipGrid:
        return (-(-grid[0] // self.time_patch), *self.frames.set_grid(grid[1:]))


class VideoBackbone(Backbone):
    """Base of the video families: (B, in_chans, T, H, W) -> logits (B, num_classes), averaged over time and space.

    Any number of frames and any size run. Another number of frames is taken for the same duration at another frame
    rate, as another size is for the same scene; `set_time_step` says otherwise.

    Args: as `Backbone`, and
        num_frames: frames of the training clips.
    """

    def __init__(self, num_frames: int, **parts: Any) -> None:
        self.num_frames = num_frames
        super().__init__(**parts)

    @torch.jit.ignore
    def set_time_step(self, step: float | None) -> None:
        """How far apart the frames of an input are, in units of the training clips' distance; not part of the weights.

        None, the default: num_frames / T, the same duration at any frame rate. 1: as in training, whatever their
        number, so that a longer clip is a longer time. 0.5: twice the frame rate. Convolutions do not know about it.

        Raises:
            ValueError: a step that is not positive and finite.
        """
        for layer in self.modules():
            if isinstance(layer, S4ND) and layer.spatial_dims == 3:
                layer.set_step(0, step)

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None) -> None:
        """Re-anchor trained weights to another training size and number of frames, each kept where None.

        As `Backbone.set_input_size`: not needed for running at another one, and the function stays the same.

        Raises:
            ValueError: as there, and for less than one frame.
        """
        size = self.img_size if img_size is None else image_size(img_size)
        if min(size) < self.stem.min_size:
            raise ValueError(f'img_size must be at least {self.stem.min_size} a side, got {size}')
        self.num_frames = self.num_frames if num_frames is None else positive('num_frames', num_frames)
        size = size if self.stem.follows_size else self.img_size
        self._anchor(size, (self.num_frames, *size))

    @torch.jit.ignore
    def _record_size(self, **args: Any) -> None:
        super()._record_size(num_frames=self.num_frames, **args)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, t, h, w) -> logits (B, num_classes), or pooled features where `pre_logits`."""
        # The heads of timm are for images: to a pool over all positions, frames may as well be rows.
        y = x.flatten(2, 3)
        y = self.head(y, pre_logits=True) if pre_logits else self.head(y)
        return as_frames(y, x.shape[2], x.shape[3])


def positive(name: str, value: int) -> int:
    """`value` if it is a positive integer, else a ValueError that names it."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')
    return value


def clip_ssm(ssm: Mapping[str, Any], dim: int, time_tied: bool) -> dict[str, Any]:
    """Keywords of a three-axis `S4ND` of width `dim`; not tied: every feature has its own A and B in time."""
    if time_tied:
        return dict(ssm)
    n_ssm = ssm['n_ssm']
    space = tuple(n_ssm[1:]) if isinstance(n_ssm, Sequence) else (n_ssm, n_ssm)
    return dict(ssm, n_ssm=(dim, *space))


def frame_ssm(ssm: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of the keywords for a layer that sees one frame: those of height and width."""
    axes = {name: value for name, value in ssm.items() if name not in _TIME_ONLY}
    return {
        name: tuple(value[1:]) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in axes.items()
    }
