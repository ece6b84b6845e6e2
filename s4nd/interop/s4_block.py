"""State dicts of the S4 block of state-spaces/s4 (v4 names) and of models around it in ours, with equal outputs.

Shape legend: H = d_model, n = stored modes, c = channels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, build_gated, fill
from s4nd.interop.published import load_published_kernel
from s4nd.layers.block import GatedLayer, Residual
from s4nd.layers.s4 import S4
from s4nd.models.sequence import SequenceModel


def load_s4_block(
    weights: Mapping[str, Any],
    prefix: str = '',
    *,
    l_max: int | None = None,
    discretization: str = 'zoh',
    dt_transform: str = 'exp',
    **place: Any,
) -> GatedLayer:
    """Build the block (S4Block) whose names begin with `prefix`: layer.D, layer.kernel.…, output_linear.0.….

    P tells whether the kernel is diagonal plus low rank. Sizes, channels and whether it is two-sided follow from the
    weights; a two-sided one has point taps and the backward kernel from lag -1 on. C that was stored as C (I - Ā^l) is
    solved for.

    Args:
        weights: tensors or arrays by their released names.
        l_max: longest lag + 1 of the released kernel; None: all.
        discretization: 'zoh' or 'bilinear', of diagonal kernels (the others are bilinear).
        dt_transform: 'exp' or 'softplus'.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    D, C, A = names.take('layer.D'), names.take('layer.kernel.C'), names.take('layer.kernel.A_real')
    args: dict[str, Any] = {'n_ssm': len(A), 'dt_tied': names.take('layer.kernel.inv_dt').shape[1] == 1}
    is_low_rank = 'layer.kernel.P' in names
    if is_low_rank:
        args['rank'] = len(names.take('layer.kernel.P'))
    else:
        args['discretization'] = discretization
    layer = S4(
        D.shape[1],
        kernel='s4' if is_low_rank else 's4d',
        d_state=2 * A.shape[1],
        bidirectional=len(C) == 2 * len(D),
        l_max=l_max,
        channels=len(D),
        cell='published',
        kernel_args=args,
        **place,
    )
    kernel = {name: torch.as_tensor(value) for name, value in names.take_all('layer.kernel.').items()}
    load_published_kernel(layer.kernels[0], kernel, dt_transform=dt_transform)
    with torch.no_grad():
        layer.D.copy_(D)
    state = {f'layer.{name}': value for name, value in layer.state_dict().items() if not name.endswith('_grid')}
    return build_gated(names, layer, state, place)


def load_s4_classifier(
    weights: Mapping[str, Any], prefix: str = '', *, pool: str = 'mean', **options: Any
) -> SequenceModel:
    """Build the classifier (a linear encoder, SequenceModel of S4 blocks, a decoder) whose names begin with `prefix`.

    The weights tell the norm ('layer', 'batch', or where features come first one scalar for all), and by a norm at the
    end of the model that norms stand before the layers. (Post-norm models have none there.)

    Args:
        weights: tensors or arrays: encoder.…, model.layers.i.…, model.norm.…, decoder.output_transform.….
        pool: 'mean' (released 'pool') or 'last'.
        options: as `load_s4_block`.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    state = names.take_all('encoder.', 'encoder.') | names.take_all('decoder.output_transform.', 'decoder.')
    prenorm = any(name.startswith(f'{prefix}model.norm.') for name in weights)
    end = names.take_all('model.norm.norm.', 'norm.')
    layers, i = [], 0
    while f'model.layers.{i}.layer.layer.D' in names:
        own = names.take_all(f'model.layers.{i}.norm.norm.')
        block = load_s4_block(weights, f'{prefix}model.layers.{i}.layer.', **options)
        names.take_all(f'model.layers.{i}.layer.')
        layers.append(_residual(block, own, prenorm, options))
        i += 1
    return _classifier(names, state | end, layers, _norm_name(end), pool, options)


def load_s4d_example(weights: Mapping[str, Any], prefix: str = '', *, prenorm: bool, **place: Any) -> SequenceModel:
    """Build the classifier of the released example.py, with its minimal S4D kernels (B = 1), whose names begin with
    `prefix`: encoder.…, s4_layers.i.…, norms.i.…, decoder.….

    Args:
        weights: tensors or arrays by their released names.
        prenorm: whether norms stand before the layers, which the weights do not tell.
        place: device and dtype.

    Raises:
        ValueError: as `load_s4_classifier`.
    """
    names = Names(weights, prefix)
    state = names.take_all('encoder.', 'encoder.') | names.take_all('decoder.', 'decoder.')
    layers, i = [], 0
    while f's4_layers.{i}.D' in names:
        part = f's4_layers.{i}.'
        D, C = names.take(f'{part}D'), names.take(f'{part}kernel.C')
        d_model, modes, _ = C.shape
        layer = S4(d_model, kernel='s4d', d_state=2 * modes, kernel_args={'n_ssm': d_model}, **place)
        block = GatedLayer(layer, d_model, **place)
        one = torch.ones(d_model, modes, dtype=torch.float64)
        own = {
            'D': D[None],
            # Im A is positive there: all is conjugated.
            'kernels.0.C': torch.stack([C[..., 0], -C[..., 1]], -1)[None],
            'kernels.0.B': torch.stack([one, 0 * one], -1),
            'kernels.0.log_dt': names.take(f'{part}kernel.log_dt')[:, None],
            'kernels.0.log_A_real': names.take(f'{part}kernel.log_A_real'),
            'kernels.0.A_imag': names.take(f'{part}kernel.A_imag'),
        }
        linear = {'weight': names.take(f'{part}output_linear.0.weight')[..., 0]}
        linear['bias'] = names.take(f'{part}output_linear.0.bias')
        filled = {f'layer.{name}': value for name, value in own.items()}
        fill(block, filled | {f'linear.{name}': value for name, value in linear.items()})
        layers.append(_residual(block, names.take_all(f'norms.{i}.'), prenorm, place))
        i += 1
    return _classifier(names, state, layers, None, 'mean', place)


def _residual(block: GatedLayer, norm: Mapping[str, Tensor], prenorm: bool, options: Mapping[str, Any]) -> Residual:
    residual = Residual(block, block.d_model, norm=_norm_name(norm), prenorm=prenorm, **_place(options))
    fill(residual.norm, norm)
    return residual


def _classifier(
    names: Names,
    state: dict[str, Tensor],
    layers: list[Residual],
    norm: str | None,
    pool: str,
    options: Mapping[str, Any],
) -> SequenceModel:
    names.check_empty()
    d_model, d_input = state['encoder.weight'].shape
    num_classes = len(state['decoder.weight'])
    model = SequenceModel(d_input, num_classes, layers, d_model=d_model, norm=norm, head=pool, **_place(options))
    filled = {name: value for name, value in model.state_dict().items() if name.startswith('layers.')}
    fill(model, filled | state)
    return model


def _norm_name(state: Mapping[str, Tensor]) -> str | None:
    names = {name.rsplit('.', 1)[-1] for name in state}
    if not names:
        return None
    return 'scalar' if 'm' in names else 'batch' if 'running_mean' in names else 'layer'


def _place(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ('device', 'dtype')}
