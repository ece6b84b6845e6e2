"""CCNN: one convolutional network for signals on one, two or three axes (arXiv 2206.03398).

Every convolution is a depthwise `CKConv`, whose kernel is a network of the coordinates over all axes, and a linear map
of channels. `spatial_dims` is all that changes from sequences to images and volumes: there is no stride and no pooling
but the last, and the parameters are the same but for the number of coordinates. `s4nd_ccnn_4_140` and
`s4nd_ccnn_6_380` are the published sizes.

Shapes: B batch, C channels, L1 … LD sizes of the axes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_model_deprecations
from torch import Tensor, nn

from s4nd.layers import CKConv
from s4nd.models._arguments import choose, image_size
from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import ChannelDrop, ChannelNorm, SizedLayer, check_input
from s4nd.weights import with_shipped

__all__ = ['CCNN', 'CCNNBlock', 'checkpoint_filter_fn']

torch.fx.wrap('check_input')

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Pointwise(nn.Linear):
    """Linear map of channels: (B, in_chs, L1 … LD) -> (B, out_chs, L1 … LD), the same parameters for any D."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(x.flatten(2), self.weight.unsqueeze(-1), self.bias, 1, 0, 1, 1)  # (all, for int8 by torch.fx)
        return y.unflatten(2, x.shape[2:])


def make_norm(norm: str, dim: int, axes: int, **dd: Any) -> nn.Module:
    """Build 'batch' or 'layer' norm of (B, dim, L1 … LD)."""
    choose('norm', norm, ('batch', 'layer'))
    return _BATCH_NORMS[axes](dim, **dd) if norm == 'batch' else ChannelNorm(dim, 1e-5, **dd)


class CCNNStem(SizedLayer):
    """CKConv -> linear -> norm -> GELU: (B, in_chans, L1 … LD) -> (B, dim, L1 … LD)."""

    def __init__(
        self, in_chans: int, dim: int, grid: tuple[int, ...], mixer_args: Mapping[str, Any], norm: str, **dd: Any
    ) -> None:
        super().__init__(grid, dd.get('device'))
        self.in_chans, self.spatial_dims = in_chans, len(grid)
        self.conv = CKConv(in_chans, grid, **mixer_args, **dd)
        self.proj = Pointwise(in_chans, dim, **dd)
        self.norm = make_norm(norm, dim, len(grid), **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = check_input(x, self.in_chans, self.spatial_dims, 1)
        self.notice(x, self.spatial_dims)
        return F.gelu(self.norm(self.proj(self.conv(x))))

    @torch.jit.ignore
    def resize(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Take another training grid; returns the one that leaves, the same."""
        self.grid = self.conv.grid = grid
        return grid


class CCNNBlock(nn.Module):
    """Residual block (B, dim, L1 … LD) -> the same: norm -> CKConv -> linear -> GELU -> linear -> GELU.

    Args:
        dim: channels.
        grid: size of each axis in training.
        mixer_args: keywords of `CKConv`.
        proj_drop: dropout of whole channels, after the first GELU.
        drop_path: probability that a sample skips the block in training.
        dim_out: channels out; None: dim. Others than dim come by a linear map.
        norm: 'batch' or 'layer' (over channels).
        prenorm: whether the norm stands before the convolution, or after the sum.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        mixer_args: Mapping[str, Any],
        *,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        dim_out: int | None = None,
        norm: str = 'batch',
        prenorm: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        dim_out = dim if dim_out is None else dim_out
        self.prenorm = prenorm
        self.norm = make_norm(norm, dim if prenorm else dim_out, len(grid), **dd)
        self.conv = CKConv(dim, grid, **mixer_args, **dd)
        self.proj = Pointwise(dim, dim_out, **dd)
        self.drop = ChannelDrop(proj_drop)
        self.out = Pointwise(dim_out, dim_out, **dd)
        self.shortcut = nn.Identity() if dim_out == dim else Pointwise(dim, dim_out, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.proj(self.conv(self.norm(x) if self.prenorm else x)))
        y = self.drop(y.flatten(2)).unflatten(2, y.shape[2:])
        y = self.shortcut(x) + self.drop_path(F.gelu(self.out(y)))
        return y if self.prenorm else self.norm(y)


class CCNN(Backbone):
    """Stem, `sum(depths)` blocks of width `dim`, norm, mean pool, linear: (B, in_chans, L1 … LD) -> (B, num_classes).

    Args:
        spatial_dims: D, the number of axes: 1, 2 or 3.
        img_size: training size, one number for all axes or one for each. Other sizes run by themselves, as the same
            scene sampled differently.
        grid: the same where D is not 2, for timm takes `img_size` for a height and a width; `create_model` moves it.
        dim: width. depths: blocks between feature levels.
        mixer_args: keywords of every `CKConv` (`timm.create_model` takes them one by one as well).
        norm, prenorm, proj_drop_rate: see `CCNNBlock`.

    Raises:
        ValueError: `spatial_dims` is not 1, 2 or 3, an axis is too short for a network, or sizes are not positive.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        spatial_dims: int = 2,
        img_size: int | tuple[int, ...] = 32,
        grid: int | tuple[int, ...] | None = None,
        dim: int = 140,
        depths: tuple[int, ...] = (1, 1, 2),
        mixer_args: Mapping[str, Any] | None = None,
        norm: str = 'batch',
        prenorm: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if spatial_dims not in _BATCH_NORMS:
            raise ValueError(f'spatial_dims must be 1, 2 or 3, got {spatial_dims!r}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        size = image_size(img_size if grid is None else grid, spatial_dims)
        options = dict(mixer_args or {})
        block = {'norm': norm, 'prenorm': prenorm, 'proj_drop': proj_drop_rate, **dd}
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        super().__init__(
            stem=CCNNStem(in_chans, dim, size, options, norm, **dd),
            stages=[
                Stage([CCNNBlock(dim, size, options, drop_path=p, **block) for p in stage]) for stage in drop_paths
            ],
            norm=make_norm(norm, dim, spatial_dims, **dd),
            head=ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=[dict(num_chs=dim, reduction=1) for _ in depths],
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )
        self.spatial_dims = spatial_dims

    @classmethod
    def mixer_class(cls, args: Mapping[str, Any]) -> type[nn.Module]:
        return CKConv

    @property
    def img_size(self) -> tuple[int, ...]:
        """Training size of each axis."""
        return self.stem.grid

    @property
    def num_frames(self) -> None:
        """None: the first axis of three need not be time."""
        return None

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        for module in self.modules():
            if isinstance(module, Pointwise):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
            elif module is self.head.fc and isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif needs_reset and isinstance(module, (CKConv, ChannelNorm, *_BATCH_NORMS.values())):
                module.reset_parameters()  # type: ignore[attr-defined]

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, ...]) -> None:
        """Give every layer the grid of a model built at this size; no parameter changes (`Backbone.set_input_size`).

        Raises:
            ValueError: not one positive integer or one for each axis.
        """
        self._resize(image_size(img_size, self.spatial_dims))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that timm's optimizers should not decay: those of the kernels."""
        return {'*.conv.kernel.*'}


def _cfg() -> dict[str, Any]:
    return model_cfg(
        num_classes=10,
        input_size=(3, 32, 32),
        pool_size=(32, 32),
        crop_pct=1.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        paper_ids='arXiv:2206.03398',
    )


default_cfgs = generate_default_cfgs(
    with_shipped({f's4nd_ccnn_{size}.untrained': _cfg() for size in ('mini', '4_140', '6_380')})
)


def _fit_channels(state_dict: Mapping[str, Any], model: CCNN) -> dict[str, Tensor]:
    """See `checkpoint_filter_fn`; in a model of other channels each has a kernel of those in the weights, in turn."""
    found = checkpoint_filter_fn(state_dict, model)
    channels = torch.arange(model.in_chans)
    for name in ('bias', 'kernel.network.out.weight', 'kernel.network.out.bias'):
        value = found.get(f'stem.conv.{name}')
        if value is not None and len(value) != len(channels):
            found[f'stem.conv.{name}'] = value[channels % len(value)]
    return found


def _create(variant: str, pretrained: bool, model_args: Mapping[str, Any], overrides: Mapping[str, Any]) -> Backbone:
    overrides = dict(overrides)
    if overrides.get('spatial_dims', 2) != 2 and 'img_size' in overrides:
        overrides['grid'] = overrides.pop('img_size')
    return create(CCNN, variant, pretrained, model_args, overrides, filter_fn=_fit_channels)


@register_model
def s4nd_ccnn_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """4 blocks of width 48, for a CPU."""
    return _create('s4nd_ccnn_mini', pretrained, dict(depths=(1, 1, 2), dim=48, mixer_args=dict(hidden=16)), kwargs)


@register_model
def s4nd_ccnn_4_140(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The published 4 blocks of width 140: 0.2 M parameters."""
    return _create('s4nd_ccnn_4_140', pretrained, dict(depths=(1, 1, 2), dim=140, mixer_args=dict(hidden=32)), kwargs)


@register_model
def s4nd_ccnn_6_380(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The published 6 blocks of width 380: 2 M parameters."""
    return _create('s4nd_ccnn_6_380', pretrained, dict(depths=(2, 2, 2), dim=380, mixer_args=dict(hidden=64)), kwargs)


register_model_deprecations(__name__, {name: f's4nd_{name}' for name in ('ccnn_mini', 'ccnn_4_140', 'ccnn_6_380')})
