"""A trained image model as a video model that computes the same on a clip that stands still.

    video = s4nd.inflate(model, num_frames=16)

S4ND: the kernels of height and width are kept, and time gets fresh ones with sum 1: a decay exp(-|t| / timescale) and a
random one of a few frames with sum 0. The decay alone is the same even function for all features, none of which tells a
motion from the opposite one. The sum is 1 at every frame, the first and the last too, because the clip is taken to
stand still beyond its ends (`time_padding='replicate'`); with 'zeros' the ends lose what would come from there.
Convolutions (I3D, arXiv 1705.07750; S3D, 1712.04851): weights repeated over k frames and divided by k, or a mean over
k frames after the convolution in space; the same holds at their ends.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models._input import update_model_args
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels import S4DKernel, S4Kernel
from s4nd.layers import S4ND
from s4nd.models._arguments import choose, complete
from s4nd.models._mixers import ClipS4ND
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_isotropic import IsotropicS4ND

__all__ = ['decay_', 'inflate']

# Of the random kernel: C beside that of a new layer (the less, the slower motions are learned), and speed of its decay.
_MOTION, _FASTER = 4.0, 1.25

# Keywords of the image model's mixer that the axes of the video model's have one by one.
_PER_AXIS = ('kernel', 'init', 'dt_min', 'dt_max', 'bandlimit', 'l_max', 'kernel_args')

# (pattern of a name in the image model, what stands for it in the video model): time is the first axis of a kernel.
_NAMES: list[tuple[str, Any]] = [
    (r'(\.blocks\.\d+\.mixer\.kernels)\.(\d)\.', lambda found: f'{found[1]}.{int(found[2]) + 1}.'),
    (r'(\.blocks\.\d+\.mixer)\.(weight|bias)$', r'\1.conv.\2'),
]


def inflate(
    model: S4NDConvNeXt | IsotropicS4ND,
    num_frames: int,
    time_patch: int = 1,
    mode: str | None = None,
    *,
    timescale: float = 2.0,
    motion: bool = True,
    kernel: str = 's4d',
    init: str | None = None,
    time_tied: bool = True,
    causal: bool = False,
    time_padding: str = 'replicate',
    time_kernel_size: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> S4NDConvNeXt | IsotropicS4ND:
    """Make the video model of an image model, with all its weights: a still clip gives the image's output.

    It holds in evaluation for any number of frames, up to what the decay has left beyond 2 · num_frames,
    exp(-2 · num_frames / timescale).

    Args:
        model: from `timm.create_model` or `s4nd.models.load_checkpoint`; it is left as it is.
        num_frames: frames of the training clips.
        time_patch: frames that the stem takes together.
        mode: 's4nd', for S4ND in the blocks; 'i3d' or 's3d', for `mixer='conv2d'`. None: 's4nd' or 'i3d'.
        timescale: frames after which the plain decay in the time kernel has decayed to 1/e, of 's4nd'.
        motion: add a random kernel to it, of kernel 's4d'. False: the plain decay alone, which learns motions slowly.
        kernel, init, time_tied: of the time axis: 's4d' (dt is 2 / num_frames: modes n cycles per clip) or 's4' (C
            reads the first coefficient of the measure, which decays for init 'legs', and is the mean over a window of
            twice the timescale for 'fout'; 'hippo' has both).
        causal, time_padding, time_kernel_size, drop_rate, drop_path_rate: of the video model.

    Raises:
        ValueError: another model, a mode that does not go with its blocks, output_stride below 32, an 's4nd' stem with
            `time_patch` above 1, a timescale that is not positive, or a time kernel without a plain decay.
    """
    if not timescale > 0:
        raise ValueError(f'timescale must be a positive number of frames, got {timescale}')
    args, mode = _image_args(model, mode, time_patch)
    mixer_args = {**args.pop('mixer_args', {}), 'causal': causal, 'time_padding': time_padding}
    if mode == 's4nd':
        mixer_args = _with_time(mixer_args, {'kernel': kernel, 'init': init, 'kernel_args': None})
        mixer_args['time_tied'] = time_tied
    else:
        mixer_args['time_kernel_size'] = time_kernel_size
    given = dict(num_frames=num_frames, time_patch=time_patch, mixer=mode, mixer_args=mixer_args)
    args = complete(type(model), args, given | dict(drop_rate=drop_rate, drop_path_rate=drop_path_rate))
    video = _build(model, args, timescale / time_patch, motion).train(model.training)
    video.load_state_dict(_inflated(model.state_dict(), video))
    return video


def _build(
    model: S4NDConvNeXt | IsotropicS4ND, args: Mapping[str, Any], timescale: float, motion: bool
) -> S4NDConvNeXt | IsotropicS4ND:
    """A video model of the same family, device and dtype; S4ND layers decay in time, over `timescale` samples."""
    built = type(model)(**args)
    update_model_args(built, **args)
    parameter = next(model.parameters())
    built.to(device=parameter.device, dtype=parameter.dtype)
    for layer in built.modules():
        if isinstance(layer, ClipS4ND):
            decay_(layer, timescale, motion)
    return built


def decay_(layer: S4ND, timescale: float, motion: bool = False) -> S4ND:
    """Make the first axis of a layer a plain decay with sum 1, in place, two-sided or causal as it is.

    Args:
        timescale: samples of the training grid after which it has decayed to 1/e.
        motion: the other modes of an 's4d' kernel get a faster decay and a random C, and add up to 0.

    Raises:
        ValueError: its kernel is neither 's4d' nor 's4'.
    """
    kernel, length = layer.kernels[0], layer.grid[0]  # type: ignore[index]
    if not isinstance(kernel, (S4DKernel, S4Kernel)):
        raise ValueError(f"expected an 's4d' or 's4' kernel in time, got {type(kernel).__name__}")
    with torch.no_grad():
        own = _MOTION * kernel.C
        kernel.C.zero_()
        if isinstance(kernel, S4DKernel):
            _decay_s4d(kernel, timescale, length)
        else:
            _decay_s4(kernel, timescale)
        silent = kernel.C == 0
        kernel.C.div_(_sums(layer))
        if motion and isinstance(kernel, S4DKernel):
            kernel.C.add_(_without_sum(own * silent, layer))
    return layer


def _without_sum(C: Tensor, layer: S4ND) -> Tensor:
    """The nearest C, zero where C is zero, whose taps add up to 0; taps are linear in C."""
    kernel = layer.kernels[0]  # type: ignore[index]
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(_sums(layer).sum(), kernel.C)
    slope = slope * (C != 0)
    modes = tuple(range(2, C.dim()))
    return C - slope * (slope * C).sum(modes, keepdim=True) / slope.square().sum(modes, keepdim=True)


def _sums(layer: S4ND) -> Tensor:
    """Sums of the taps of the first axis, for each entry of C but the modes (whose axes are of size 1)."""
    C, length = layer.kernels[0].C, layer.grid[0]  # type: ignore[index]
    replicates = isinstance(layer, ClipS4ND) and layer.time_padding == 'replicate'
    taps, _ = layer.axis_taps(0, layer.reach(length, 1.0) if replicates else length, 1.0)
    total = (layer.tensor_rank * taps.sum(-1)).flatten()  # R·c·H, of both sides together
    return total.repeat(C.shape[:2].numel() // len(total)).view(*C.shape[:2], *[1] * (C.dim() - 2))


def _decay_s4d(kernel: S4DKernel, timescale: float, length: int) -> None:
    """The slowest mode decays, the others are silent; dt = 2 / length puts mode n of 'lin' at n cycles per clip."""
    kernel.log_dt.fill_(math.log(2 / length))
    slowest = 0 if kernel.A_imag is None else int(kernel.A_imag.abs().sum(0).argmin())
    kernel.log_A_real.fill_(math.log(_FASTER * length / (2 * timescale)))  # type: ignore[union-attr]
    kernel.log_A_real[:, slowest] -= math.log(_FASTER)  # type: ignore[index]
    if kernel.A_imag is None:
        kernel.B[:, slowest], kernel.C[..., slowest] = 1, 1
    else:
        one = kernel.B.new_tensor([1.0, 0.0])
        kernel.A_imag[:, slowest], kernel.B[:, slowest], kernel.C[..., slowest, :] = 0, one, one


def _decay_s4(kernel: S4Kernel, timescale: float) -> None:
    """C reads the first coefficient of the memory: x_0' = dt (u - x_0) for 'legs', a moving mean for 'fout'."""
    kernel.log_dt.fill_(-math.log(timescale))
    for first, measure in enumerate(kernel.measures):
        *_, vectors = hippo.nplr(measure, kernel.d_state)
        kernel.C[:, first :: len(kernel.measures)].copy_(torch.view_as_real(vectors[0].resolve_conj()))


def _image_args(model: nn.Module, mode: str | None, time_patch: int) -> tuple[dict[str, Any], str]:
    """What `model` was built with, and the mixer of the video model; ValueError if it cannot be inflated so."""
    if not isinstance(model, (S4NDConvNeXt, IsotropicS4ND)) or model.num_frames is not None:
        raise ValueError(
            'expected an S4NDConvNeXt or IsotropicS4ND of images, made by timm.create_model, '
            f'got {type(model).__name__}'
        )
    args = model.model_args()
    has_s4nd = args.pop('mixer', 's4nd') == 's4nd'
    mode = choose('mode', ('s4nd' if has_s4nd else 'i3d') if mode is None else mode, ('s4nd', 'i3d', 's3d'))
    if (mode == 's4nd') != has_s4nd:
        wanted = 's4nd' if mode == 's4nd' else 'conv2d'
        raise ValueError(f'mode={mode!r} inflates a model with mixer={wanted!r}, which this is not')
    if args.pop('output_stride', 32) != 32:
        raise ValueError('only a model with output_stride=32 can be inflated')
    if args.get('stem') == 's4nd' and time_patch > 1:
        raise ValueError(f"a model with stem='s4nd' takes one frame at a time: expected time_patch=1, got {time_patch}")
    return args, mode


def _with_time(mixer_args: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a clip's S4ND: what `own` has for time, or what the image model has, beside the image model's."""
    out = dict(mixer_args)
    for name in [name for name in _PER_AXIS if name in out or name in own]:
        value = out.get(name, 's4d' if name == 'kernel' else None)
        space = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        out[name] = (own.get(name, space[0]), *space)
    return out


def _inflated(weights: Mapping[str, Tensor], video: S4NDConvNeXt | IsotropicS4ND) -> dict[str, Tensor]:
    """All weights of the video model: those of the image model in their shapes here, the rest as it is."""
    out = video.state_dict()
    patch = video.stem.time_patch
    for name, value in weights.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith('training_grid') and len(value) < len(out[name]):
            value = torch.cat([out[name][:1], value])
        elif name == 'stem.proj.weight' and value.shape != out[name].shape:
            value = value.repeat_interleave(patch, 1) / patch
        elif value.dim() < out[name].dim():  # a convolution in space, to be one in time too
            value = value.unsqueeze(2).expand_as(out[name]) / out[name].shape[2]
        out[name] = value
    return out
