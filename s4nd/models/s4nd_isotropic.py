"""S4ND-Isotropic: residual blocks of one width at full resolution, for small images (CIFAR-sized).

A block is x + [norm -> mixer -> GELU -> 1x1 -> GLU](x) (S4ND, arXiv 2210.06583, section 4). The stem is a 1x1
convolution, so nothing but the mixers knows about pixels: with S4ND mixers the whole model follows the resolution.
The `conv2d_*` models are the equal-sized baseline: the same block with a depthwise convolution as the mixer.
"""

from collections.abc import Mapping
from typing import Any

from timm.layers import ClassifierHead, DropPath, calculate_drop_path_rates, get_norm_layer
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import ChannelOutput, Grid, choose, image_size, make_mixer
from s4nd.models._sampling import PatchStem

__all__ = ['IsotropicBlock', 'IsotropicS4ND', 'checkpoint_filter_fn']


class IsotropicBlock(nn.Module):
    """Pre-norm residual block (B, dim, h, w) -> (B, dim, h, w): norm -> mixer -> GELU -> 1x1 -> GLU.

    Args:
        dim: channels.
        grid: (height, width) the block is trained on.
        mixer: 's4nd' or 'conv2d'.
        kernel_size: side of the depthwise convolution, for 'conv2d'.
        ssm: keywords of `S4ND`, for 's4nd'.
        norm_layer: name of a timm norm over channels.
        drop_path: probability that a sample skips the block in training.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        mixer: str,
        kernel_size: int,
        ssm: Mapping[str, Any],
        norm_layer: str = 'layernorm2d',
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm = get_norm_layer(norm_layer)(dim, device=device, dtype=dtype)
        self.mixer = make_mixer(mixer, dim, grid, ssm, kernel_size, device=device, dtype=dtype)
        self.out = ChannelOutput(dim, dim, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.out(self.mixer(self.norm(x))))


class IsotropicS4ND(Backbone):
    """Stem 1x1, `sum(depths)` blocks of width `dim`, norm, mean pool, linear: (B, in_chans, H, W) -> (B, num_classes).

    Args:
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        patch: pixels a side that the stem takes together; above 1, the model no longer follows the size as a whole.
        dim: width. depths: blocks between feature levels.
        mixer: 's4nd', or 'conv2d' for the depthwise baseline.
        kernel_size: side of that convolution.
        kernel, kernel_options, init, d_state, n_ssm, dt_min, dt_max, bandlimit, window: of `S4ND`; 'conv2d' does not
            use them.
        norm_layer: 'layernorm2d' or 'batchnorm2d', in the blocks and at the end.

    Raises:
        ValueError: unknown mixer, kernel or init; sizes that are not positive.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 32,
        patch: int = 1,
        dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 2),
        mixer: str = 's4nd',
        kernel_size: int = 5,
        kernel: str = 's4d',
        kernel_options: Mapping[str, Any] | None = None,
        init: str | None = None,
        d_state: int = 20,
        n_ssm: int | None = None,
        dt_min: float = 0.1,
        dt_max: float = 1.0,
        bandlimit: float | None = None,
        window: float | tuple[float, float] = 1.0,
        norm_layer: str = 'layernorm2d',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        choose('mixer', mixer, ('s4nd', 'conv2d'))
        choose('norm_layer', norm_layer, ('layernorm2d', 'batchnorm2d'))
        size = image_size(img_size)
        if patch < 1 or min(size) < patch:
            raise ValueError(f'patch must be from 1 pixel to img_size, got patch={patch} and img_size={size}')
        ssm = dict(
            kernel=kernel, kernel_options=kernel_options, init=init, d_state=d_state, n_ssm=n_ssm, dt_min=dt_min,
            dt_max=dt_max, bandlimit=bandlimit, window=window,
        )  # fmt: skip
        stem = PatchStem(in_chans, dim, patch, patch, norm=False, **dd)
        grid = stem.set_grid(size)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        super().__init__(
            stem=stem,
            stages=[
                Stage([IsotropicBlock(dim, grid, mixer, kernel_size, ssm, norm_layer, p, **dd) for p in stage])
                for stage in drop_paths
            ],
            norm=get_norm_layer(norm_layer)(dim, **dd),
            head=ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=[dict(num_chs=dim, reduction=patch) for _ in depths],
            in_chans=in_chans,
            num_classes=num_classes,
            img_size=size,
            drop_rate=drop_rate,
        )


def _cfg() -> dict[str, Any]:
    return model_cfg(
        num_classes=10,
        input_size=(3, 32, 32),
        pool_size=(32, 32),
        crop_pct=1.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


default_cfgs = generate_default_cfgs(
    {
        's4nd_isotropic_mini.untrained': _cfg(),
        's4nd_isotropic_tiny.untrained': _cfg(),
        's4nd_isotropic_small.untrained': _cfg(),
        'conv2d_isotropic_mini.untrained': _cfg(),
        'conv2d_isotropic_tiny.untrained': _cfg(),
        'conv2d_isotropic_small.untrained': _cfg(),
    }
)


@register_model
def s4nd_isotropic_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """0.27 M parameters, 6 blocks of width 128."""
    return create(IsotropicS4ND, 's4nd_isotropic_mini', pretrained, dict(depths=(2, 2, 2), dim=128, d_state=20), kwargs)


@register_model
def s4nd_isotropic_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """1.0 M parameters, 6 blocks of width 256."""
    return create(IsotropicS4ND, 's4nd_isotropic_tiny', pretrained, dict(depths=(2, 2, 2), dim=256, d_state=32), kwargs)


@register_model
def s4nd_isotropic_small(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """3.6 M parameters, 6 blocks of width 512."""
    return create(
        IsotropicS4ND, 's4nd_isotropic_small', pretrained, dict(depths=(2, 2, 2), dim=512, d_state=32), kwargs
    )


# The width of a baseline is what makes it as large as its twin.
@register_model
def conv2d_isotropic_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_mini: depthwise 5x5."""
    return create(
        IsotropicS4ND, 'conv2d_isotropic_mini', pretrained, dict(mixer='conv2d', depths=(2, 2, 2), dim=140), kwargs
    )


@register_model
def conv2d_isotropic_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_tiny: depthwise 5x5."""
    return create(
        IsotropicS4ND, 'conv2d_isotropic_tiny', pretrained, dict(mixer='conv2d', depths=(2, 2, 2), dim=280), kwargs
    )


@register_model
def conv2d_isotropic_small(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The baseline of s4nd_isotropic_small: depthwise 5x5."""
    return create(
        IsotropicS4ND, 'conv2d_isotropic_small', pretrained, dict(mixer='conv2d', depths=(2, 2, 2), dim=536), kwargs
    )
