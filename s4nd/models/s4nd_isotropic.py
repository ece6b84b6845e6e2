"""S4ND-Isotropic: residual blocks of one width at full resolution, for small images (CIFAR-sized) and clips.

A block is x + [norm -> mixer -> GELU -> 1x1 -> GLU](x) (S4ND, arXiv 2210.06583, section 4). The stem is a 1x1
convolution, so only the mixers depend on the sampling: with S4ND mixers the whole model follows size and frame rate.
The `conv2d_*` models are the baseline of equal size: the same block with a depthwise convolution as the mixer.

Shapes: B batch, T frames, (H, W) pixels, (t, h, w) positions of a feature map.
"""

from collections.abc import Mapping
from typing import Any

from timm.layers import ClassifierHead, DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._arguments import choose, training_grid
from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import ChannelNorm, ChannelOutput
from s4nd.models._sampling import PatchStem
from s4nd.weights import with_shipped

__all__ = ['IsotropicBlock', 'IsotropicS4ND', 'checkpoint_filter_fn']


class IsotropicBlock(nn.Module):
    """Pre-norm residual block (B, dim, [t,] h, w) -> the same: norm -> mixer -> GELU -> 1x1 -> GLU.

    Args:
        norm: of the input, over channels.
        mixer: module (B, dim, [t,] h, w) -> (B, width, [t,] h, w).
        drop_path: probability that a sample skips the block in training.
        proj_drop: dropout of whole channels after the GELU and after the GLU.
    """

    mixes_as_is = True  # so that a stage may make the taps of its mixer ahead

    def __init__(
        self,
        dim: int,
        norm: nn.Module,
        mixer: nn.Module,
        width: int,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.out = ChannelOutput(width, dim, drop=proj_drop, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The sum takes the format of its first part: channels_last, where the norm left it.
        return self.drop_path(self.out(self.mixer(self.norm(x)))) + x


class IsotropicS4ND(Backbone):
    """Stem, `sum(depths)` blocks of width `dim`, norm, mean pool, linear: (B, in_chans, [T,] H, W) -> (B, num_classes).

    Args:
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        num_frames: frames of the training clips; None for a model of images. Other numbers run by themselves, as the
            same duration at another frame rate (`set_input_size` says otherwise).
        patch, time_patch: pixels per side, and frames, that the stem takes together; above 1, the model no longer
            follows the size as a whole.
        dim: width. depths: blocks between feature levels.
        mixer: 's4nd', or 'conv2d' (depthwise 5x5), the baseline; for clips 's4nd', 'i3d' or 's3d'.
        mixer_args: keywords of `S4ND`, `DepthwiseConv`, `ClipS4ND`, `I3DConv` or `S3DConv` (`timm.create_model` takes
            them one by one as well).
        norm_layer: 'layernorm2d' or 'batchnorm2d', in the blocks and at the end.
        proj_drop_rate: dropout in the blocks, tied over positions (published for CIFAR-10: 0.1).

    Raises:
        ValueError: unknown mixer, kernel or init; sizes that are not positive.
    """

    mixers = ('s4nd', 'conv2d', 'i3d', 's3d')

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 32,
        num_frames: int | None = None,
        patch: int = 1,
        time_patch: int = 1,
        dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 2),
        mixer: str = 's4nd',
        mixer_args: Mapping[str, Any] | None = None,
        norm_layer: str = 'layernorm2d',
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        layer = self.mixer_class({'mixer': mixer, 'num_frames': num_frames})
        choose('norm_layer', norm_layer, ('layernorm2d', 'batchnorm2d'))
        batch_norm = nn.BatchNorm2d if num_frames is None else nn.BatchNorm3d
        norm = ChannelNorm if norm_layer == 'layernorm2d' else batch_norm
        options = dict(mixer_args or {}) if mixer == 's4nd' else {'kernel_size': 5, **(mixer_args or {})}
        width = dim * options.get('channels', 1)
        grid = training_grid(img_size, num_frames)
        stem = PatchStem(in_chans, dim, grid, patch, time_patch=time_patch, min_size=patch, **dd)
        grid = stem.resize(grid)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(drop_path: float) -> nn.Module:
            mixed = layer(dim, grid, **options, **dd)
            return IsotropicBlock(dim, norm(dim, **dd), mixed, width, drop_path, proj_drop_rate, **dd)

        super().__init__(
            stem=stem,
            stages=[Stage([block(rate) for rate in stage]) for stage in drop_paths],
            norm=norm(dim, **dd),
            head=ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=[dict(num_chs=dim, reduction=patch) for _ in depths],
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return model_cfg(
        num_classes=10,
        input_size=(3, 32, 32),
        crop_pct=1.0,
        **{'pool_size': (32, 32), 'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2470, 0.2435, 0.2616), **kwargs},
    )


default_cfgs = generate_default_cfgs(
    with_shipped(
        {
            's4nd_isotropic_mini.untrained': _cfg(),
            's4nd_isotropic_tiny.untrained': _cfg(),
            's4nd_isotropic_small.untrained': _cfg(),
            'conv2d_isotropic_mini.untrained': _cfg(),
            'conv2d_isotropic_tiny.untrained': _cfg(),
            'conv2d_isotropic_small.untrained': _cfg(),
            's4nd_isotropic3d_mini.untrained': _cfg(pool_size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        }
    )
)


@register_model
def s4nd_isotropic_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """0.27 M parameters, 6 blocks of width 128."""
    model_args = dict(depths=(2, 2, 2), dim=128, mixer_args=dict(d_state=20))
    return create(IsotropicS4ND, 's4nd_isotropic_mini', pretrained, model_args, kwargs)


@register_model
def s4nd_isotropic_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """1.0 M parameters, 6 blocks of width 256."""
    model_args = dict(depths=(2, 2, 2), dim=256, mixer_args=dict(d_state=32))
    return create(IsotropicS4ND, 's4nd_isotropic_tiny', pretrained, model_args, kwargs)


@register_model
def s4nd_isotropic_small(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """3.6 M parameters, 6 blocks of width 512."""
    model_args = dict(depths=(2, 2, 2), dim=512, mixer_args=dict(d_state=32))
    return create(IsotropicS4ND, 's4nd_isotropic_small', pretrained, model_args, kwargs)


# The width of a baseline is what makes it as large as its twin.
@register_model
def conv2d_isotropic_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_mini: depthwise 5x5."""
    model_args = dict(mixer='conv2d', depths=(2, 2, 2), dim=140)
    return create(IsotropicS4ND, 'conv2d_isotropic_mini', pretrained, model_args, kwargs)


@register_model
def conv2d_isotropic_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_tiny: depthwise 5x5."""
    model_args = dict(mixer='conv2d', depths=(2, 2, 2), dim=280)
    return create(IsotropicS4ND, 'conv2d_isotropic_tiny', pretrained, model_args, kwargs)


@register_model
def conv2d_isotropic_small(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_small: depthwise 5x5."""
    model_args = dict(mixer='conv2d', depths=(2, 2, 2), dim=536)
    return create(IsotropicS4ND, 'conv2d_isotropic_small', pretrained, model_args, kwargs)


@register_model
def s4nd_isotropic3d_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """0.1 M parameters, 4 blocks of width 64 on patches of 4 pixels, for small clips on a CPU."""
    model_args = dict(depths=(1, 1, 2), dim=64, patch=4, num_frames=16, mixer_args=dict(d_state=16))
    return create(IsotropicS4ND, 's4nd_isotropic3d_mini', pretrained, model_args, kwargs)
