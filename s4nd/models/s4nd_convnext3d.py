"""S4ND-ConvNeXt for clips: ConvNeXt (arXiv 2201.03545) whose blocks mix over time, height and width by S4ND
(arXiv 2210.06583), or by the convolutions of I3D and S3D, the baselines.

Stem and downsampling are those of the image model, frame by frame, so that the temporal stride is that of the stem. The
published sizes: `s4nd_convnext3d_tiny` with `kernel='s4', init=('hippo', 'fout', 'fout'), dt_min=(2.0, 0.1, 0.1),
dt_max=(2.0, 1.0, 1.0), time_tied=False, num_frames=30, time_patch=2, num_classes=51` has 31,381,587 parameters.
"""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import NormMlpClassifierHead, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn

from s4nd.models._backbone import Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import check_stages, choose, image_size, level_windows
from s4nd.models._sampling import Downsample, make_stem
from s4nd.models._video import MIXERS, ClipStem, EachFrame, VideoBackbone, clip_ssm, frame_ssm, positive
from s4nd.models.s4nd_convnext import ConvNeXtBlock

__all__ = ['S4NDConvNeXt3d', 'checkpoint_filter_fn']


class S4NDConvNeXt3d(VideoBackbone):
    """Stages at strides 4, 8, 16, 32, … in space: (B, in_chans, T, H, W) -> (B, num_classes).

    Args:
        img_size: training size in pixels, one number or (height, width). Other sizes run by themselves.
        num_frames: frames of the training clips. Other numbers run by themselves (`set_time_step`).
        time_patch: frames that the stem takes together, the temporal stride of everything after it.
        depths, dims: blocks and width of each stage, of which ConvNeXt has four; small frames want fewer.
        mixer: 's4nd', 'i3d' (depthwise time_kernel_size x 7 x 7) or 's3d' (7 x 7, then time) in the blocks.
        causal: no frame sees a later one (but for those that the stem takes together, and the mean in the head).
        time_padding: what the blocks see before and after the clip, 'zeros' or 'replicate' (it stands still: then the
            output for a still clip does not depend on the number of frames or, but for a few channels, the time step).
        time_kernel_size: frames that one convolution of 'i3d' or 's3d' spans.
        stem, stem_extent, downsample: as `S4NDConvNeXt`, applied to each frame.
        kernel, init, dt_min, dt_max, bandlimit, n_ssm, kernel_options: of every `S4ND`, one value, or three for (time,
            height, width). d_state: of all axes.
        time_tied: False gives every channel's time kernel its own A and B.
        window: of every `S4ND`, one value or three; or three for each grid where `set_input_size` made them differ.
        ls_init_value: initial layer scale, None for none (`timm.create_model` drops keywords that are None).

    Raises:
        ValueError: an unknown name, a size, length or patch that is not positive, frames smaller than the stride of
            the last stage (4 where `downsample='s4nd'`).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 400,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 224,
        num_frames: int = 16,
        time_patch: int = 1,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        mixer: str = 's4nd',
        causal: bool = False,
        time_padding: str = 'zeros',
        time_kernel_size: int = 3,
        stem: str = 'patch',
        stem_extent: float | tuple[float, float] = 16,
        downsample: str = 'conv',
        kernel: str | tuple[str, ...] = 's4d',
        init: str | tuple[str | None, ...] | None = None,
        d_state: int = 64,
        n_ssm: int | tuple[int | None, ...] | None = None,
        time_tied: bool = True,
        dt_min: float | tuple[float, ...] = 0.1,
        dt_max: float | tuple[float, ...] = 1.0,
        bandlimit: float | tuple[float | None, ...] | None = None,
        kernel_options: dict | tuple[dict | None, ...] | None = None,
        window: float | tuple[Any, ...] = 1.0,
        ls_init_value: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        choose('mixer', mixer, MIXERS)
        choose('time_padding', time_padding, ('zeros', 'replicate'))
        check_stages(depths, dims)
        size, num_frames = image_size(img_size), positive('num_frames', num_frames)
        time_patch, time_size = positive('time_patch', time_patch), positive('time_kernel_size', time_kernel_size)
        conv = dict(time_size=time_size, causal=causal, padding=time_padding)
        ssm = dict(
            kernel=kernel, init=init, d_state=d_state, n_ssm=n_ssm, dt_min=dt_min, dt_max=dt_max, bandlimit=bandlimit,
            kernel_options=kernel_options, bidirectional=(not causal, True, True),
            padding=(time_padding, 'zeros', 'zeros'),
        )  # fmt: skip
        # What is on the grid of the clip, then of each stage.
        ssms = [dict(ssm, window=w) for w in level_windows(window, len(depths), axes=3)]
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        min_size = 4 * 2 ** (len(dims) - 1) if downsample == 'conv' else 4
        frames = make_stem(
            stem, in_chans * time_patch, dims[0], 4, min_size, size, frame_ssm(ssms[0]), True, stem_extent, **dd
        )
        stem_module = ClipStem(frames, in_chans, time_patch)
        grid = stem_module.set_grid((num_frames, *size))
        stages, info = [], []
        for i, dim in enumerate(dims):
            down = None
            if i > 0:
                down = EachFrame(Downsample(downsample, dims[i - 1], dim, grid[1:], frame_ssm(ssms[i]), **dd))
                grid = down.set_grid(grid)
            options = clip_ssm(ssms[i + 1], dim, time_tied) if mixer == 's4nd' else conv
            blocks = [ConvNeXtBlock(dim, grid, mixer, options, ls_init_value, p, **dd) for p in drop_paths[i]]
            stages.append(Stage(blocks, down))
            info.append(dict(num_chs=dim, reduction=4 * 2**i))
        super().__init__(
            num_frames=num_frames,
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
        num_classes=400,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        min_input_size=(3, 32, 32),
        crop_pct=0.875,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='stem.frames.proj',
    )


default_cfgs = generate_default_cfgs(
    {
        's4nd_convnext3d_nano.untrained': _cfg(),
        's4nd_convnext3d_micro.untrained': _cfg(),
        's4nd_convnext3d_tiny.untrained': _cfg(),
    }
)


def _create(variant: str, pretrained: bool, model_args: Mapping[str, Any], overrides: Mapping[str, Any]) -> nn.Module:
    return create(S4NDConvNeXt3d, variant, pretrained, model_args, overrides)


@register_model
def s4nd_convnext3d_nano(pretrained: bool = False, **kwargs: Any) -> VideoBackbone:
    """0.3 M parameters, for small clips on a CPU."""
    model_args = dict(depths=(1, 1, 2, 1), dims=(24, 48, 72, 96), d_state=16, img_size=64)
    return _create('s4nd_convnext3d_nano', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext3d_micro(pretrained: bool = False, **kwargs: Any) -> VideoBackbone:
    """10 M parameters."""
    model_args = dict(depths=(3, 3, 3, 3), dims=(64, 128, 256, 512))
    return _create('s4nd_convnext3d_micro', pretrained, model_args, kwargs)


@register_model
def s4nd_convnext3d_tiny(pretrained: bool = False, **kwargs: Any) -> VideoBackbone:
    """30 M parameters."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return _create('s4nd_convnext3d_tiny', pretrained, model_args, kwargs)
