"""S4ND-Isotropic for clips: the image model's residual blocks, at full resolution in time and space.

With S4ND mixers the whole model follows size and frame rate: nothing else knows about pixels, or about frames.
"""

from typing import Any

from timm.layers import ClassifierHead, LayerNorm2d, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from s4nd.models._backbone import Stage, checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import choose, image_size
from s4nd.models._sampling import PatchStem
from s4nd.models._video import MIXERS, ClipStem, EachFrame, VideoBackbone, clip_ssm, positive
from s4nd.models.s4nd_isotropic import IsotropicBlock

__all__ = ['IsotropicBlock3d', 'IsotropicS4ND3d', 'checkpoint_filter_fn']


class IsotropicBlock3d(IsotropicBlock):
    """`IsotropicBlock` on clips: (B, dim, t, h, w) -> the same. Only the mixer tells frames from rows."""

    def forward(self, x: Tensor) -> Tensor:
        size = [x.shape[2], x.shape[3]]
        y = self.mixer(self.norm(x.flatten(2, 3)).unflatten(2, size))
        return x + self.drop_path(self.out(y.flatten(2, 3)).unflatten(2, size))


class IsotropicS4ND3d(VideoBackbone):
    """Stem, `sum(depths)` blocks of width `dim`, norm, mean pool, linear: (B, in_chans, T, H, W) -> (B, num_classes).

    Args:
        img_size, num_frames: size in pixels and frames of the training clips. Others run by themselves.
        patch, time_patch: pixels a side and frames that the stem takes together.
        dim: width. depths: blocks between feature levels.
        mixer: 's4nd', 'i3d' (depthwise time_kernel_size x kernel_size²) or 's3d' (space, then time).
        kernel_size, time_kernel_size: of these convolutions.
        causal, time_padding, time_tied, kernel … window: as `S4NDConvNeXt3d`.

    Raises:
        ValueError: an unknown name; a size, length or patch that is not positive.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 32,
        num_frames: int = 16,
        patch: int = 1,
        time_patch: int = 1,
        dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 2),
        mixer: str = 's4nd',
        kernel_size: int = 5,
        time_kernel_size: int = 3,
        causal: bool = False,
        time_padding: str = 'zeros',
        kernel: str | tuple[str, ...] = 's4d',
        init: str | tuple[str | None, ...] | None = None,
        d_state: int = 20,
        n_ssm: int | tuple[int | None, ...] | None = None,
        time_tied: bool = True,
        dt_min: float | tuple[float, ...] = 0.1,
        dt_max: float | tuple[float, ...] = 1.0,
        bandlimit: float | tuple[float | None, ...] | None = None,
        kernel_options: dict | tuple[dict | None, ...] | None = None,
        window: float | tuple[float, ...] = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        choose('mixer', mixer, MIXERS)
        choose('time_padding', time_padding, ('zeros', 'replicate'))
        size, num_frames = image_size(img_size), positive('num_frames', num_frames)
        time_patch, time_size = positive('time_patch', time_patch), positive('time_kernel_size', time_kernel_size)
        if patch < 1 or min(size) < patch:
            raise ValueError(f'patch must be from 1 pixel to img_size, got patch={patch} and img_size={size}')
        options = dict(time_size=time_size, causal=causal, padding=time_padding)
        if mixer == 's4nd':
            ssm = dict(
                kernel=kernel, init=init, d_state=d_state, n_ssm=n_ssm, dt_min=dt_min, dt_max=dt_max,
                bandlimit=bandlimit, kernel_options=kernel_options, window=window,
                bidirectional=(not causal, True, True), padding=(time_padding, 'zeros', 'zeros'),
            )  # fmt: skip
            options = clip_ssm(ssm, dim, time_tied)
        stem = ClipStem(PatchStem(in_chans * time_patch, dim, patch, patch, norm=False, **dd), in_chans, time_patch)
        grid = stem.set_grid((num_frames, *size))
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        super().__init__(
            num_frames=num_frames,
            stem=stem,
            stages=[
                Stage([IsotropicBlock3d(dim, grid, mixer, kernel_size, options, drop_path=p, **dd) for p in stage])
                for stage in drop_paths
            ],
            norm=EachFrame(LayerNorm2d(dim, **dd)),
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
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        first_conv='stem.frames.proj',
    )


default_cfgs = generate_default_cfgs({'s4nd_isotropic3d_mini.untrained': _cfg()})


@register_model
def s4nd_isotropic3d_mini(pretrained: bool = False, **kwargs: Any) -> VideoBackbone:
    """0.1 M parameters, 4 blocks of width 64 on patches of 4 pixels, for small clips on a CPU."""
    model_args = dict(depths=(1, 1, 2), dim=64, patch=4, d_state=16)
    return create(IsotropicS4ND3d, 's4nd_isotropic3d_mini', pretrained, model_args, kwargs)
