"""Checkpoints of CCNN as released (david-knigge/ccnn) in ours, with equal outputs: networks, blocks and convolutions.

Released names of a convolution: Kernel.… (the coordinate network), bias, mask_width_param, mask_mean_param,
mask_threshold, train_length (points of the kernel per axis), initialized, and channel_mixer of separable ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.interop._names import Names, fill
from s4nd.interop._parts import take_linear
from s4nd.interop.formats import Format
from s4nd.kernels.ckconv import SIREN, MAGNet
from s4nd.layers import CKConv
from s4nd.models.ccnn import CCNN, CCNNBlock, CCNNStem

Size = int | Sequence[int] | None


def load_ccnn(
    weights: Mapping[str, Any],
    *,
    img_size: Size = None,
    causal: bool = False,
    crop: bool = True,
    prenorm: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> CCNN:
    """Build the network that a checkpoint holds: it classifies alike. The name of the format is 'ccnn'.

    Args:
        weights: tensors or arrays by their released names.
        img_size: size of the training signals, one number or one per axis; None: the points of the kernel, as where the
            released kernel_size is 'same'. Another input size is then another sampling of the same scene.
        causal: whether kernels without a mask are causal; others tell it.
        crop: whether kernels end where their mask falls below its threshold (the released FlexConv).
        prenorm: whether norms stand before the convolutions, which weights do not tell.
        device, dtype: of the model.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights)
    stem, options = _options(names, 'conv1.', causal, crop)
    dims, dim = stem['dims'], len(names.take('conv1.channel_mixer.bias'))
    depth = 0
    while names.has(f'blocks.{depth}.'):
        depth += 1
    model = CCNN(
        len(names.take('conv1.bias')),
        len(names.take('out_layer.bias')),
        spatial_dims=dims,
        grid=_size(img_size, stem['points'], dims),
        dim=dim,
        depths=(depth,),
        mixer_args=options,
        norm=_norm(names, 'norm1.')[0],
        prenorm=prenorm,
        dtype=torch.float64,
    )
    state = _stem(names, model.stem) | _under('norm.', _norm(names, 'out_norm.')[1])
    for i, block in enumerate(model.stages[0].blocks):
        state |= _under(f'stages.0.blocks.{i}.', _block(names, f'blocks.{i}.', block))
    state |= take_linear(names, 'out_layer.', 'head.fc.')
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


def load_ccnn_block(
    weights: Mapping[str, Any],
    *,
    img_size: Size = None,
    causal: bool = False,
    crop: bool = True,
    prenorm: bool = True,
    **place: Any,
) -> CCNNBlock:
    """Build one residual block (conv1, norm1, linear1, perhaps shortcut.0). Arguments and errors as `load_ccnn`."""
    names = Names(weights)
    facts, options = _options(names, 'conv1.', causal, crop)
    dim, dim_out = len(names.take('conv1.bias')), len(names.take('linear1.bias'))
    block = CCNNBlock(
        dim,
        _size(img_size, facts['points'], facts['dims']),
        options,
        dim_out=dim_out,
        norm=_norm(names, 'norm1.')[0],
        prenorm=prenorm,
        dtype=torch.float64,
    )
    fill(block, _block(names, '', block))
    names.check_empty()
    return block.to(**{'dtype': torch.float32, **place})


def load_ckconv(
    weights: Mapping[str, Any],
    *,
    img_size: Size = None,
    causal: bool = False,
    crop: bool = True,
    **place: Any,
) -> nn.Module:
    """Build one convolution: a `CKConv`, followed by a linear map of channels if it is separable.

    Arguments and errors as `load_ccnn`.
    """
    names = Names(weights)
    facts, options = _options(names, '', causal, crop)
    outputs, separable = len(names.take('bias')), 'channel_mixer.weight' in names
    kernels = len(names.take('Kernel.output_linear.bias'))
    conv = CKConv(
        outputs if separable else kernels // outputs,
        _size(img_size, facts['points'], facts['dims']),
        out_channels=None if separable else outputs,
        dtype=torch.float64,
        **options,
    )
    fill(conv, _conv(names, '', conv))
    found: nn.Module = conv
    if separable:
        mixer = take_linear(names, 'channel_mixer.', '')
        stem = CCNNStem(outputs, len(mixer['bias']), conv.grid, options, 'batch', dtype=torch.float64)  # type: ignore[arg-type]
        fill(stem.proj, mixer)
        found = nn.Sequential(conv, stem.proj)
    names.check_empty()
    return found.to(**{'dtype': torch.float32, **place})


def load_network(weights: Mapping[str, Any], prefix: str = '', **place: Any) -> MAGNet | SIREN:
    """Build one coordinate network whose names begin with `prefix`. Errors as `load_ccnn`."""
    names = Names(weights, prefix)
    args = _network_args(names, '')
    outputs = len(names.take('output_linear.bias'))
    if args['network'] == 'siren':
        dims = names.take('kernel_net.0.weight').shape[1]
        found = SIREN(dims, args['hidden'], outputs, args['omega_0'], args['layers'], dtype=torch.float64)
    else:
        dims = names.take('filters.0.mu').shape[1]
        found = MAGNet(dims, args['hidden'], outputs, 1.0, args['layers'], dtype=torch.float64)
    fill(found, _network(names, ''))
    names.check_empty()
    return found.to(**{'dtype': torch.float32, **place})


def _options(names: Names, theirs: str, causal: bool, crop: bool) -> tuple[dict[str, int], dict[str, Any]]:
    """Number of axes and of points, and keywords of `CKConv`."""
    args = _network_args(names, f'{theirs}Kernel.')
    weight = names.take(f'{theirs}Kernel.{"kernel_net.0.weight" if args["network"] == "siren" else "filters.0.mu"}')
    mask = f'{theirs}mask_width_param' in names
    if mask:
        mean = names.take(f'{theirs}mask_mean_param')
        if not ((mean == 0).all() or (mean == 1).all()):
            raise ValueError(
                f'{theirs}mask_mean_param: expected all 0 (centered) or all 1 (causal), got {mean.tolist()}'
            )
        causal = bool((mean == 1).all())
        args['crop'] = float(names.take(f'{theirs}mask_threshold')) if crop else None
    points = int(names.take(f'{theirs}train_length'))
    return {'dims': weight.shape[1], 'points': points}, args | {'mask': mask, 'causal': causal, 'points': points}


def _network_args(names: Names, theirs: str) -> dict[str, Any]:
    if f'{theirs}kernel_net.0.weight' not in names:
        layers = 0
        while names.has(f'{theirs}linears.{layers}.'):
            layers += 1
        return {'network': 'magnet', 'hidden': len(names.take(f'{theirs}filters.0.mu')), 'layers': layers}
    hidden, _ = names.take(f'{theirs}kernel_net.0.weight').shape[:2]
    omegas: list[float] = []
    while names.has(f'{theirs}kernel_net.{2 * len(omegas)}.'):
        omegas.append(float(names.take(f'{theirs}kernel_net.{2 * len(omegas)}.omega_0')))
    if len(set(omegas)) > 1:
        raise ValueError(f'{theirs}kernel_net: expected one omega_0 for all layers, got {omegas}')
    return {'network': 'siren', 'hidden': hidden, 'layers': len(omegas) + 1, 'omega_0': omegas[0]}


def _network(names: Names, theirs: str) -> dict[str, Tensor]:
    state = take_linear(names, f'{theirs}output_linear.', 'out.')
    i = 0
    while names.has(f'{theirs}kernel_net.{2 * i}.'):
        state |= take_linear(names, f'{theirs}kernel_net.{2 * i}.', f'linears.{i}.')
        names.drop(f'{theirs}kernel_net.{2 * i}.omega_0')
        i += 1
    i = 0
    while names.has(f'{theirs}linears.{i}.'):
        state |= take_linear(names, f'{theirs}linears.{i}.', f'linears.{i}.')
        i += 1
    i = 0
    while names.has(f'{theirs}filters.{i}.'):
        state |= take_linear(names, f'{theirs}filters.{i}.linear.', f'filters.{i}.')
        state |= {f'filters.{i}.{name}': names.take(f'{theirs}filters.{i}.{name}') for name in ('mu', 'gamma')}
        i += 1
    return state


def _conv(names: Names, theirs: str, conv: CKConv) -> dict[str, Tensor]:
    state = _under('kernel.network.', _network(names, f'{theirs}Kernel.')) | {'bias': names.take(f'{theirs}bias')}
    for name in ('train_length', 'mask_mean_param', 'mask_threshold'):
        names.drop(f'{theirs}{name}')
    scale = torch.ones(())
    if f'{theirs}initialized' in names and not bool(names.take(f'{theirs}initialized')):
        # The released code divides once, in its first call.
        taps = conv.kernel([math.ceil(length) for length in conv.kernel.lengths], [1.0] * len(conv.kernel.lengths))
        count = taps.shape[1:].numel() if not conv.kernel.causal else (taps.shape[1] + 1) // 2
        scale = torch.tensor(float(count)).rsqrt()
        scale = scale if conv.out_channels is None else scale / math.sqrt(conv.d_model)
    state['kernel.network.out.weight'] = state['kernel.network.out.weight'] * scale
    if f'{theirs}mask_width_param' in names:
        # (There a variance of at least 1e-8 is meant.)
        state['kernel.log_width'] = (names.take(f'{theirs}mask_width_param').square() + 1e-8).log() / 2
    return state


def _stem(names: Names, stem: CCNNStem) -> dict[str, Tensor]:
    state = _under('conv.', _conv(names, 'conv1.', stem.conv)) | take_linear(names, 'conv1.channel_mixer.', 'proj.')
    return _under('stem.', state | _under('norm.', _norm(names, 'norm1.')[1]))


def _block(names: Names, theirs: str, block: CCNNBlock) -> dict[str, Tensor]:
    state = _under('conv.', _conv(names, f'{theirs}conv1.', block.conv))
    state |= take_linear(names, f'{theirs}conv1.channel_mixer.', 'proj.')
    state |= take_linear(names, f'{theirs}linear1.', 'out.') | _under('norm.', _norm(names, f'{theirs}norm1.')[1])
    return state | (take_linear(names, f'{theirs}shortcut.0.', 'shortcut.') if names.has(f'{theirs}shortcut.') else {})


def _norm(names: Names, theirs: str) -> tuple[str, dict[str, Tensor]]:
    if f'{theirs}ln.weight' in names:
        return 'layer', names.take_all(f'{theirs}ln.')
    return 'batch', names.take_all(theirs)


def _size(given: Size, points: int, dims: int) -> tuple[int, ...]:
    size = points if given is None else given
    return (size,) * dims if isinstance(size, int) else tuple(size)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMAT = Format(
    'david-knigge/ccnn',
    lambda weights: {'conv1.Kernel.output_linear.weight', 'out_layer.weight'} <= weights.keys(),
    load_ccnn,
)
