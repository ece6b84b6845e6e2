"""S4ND-ViT: a vision transformer with S4ND (arXiv 2210.06583) for its attention.

No class token and no positional embedding: the patches stay a map (B, C, h, w), the layers know their positions, and
the head pools the mean. `s4nd_vit_*_patch16` mix over two axes; `s4nd_vit_base_patch16_1d` is the published recipe, one
axis over the patches in raster order: 88,786,408 parameters.
"""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import ClassifierHead, DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._arguments import training_grid
from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._mixers import image_args
from s4nd.models._parts import ChannelMlp, ChannelNorm, ChannelOutput
from s4nd.models._sampling import make_stem

__all__ = ['MixerBlock', 'S4NDViT', 'checkpoint_filter_fn']


class MixerBlock(nn.Module):
    """Two pre-norm residual steps (B, dim, h, w) -> the same: mixer -> GELU -> linear (-> GLU), then the MLP.

    Args:
        mixer: module (B, dim, h, w) -> (B, width, h, w).
        gated: GLU after the linear map.
        mlp_ratio: hidden width of the MLP over `dim`.
        drop_path: probability that a sample skips a step in training.
    """

    mixes_as_is = True  # so that a stage may make the taps of its mixer ahead

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        width: int,
        gated: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.norm = ChannelNorm(dim, **dd)
        self.mixer = mixer
        self.out = ChannelOutput(width, dim, gated, **dd)
        self.mlp = ChannelMlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # A sum takes the format of its first part: channels_last, where the norm left it.
        x = self.drop_path(self.out(self.mixer(self.norm(x)))) + x
        return self.drop_path(self.mlp(x)) + x


class S4NDViT(Backbone):
    """Patches, blocks, norm, mean pool, linear: (B, in_chans, H, W) -> (B, num_classes).

    Args:
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        patch_size: pixels per side of a patch.
        embed_dim: width.
        depths: blocks between feature levels.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        mixer: 's4nd' (two axes) or 's4nd_1d' (the published raster order; it does not follow a change of resolution).
        mixer_args: keywords of `S4ND` (`timm.create_model` takes them one by one as well); but for `channels` they hold
            for the 's4nd' stem too.
        stem: 'patch' (convolution), 's4nd' (S4ND, then pooling) or 'resample' (patches of fixed physical extent: every
            input size gives the token grid of the training size).
        stem_args: of the 's4nd' stem: `extent`, the length of its kernels to each side in pixels of the training size,
            and keywords of its `S4ND`.
        gated: GLU after the linear map that follows the mixer.

    Raises:
        ValueError: unknown mixer, stem, kernel or init; images smaller than a patch.
    """

    mixers = ('s4nd', 's4nd_1d')

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
        mixer_args: Mapping[str, Any] | None = None,
        stem: str = 'patch',
        stem_args: Mapping[str, Any] | None = None,
        gated: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        options, layer = dict(mixer_args or {}), self.mixer_class({'mixer': mixer})
        width = embed_dim * options.get('channels', 1)
        grid = training_grid(img_size, None)
        stem_module = make_stem(
            stem, in_chans, embed_dim, grid, patch_size, stem_args or {}, image_args(layer, options),
            min_size=patch_size, **dd,
        )  # fmt: skip
        grid = stem_module.resize(grid)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        super().__init__(
            stem=stem_module,
            stages=[
                Stage(
                    [
                        MixerBlock(embed_dim, layer(embed_dim, grid, **options, **dd), width, gated, mlp_ratio, p, **dd)
                        for p in stage
                    ]
                )
                for stage in drop_paths
            ],
            norm=ChannelNorm(embed_dim, **dd),
            head=ClassifierHead(embed_dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=[dict(num_chs=embed_dim, reduction=patch_size) for _ in depths],
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )
        self.embed_dim = embed_dim


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
        mixer_args=dict(channels=2, kernel='s4', dt_min=0.001, dt_max=0.1),
    )
    return create(S4NDViT, 's4nd_vit_base_patch16_1d', pretrained, model_args, kwargs)
