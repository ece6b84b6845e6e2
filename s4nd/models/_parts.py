"""Parts of the blocks that the families share, and what brings images and clips to one form.

Shapes: B batch, C channels, T frames, (H, W) pixels, (h, w) positions of a feature map, L1 … LD sizes of any axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerScale, Mlp
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.layers.base import GridLayer, check_floating
from s4nd.ops.dispatch import CHANNELS_LAST
from s4nd.resolution import warn_of_size

# A plain torch.fx.symbolic_trace passes over them as well: they look at sizes, which a Proxy does not know.
for name in ('glu', 'lines_contiguous', 'to_map', 'from_map'):
    torch.fx.wrap(name)


@register_notrace_function
def check_input(x: Tensor, in_chans: int, axes: int, min_size: int) -> Tensor:
    """Return x if it is a signal of `axes` axes with `in_chans` channels, none empty, and a height and width that
    suffice.

    Raises:
        ValueError: for anything else; the message shows the shape.
    """
    shape = list(x.shape)
    if axes == 3 and len(shape) == 5 and shape[1] != in_chans and shape[2] == in_chans:
        raise ValueError(
            f'{shape} looks like (B, T, C, H, W): expected (B, C, T, H, W), channels before frames, with {in_chans} '
            'channels (x.transpose(1, 2))'
        )
    if len(shape) != axes + 2 or shape[1] != in_chans or min(shape[2:]) < 1 or min(shape[-2:]) < min_size:
        name, sizes = 'images', 'height, width'
        if axes == 1:
            name, sizes = 'signals', 'length'
        elif axes == 3:
            name, sizes = 'clips', 'frames, height, width'
        raise ValueError(
            f'expected {name} (batch, {in_chans}, {sizes}) with {min_size} pixels or more per side, got {shape}'
        )
    check_floating(x)
    return x


@register_notrace_function
def fold_time(x: Tensor, patch: int) -> Tensor:
    """(B, C, T, H, W) -> (B, C·patch, ⌈T / patch⌉, H, W), the last frame repeated where some are missing."""
    if patch == 1:
        return x
    missing = -x.shape[2] % patch
    if missing:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


@register_notrace_function
def to_frames(x: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) -> frames (B·T, C, H, W); images as they are."""
    return x if x.dim() == 4 else x.transpose(1, 2).flatten(0, 1)


@register_notrace_function
def from_frames(y: Tensor, x: Tensor) -> Tensor:
    """Frames (B·T, C', h, w) of the clips x (B, C, T, H, W) -> (B, C', T, h, w); where x are images, as they are."""
    return y if x.dim() == 4 else y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


@register_notrace_function
def to_map(x: Tensor) -> Tensor:
    """(B, C, L1, …, LD) -> an image (B, C, h, w) of the same values, for timm's heads; images as they are."""
    return x.unsqueeze(-1) if x.dim() == 3 else x.flatten(2, -2)


@register_notrace_function
def from_map(y: Tensor, x: Tensor) -> Tensor:
    """What a head makes of `to_map(x)`: pooled (B, C') as it is, else (B, C', L1, …, LD) with the sizes of x."""
    return y if y.dim() == 2 or x.dim() == 4 else y.flatten(2).unflatten(2, x.shape[2:])


def channels_first(x: Tensor) -> Tensor:
    """(B, L1, …, LD, C) -> (B, C, L1, …, LD), a view."""
    return x.movedim(x.dim() - 1, 1)  # exporters of old ONNX opsets take no -1 here


@register_notrace_function
def lines_contiguous(x: Tensor) -> Tensor:
    """Contiguous where x is (B, C, L), for FFTs along L; maps (B, C, L1, L2, …) as they are."""
    return x.contiguous() if x.dim() == 3 else x


@register_notrace_function
def glu(x: Tensor) -> Tensor:
    """Gate one half of the channels by the other: (B, 2C, …) -> (B, C, …)."""
    # On channels_last tensors F.glu is four times slower along the channels as an inner axis than as the last one.
    return F.glu(x, 1) if x.is_contiguous() else channels_first(F.glu(x.movedim(1, -1), -1))


class SizedLayer(GridLayer):
    """Base of the stems, which know the training size of the model.

    Where nobody gave one (`default_size`), training at another, as by timm's --img-size, is said once.
    """

    def __init__(self, grid: Sequence[int], device: Any = None) -> None:
        super().__init__(grid, device)
        self.default_size = False

    def notice(self, x: Tensor, axes: int) -> None:
        """Take note of the size of an input, of which `img_size` says the last `axes`."""
        if self.training and self.default_size and not torch.jit.is_scripting():
            self._notice(x, axes)

    @torch.jit.unused
    def _notice(self, x: Tensor, axes: int) -> None:
        if isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling():
            return
        self.default_size = False
        warn_of_size(x.shape[-axes:], self._grid[-axes:])


class LayoutModule(nn.Module):
    """Base of the models: `to(memory_format=…)` also where weights of images and of clips stand side by side."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move and convert as any module; channels_last and channels_last_3d mean the one of each weight's rank."""
        if kwargs.get('memory_format') in CHANNELS_LAST.values():
            # torch itself refuses 4-dimensional weights of a model in channels_last_3d, and 5-dimensional ones.
            del kwargs['memory_format']
            self._apply(lambda t: t.contiguous(memory_format=CHANNELS_LAST[t.dim()]) if t.dim() in (4, 5) else t)
        return super().to(*args, **kwargs) if args or kwargs else self


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, L1, …, LD), as timm's LayerNorm2d for any D; maps leave channels_last."""

    def __init__(self, dim: int, eps: float = 1e-6, device: Any = None, dtype: Any = None) -> None:
        super().__init__(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = channels_first(F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps))
        return lines_contiguous(y)


class ChannelDrop(nn.Dropout1d):
    """Dropout of whole channels of (B, C, L1, …, LD), the same at all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout1d(x.flatten(2), self.p).reshape(x.shape) if self.training else x


class ChannelOutput(nn.Module):
    """What follows a mixer: GELU -> 1x1, then GLU if gated. (B, C, L1, …, LD) -> (B, out_chs, L1, …, LD), D 2 or 3.

    drop: dropout of whole channels after the GELU and at the end, in training.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        gated: bool = True,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.drop = ChannelDrop(drop) if drop > 0.0 else nn.Identity()
        self.proj = nn.Conv2d(in_chs, 2 * out_chs if gated else out_chs, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(to_map(self.drop(F.gelu(x))))
        return self.drop(from_map(glu(y) if self.gated else y, x))


class ChannelMlp(nn.Module):
    """LayerNorm -> linear to `ratio` times the width -> GELU -> linear, optionally scaled. (B, C, …) -> the same.

    Args:
        layer_scale: initial value of a learned scale per channel, None for none.
    """

    def __init__(
        self, dim: int, ratio: float = 4.0, layer_scale: float | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(ratio * dim), **dd)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        x = self.scale(self.mlp(self.norm(x)))
        return channels_first(x)
