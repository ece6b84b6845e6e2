"""S4ND-ConvNeXt: ConvNeXt (arXiv 2201.03545) with S4ND (arXiv 2210.06583) for its convolutions.

What is replaced is said by three switches: `mixer` (the depthwise 7x7 of every block, the default), `stem` and
`downsample` (left as they are by default). The published sizes: `kernel='s4', init='fout', d_state=64` gives the tiny
model 29,980,456 parameters.
"""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, NormMlpClassifierHead, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import ChannelMlp, Grid, check_stages, choose, image_size, level_windows, make_mixer
from s4nd.models._sampling import Downsample, make_stem

__all__ = ['ConvNeXtBlock', 'S4NDConvNeXt', 'checkpoint_filter_fn']


class ConvNeXtBlock(nn.Module):
    """Residual block (B, dim, h, w) -> (B, dim, h, w): mixer -> norm -> MLP -> layer scale.

    Args:
        dim: channels.
        grid: (height, width) the block is trained on.
        mixer: 's4nd', or 'conv2d' for the depthwise 7x7 of ConvNeXt.
        ssm: keywords of `S4ND`.
        layer_scale: initial value of the layer scale, None for none.
        drop_path: probability that a sample skips the block in training.
        dilation: of the 7x7, where `output_stride` keeps the maps larger than in training.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        mixer: str,
        ssm: Mapping[str, Any],
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.mixer = make_mixer(mixer, dim, grid, ssm, kernel_size=7, dilation=dilation, **dd)
        self.mlp = ChannelMlp(dim, layer_scale=layer_scale, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.mixer(x)))


class S4NDConvNeXt(Backbone):
    """Stages at strides 4, 8, 16, 32, …: (B, in_chans, H, W) -> (B, num_classes).

    Args:
        output_stride: 8, 16 or 32; strides beyond it are dropped, and the S4ND layers step more finely instead.
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        depths, dims: blocks and width of each stage, of which ConvNeXt has four; small images want fewer.
        mixer: 's4nd' or 'conv2d' (depthwise 7x7) in the blocks.
        stem: 'patch' (4x4 convolution), 's4nd' (S4ND, then pooling) or 'resample' (4x4 patches of fixed physical
            extent: every input size gives the token grid of the training size).
        stem_extent: length of the kernels of the 's4nd' stem to each side, in pixels of the training size.
        downsample: 'conv' (2x2) or 's4nd' (S4ND, then pooling) between stages.
        kernel, kernel_options, init, d_state, n_ssm, dt_min, dt_max, bandlimit: of every `S4ND`.
        window: of every `S4ND`; a pair for each grid where `set_input_size` made them differ (`level_windows`).
        ls_init_value: initial layer scale, None for none (`timm.create_model` drops keywords that are None).

    Raises:
        ValueError: unknown mixer, stem, downsample, kernel, init or output_stride; images smaller than the output
            stride (4 pixels where `downsample='s4nd'`).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        output_stride: int = 32,
        img_size: int | tuple[int, int] = 224,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        mixer: str = 's4nd',
        stem: str = 'patch',
        stem_extent: float | tuple[float, float] = 16,
        downsample: str = 'conv',
        kernel: str = 's4d',
        kernel_options: Mapping[str, Any] | None = None,
        init: str | None = None,
        d_state: int = 64,
        n_ssm: int | None = None,
        dt_min: float = 0.1,
        dt_max: float = 1.0,
        bandlimit: float | None = None,
        window: float | tuple[Any, ...] = 1.0,
        ls_init_value: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        choose('mixer', mixer, ('s4nd', 'conv2d'))
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride}')
        check_stages(depths, dims)
        size = image_size(img_size)
        ssm = dict(
            kernel=kernel, kernel_options=kernel_options, init=init, d_state=d_state, n_ssm=n_ssm, dt_min=dt_min,
            dt_max=dt_max, bandlimit=bandlimit,
        )  # fmt: skip
        # What is on the grid of the image, then of each stage.
        ssms = [dict(ssm, window=w) for w in level_windows(window, len(depths))]
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        min_size = min(output_stride, 4 * 2 ** (len(dims) - 1)) if downsample == 'conv' else 4
        stem_module = make_stem(stem, in_chans, dims[0], 4, min_size, size, ssms[0], True, stem_extent, **dd)
        grid: Grid = stem_module.set_grid(size)
        stages, info, reduction, dilation = [], [], 4, 1
        for i, dim in enumerate(dims):
            down = None
            if i > 0:
                stride = 1 if reduction >= output_stride else 2
                down = Downsample(downsample, dims[i - 1], dim, grid, ssms[i], stride, dilation, **dd)
                reduction, dilation = reduction * stride, dilation * (2 // stride)
                grid = down.set_grid(grid)
            blocks = [
                ConvNeXtBlock(dim, grid, mixer, ssms[i + 1], ls_init_value, p, dilation, **dd) for p in drop_paths[i]
            ]
            stages.append(Stage(blocks, down))
            info.append(dict(num_chs=dim, reduction=reduction))
        super().__init__(
            stem=stem_module,
            stages=stages,
            norm=nn.Identity(),
            head=NormMlpClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=info,
            in_chans=in_chans,
            num_classes=num_classes,
            img_size=size,
            drop_rate=drop_rate,
        )


def _cfg() -> dict[str, Any]:
    return model_cfg(
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        min_input_size=(3, 32, 32),
        crop_pct=0.875,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


default_cfgs = generate_default_cfgs(
    {
        's4nd_convnext_micro.untrained': _cfg(),
        's4nd_convnext_tiny.untrained': _cfg(),
        's4nd_convnext_small.untrained': _cfg(),
        's4nd_convnext_base.untrained': _cfg(),
    }
)


@register_model
def s4nd_convnext_micro(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """10 M parameters."""
    model_args = dict(depths=(3, 3, 3, 3), dims=(64, 128, 256, 512))
    return create(S4NDConvNeXt, 's4nd_convnext_micro', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """30 M parameters."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return create(S4NDConvNeXt, 's4nd_convnext_tiny', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext_small(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """53 M parameters."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
    return create(S4NDConvNeXt, 's4nd_convnext_small', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext_base(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """92 M parameters."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024))
    return create(S4NDConvNeXt, 's4nd_convnext_base', pretrained, model_args, kwargs)
