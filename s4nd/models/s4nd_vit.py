"""S4ND-ViT: a vision transformer with S4ND (arXiv 2210.06583) for its attention.

No class token and no positional embedding: the patches stay a map (B, C, h, w), the layers know their positions, and
the head pools the mean. `s4nd_vit_*_patch16` mix over two axes; `s4nd_vit_base_patch16_1d` is the published recipe, one
88,786,408 parameters.
"""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import ChannelMlp, ChannelOutput, Grid, choose, image_size, level_windows, make_mixer
from s4nd.models._sampling import make_stem

__all__ = ['MixerBlock', 'S4NDViT', 'checkpoint_filter_fn']


class MixerBlock(nn.Module):
    """Two pre-norm residual steps (B, dim, h, w) -> (B, dim, h, w): mixer -> GELU -> linear (-> GLU), then the MLP.

    Args:
        dim: channels.
        grid: (height, width) of the patches in training.
        mixer: 's4nd' (two axes) or 's4nd_1d' (raster order).
        gated: GLU after the linear map.
        ssm: keywords of `S4ND`, its `channels` included.
        mlp_ratio: hidden width of the MLP over `dim`.
        drop_path: probability that a sample skips a step in training.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        mixer: str,
        gated: bool,
        ssm: Mapping[str, Any],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = LayerNorm2d(dim, **dd)
        self.mixer = make_mixer(mixer, dim, grid, ssm, **dd)
        self.out = ChannelOutput(ssm['channels'] * dim, dim, gated, **dd)
        self.mlp = ChannelMlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.out(self.mixer(self.norm(x))))
        return x + self.drop_path(self.mlp(x))


class S4NDViT(Backbone):
    """Patches, blocks, norm, mean pool, linear: (B, in_chans, H, W) -> (B, num_classes).

    Args:
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        patch_size: pixels a side of a patch.
        embed_dim: width.
        depths: blocks between feature levels.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        mixer: 's4nd' (two axes) or 's4nd_1d' (the published raster order; it does not follow a change of resolution).
        stem: 'patch' (convolution), 's4nd' (S4ND, then pooling) or 'resample' (patches of fixed physical extent: every
            input size gives the token grid of the training size).
        stem_extent: length of the kernels of the 's4nd' stem to each side, in pixels of the training size.
        gated: GLU after the linear map that follows the mixer.
        channels: kernels a feature.
        kernel, kernel_options, init, d_state, n_ssm, dt_min, dt_max, bandlimit: of every `S4ND`.
        window: of every `S4ND`; a pair for each grid where `set_input_size` made them differ (`level_windows`).

    Raises:
        ValueError: unknown mixer, stem, kernel or init; images smaller than a patch.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depths: tuple[int, ...] = (3, 3, 3, 3),
        mlp_ratio: float = 4.0,
        mixer: str = 's4nd',
        stem: str = 'patch',
        stem_extent: float | tuple[float, float] = 16,
        gated: bool = True,
        channels: int = 1,
        kernel: str = 's4d',
        kernel_options: Mapping[str, Any] | None = None,
        init: str | None = None,
        d_state: int = 64,
        n_ssm: int | None = None,
        dt_min: float = 0.1,
        dt_max: float = 1.0,
        bandlimit: float | None = None,
        window: float | tuple[Any, ...] = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        choose('mixer', mixer, ('s4nd', 's4nd_1d'))
        size = image_size(img_size)
        ssm = dict(
            kernel=kernel, kernel_options=kernel_options, init=init, d_state=d_state, n_ssm=n_ssm, dt_min=dt_min,
            dt_max=dt_max, bandlimit=bandlimit,
        )  # fmt: skip
        # What is on the grid of the image, then of each stage (the patches).
        windows = level_windows(window, len(depths))
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stem_ssm = dict(ssm, window=windows[0])
        mixer_ssm = dict(ssm, channels=channels, window=windows[1] if mixer == 's4nd' else 0.0)
        stem_module = make_stem(
            stem, in_chans, embed_dim, patch_size, patch_size, size, stem_ssm, norm=False, extent=stem_extent, **dd
        )
        grid: Grid = stem_module.set_grid(size)
        super().__init__(
            stem=stem_module,
            stages=[
                Stage([MixerBlock(embed_dim, grid, mixer, gated, mixer_ssm, mlp_ratio, p, **dd) for p in stage])
                for stage in drop_paths
            ],
            norm=LayerNorm2d(embed_dim, **dd),
            head=ClassifierHead(embed_dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=[dict(num_chs=embed_dim, reduction=patch_size) for _ in depths],
            in_chans=in_chans,
            num_classes=num_classes,
            img_size=size,
            drop_rate=drop_rate,
        )


def _cfg() -> dict[str, Any]:
    return model_cfg(
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(14, 14),
        min_input_size=(3, 16, 16),
        crop_pct=0.9,
        mean=IMAGENET_INCEPTION_MEAN,
        std=IMAGENET_INCEPTION_STD,
    )


default_cfgs = generate_default_cfgs(
    {
        's4nd_vit_tiny_patch16.untrained': _cfg(),
        's4nd_vit_small_patch16.untrained': _cfg(),
        's4nd_vit_base_patch16.untrained': _cfg(),
        's4nd_vit_base_patch16_1d.untrained': _cfg(),
    }
)


@register_model
def s4nd_vit_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Width 192, 12 blocks."""
    return create(S4NDViT, 's4nd_vit_tiny_patch16', pretrained, dict(embed_dim=192, depths=(3, 3, 3, 3)), kwargs)


@register_model
def s4nd_vit_small_patch16(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Width 384, 12 blocks."""
    return create(S4NDViT, 's4nd_vit_small_patch16', pretrained, dict(embed_dim=384, depths=(3, 3, 3, 3)), kwargs)


@register_model
def s4nd_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """Width 768, 12 blocks."""
    return create(S4NDViT, 's4nd_vit_base_patch16', pretrained, dict(embed_dim=768, depths=(3, 3, 3, 3)), kwargs)


@register_model
def s4nd_vit_base_patch16_1d(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """The published ViT-B/16 with one-axis S4ND for attention: 88,786,408 parameters."""
    model_args = dict(
        embed_dim=768,
        depths=(3, 3, 3, 3),
        mixer='s4nd_1d',
        channels=2,
        kernel='s4',
        dt_min=0.001,
        dt_max=0.1,
    )
    return create(S4NDViT, 's4nd_vit_base_patch16_1d', pretrained, model_args, kwargs)
