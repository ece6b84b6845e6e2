"""S4ND-ConvNeXt: ConvNeXt (arXiv 2201.03545) with S4ND (arXiv 2210.06583) for its convolutions, for images and clips.

Three switches say what is replaced: `mixer` (the depthwise 7x7 of every block, the default), `stem` and `downsample`
(left as they are by default). With `num_frames` it is a model of clips: its blocks mix over time, height and width, by
S4ND or by the convolutions of I3D and S3D, the baselines; stem and downsampling work frame by frame, so that the
temporal stride is that of the stem (`time_patch`).

The published sizes: `s4nd_convnext_tiny` with `kernel='s4', init='fout', d_state=64` has 29,980,456 parameters;
`s4nd_convnext3d_tiny` with `kernel='s4', init=('hippo', 'fout', 'fout'), dt_min=(2.0, 0.1, 0.1), dt_max=(2.0, 1.0,
1.0), time_tied=False, num_frames=30, time_patch=2, num_classes=51` has 31,381,587.

Shapes: B batch, T frames, (H, W) pixels, (t, h, w) positions of a feature map.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, NormMlpClassifierHead, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd.models._arguments import check_stages, training_grid
from s4nd.models._backbone import Backbone, Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._mixers import image_args
from s4nd.models._parts import ChannelMlp
from s4nd.models._sampling import Downsample, make_stem

__all__ = ['ConvNeXtBlock', 'S4NDConvNeXt', 'checkpoint_filter_fn']


class ConvNeXtBlock(nn.Module):
    """Residual block (B, dim, [t,] h, w) -> the same: mixer -> norm -> MLP -> layer scale.

    Args:
        mixer: module (B, dim, [t,] h, w) -> the same.
        layer_scale: initial value of the layer scale, None for none.
        drop_path: probability that a sample skips the block in training.
    """

    mixes_as_is = True  # so that a stage may make the taps of its mixer ahead

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = ChannelMlp(dim, layer_scale=layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The sum takes the format of its first part: channels_last, where the norm left it.
        return self.drop_path(self.mlp(self.mixer(x))) + x

    def reset_mlp(self) -> None:
        """Draw the weights of the MLP with variance 1 / inputs, so that a narrow block is not a small one.

        At ConvNeXt's standard deviation of 0.02 the GELU behind 24 features sees values near 0.1 and is nearly linear.
        The mean over all positions of a linear function of a clip hardly shows the order of its frames.
        """
        for linear in (self.mlp.mlp.fc1, self.mlp.mlp.fc2):
            trunc_normal_(linear.weight, std=linear.in_features**-0.5)


class S4NDConvNeXt(Backbone):
    """Stages at strides 4, 8, 16, 32, … in space: (B, in_chans, [T,] H, W) -> (B, num_classes).

    Args:
        output_stride: 8, 16 or 32; strides beyond it are dropped, and the S4ND layers step more finely instead.
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        num_frames: frames of the training clips; None for a model of images. Other numbers run by themselves, as the
            same duration at another frame rate (`set_input_size` says otherwise).
        depths, dims: blocks and width of each stage, of which ConvNeXt has four; small images want fewer.
        mixer: in the blocks, 's4nd' or 'conv2d' (depthwise 7x7); for clips 's4nd', 'i3d' or 's3d'.
        mixer_args: keywords of `S4ND`, `DepthwiseConv`, `ClipS4ND`, `I3DConv` or `S3DConv` (`timm.create_model` takes
            them one by one as well). Those of S4ND hold for stem and downsampling too.
        stem: 'patch' (4x4 convolution), 's4nd' (S4ND, then pooling) or 'resample' (4x4 patches of fixed physical
            extent: every input size gives the token grid of the training size).
        stem_args: `time_patch`, frames that the stem takes together; of the 's4nd' stem also `extent`, the length of
            its kernels to each side in pixels of the training size, and keywords of its `S4ND`.
        downsample: 'conv' (2x2) or 's4nd' (S4ND, then pooling) between stages.
        ls_init_value: initial layer scale. 1e-6, as published, is for long schedules: the blocks start as the identity.
            None: no scale, and MLPs at weights of variance 1 / inputs, so that the blocks count from the first update
            (`timm.create_model` drops keywords that are None).

    Raises:
        ValueError: unknown mixer, stem, downsample, kernel, init or output_stride; images smaller than the output
            stride (4 pixels where `downsample='s4nd'`).
    """

    mixers = ('s4nd', 'conv2d', 'i3d', 's3d')

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        output_stride: int = 32,
        img_size: int | tuple[int, int] = 224,
        num_frames: int | None = None,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        mixer: str = 's4nd',
        mixer_args: Mapping[str, Any] | None = None,
        stem: str = 'patch',
        stem_args: Mapping[str, Any] | None = None,
        downsample: str = 'conv',
        ls_init_value: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        options = dict(mixer_args or {})
        layer = self.mixer_class({'mixer': mixer, 'num_frames': num_frames})
        _check(output_stride, options.get('channels', 1))
        check_stages(depths, dims)
        grid = training_grid(img_size, num_frames)
        image = image_args(layer, options)
        min_size = min(output_stride, 4 * 2 ** (len(dims) - 1)) if downsample == 'conv' else 4
        stem_module = make_stem(
            stem, in_chans, dims[0], grid, 4, stem_args or {}, image, min_size=min_size, norm=True, **dd
        )

        def make_block(dim: int, grid: tuple[int, ...], dilation: int, drop_path: float) -> ConvNeXtBlock:
            dilated = {'dilation': dilation} if mixer == 'conv2d' else {}
            return ConvNeXtBlock(dim, layer(dim, grid, **options, **dilated, **dd), ls_init_value, drop_path, **dd)

        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        make_down = partial(Downsample, downsample, layer=image, **dd)
        stages, info = _stages(stem_module.resize(grid), dims, drop_paths, output_stride, make_block, make_down)
        super().__init__(
            stem=stem_module,
            stages=stages,
            norm=nn.Identity(),
            head=NormMlpClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            feature_info=info,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize the weights, as every backbone; the MLPs of blocks without a layer scale preserve the variance."""
        super().init_weights(needs_reset)
        for block in self.modules():
            if isinstance(block, ConvNeXtBlock) and isinstance(block.mlp.scale, nn.Identity):
                block.reset_mlp()


def _check(output_stride: int, channels: int) -> None:
    if output_stride not in (8, 16, 32):
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride}')
    if channels != 1:
        raise ValueError(f'a ConvNeXt block has one kernel per feature: channels must be 1, got {channels}')


def _stages(
    grid: tuple[int, ...],
    dims: Sequence[int],
    drop_paths: Sequence[Sequence[float]],
    output_stride: int,
    make_block: Callable[[int, tuple[int, ...], int, float], nn.Module],
    make_down: Callable[..., Downsample],
) -> tuple[list[Stage], list[dict[str, int]]]:
    """Build the stages behind a stem whose map has the training grid `grid`, and what timm notes of each level."""
    stages, info, reduction, dilation = [], [], 4, 1
    for i, (dim, rates) in enumerate(zip(dims, drop_paths, strict=True)):
        down = None
        if i > 0:
            stride = 1 if reduction >= output_stride else 2
            down = make_down(dims[i - 1], dim, grid, stride=stride, dilation=dilation)
            reduction, dilation = reduction * stride, dilation * (2 // stride)
            grid = down.resize(grid)
        stages.append(Stage([make_block(dim, grid, dilation, rate) for rate in rates], down))
        info.append({'num_chs': dim, 'reduction': reduction})
    return stages, info


def _cfg(num_classes: int = 1000) -> dict[str, Any]:
    return model_cfg(
        num_classes=num_classes,
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
        's4nd_convnext3d_nano.untrained': _cfg(400),
        's4nd_convnext3d_micro.untrained': _cfg(400),
        's4nd_convnext3d_tiny.untrained': _cfg(400),
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


@register_model
def s4nd_convnext3d_nano(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """0.3 M parameters, for small clips and short schedules on a CPU; its blocks count from the first update."""
    model_args = dict(
        depths=(1, 1, 2, 1),
        dims=(24, 48, 72, 96),
        img_size=64,
        num_frames=16,
        mixer_args=dict(d_state=16),
        ls_init_value=None,
    )
    return create(S4NDConvNeXt, 's4nd_convnext3d_nano', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext3d_micro(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """10 M parameters."""
    model_args = dict(depths=(3, 3, 3, 3), dims=(64, 128, 256, 512), num_frames=16)
    return create(S4NDConvNeXt, 's4nd_convnext3d_micro', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext3d_tiny(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """30 M parameters."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), num_frames=16)
    return create(S4NDConvNeXt, 's4nd_convnext3d_tiny', pretrained, model_args, kwargs)
