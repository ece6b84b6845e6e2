"""State dicts of DSS (ag1988/dss) and of gated state spaces (lucidrains/gated-state-spaces-pytorch) in ours.

Λ has the imaginary part -A_imag here; under Re all conjugates may be taken, C with them.
Shape legend: H = features of the state space, N = stored modes, C = d_model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, build_gated, fill
from s4nd.layers.block import GatedLayer
from s4nd.layers.gss import GSS
from s4nd.layers.s4 import S4
from s4nd.models.sequence import SequenceModel

DSS_VERSIONS = ('exp', 'exp-re-im', 'exp-no-scale', 'softmax', 'clip')


def load_dss(
    weights: Mapping[str, Any], length: int, prefix: str = '', *, version: str | None = None, **place: Any
) -> GatedLayer:
    """Build the layer whose names begin with `prefix`: D, kernel.…, output_linear.0.….

    Args:
        weights: tensors or arrays by their released names.
        length: L, samples of the inputs. The softmax is taken over them; other versions do not depend on it.
        version: one of DSS_VERSIONS; None: 'exp', 'exp-re-im' or 'softmax', which can be told by their names.
        place: device and dtype.

    Raises:
        ValueError: for an unknown version, and naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    if version is None:
        version = 'softmax' if 'kernel.Lambda' in names else 'exp-re-im' if 'kernel.Lambda_log_im' in names else 'exp'
    if version not in DSS_VERSIONS:
        raise ValueError(f'unknown version {version!r}: expected one of {", ".join(DSS_VERSIONS)}')
    D, C, log_dt = names.take('D'), names.take('kernel.W'), names.take('kernel.log_dt')
    softmax, two_sided = version == 'softmax', len(C) == 2 * len(D)
    args: dict[str, Any] = {'dt_split': log_dt.dim() == 2}
    if softmax:
        args['length'] = length
    else:
        args |= {'real': 'clip' if version == 'clip' else 'exp', 'scaled': version != 'exp-no-scale'}
    layer = S4(
        D.shape[1],
        kernel='dss-softmax' if softmax else 'dss-exp',
        d_state=2 * C.shape[2],
        bidirectional=two_sided,
        l_max=length if softmax else None,
        channels=len(D),
        cell='published',
        kernel_args=args,
        **place,
    )
    state = {'layer.D': D, 'layer.kernels.0.C': C, 'layer.kernels.0.log_dt': log_dt.reshape(len(log_dt), -1)}
    state |= {f'layer.kernels.0.{name}': value for name, value in _dss_spectrum(names).items()}
    return build_gated(names, layer, state, place)


def load_gss(weights: Mapping[str, Any], prefix: str = '', *, reverse: bool = False, **options: Any) -> GSS:
    """Build the GSS layer whose names begin with `prefix`.

    Args:
        weights: tensors or arrays by their released names.
        reverse: `reverse_seq` of the released layer.
        options: lambda_imag_exp (True, as released: Im Λ is the exponential of its parameter), device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    is_exp = options.pop('lambda_imag_exp', True)
    gate, value = names.take('to_u.0.weight'), names.take('to_v.0.weight')
    C = torch.stack([names.take('dss.C_real'), names.take('dss.C_imag')], -1)
    d_model = gate.shape[1]
    if len(gate) % d_model:
        raise ValueError(f'{prefix}to_u.0.weight: expected a multiple of {d_model} rows, got {len(gate)}')
    layer = GSS(
        d_model, expand=len(gate) // d_model, d_ssm=len(value), d_state=2 * C.shape[1], reverse=reverse, **options
    )
    imag = names.take('dss.Lambda_imag')
    # Im Λ is -exp(log_A_imag) in ours: modes above zero are conjugated.
    above = torch.ones_like(imag) if is_exp else torch.where(imag > 0, 1.0, -1.0)
    state = {
        'inputs.weight': torch.cat([gate, value]),
        'kernel.log_A_real': names.take('dss.Lambda_real')[None],
        'kernel.log_A_imag': (imag if is_exp else imag.abs().log())[None],
        'kernel.C': torch.stack([C[..., 0], -above * C[..., 1]], -1)[None],
        'D': names.take('dss.param_D'),
        'gate.weight': names.take('to_gate.weight'),
    }
    state |= names.take_all('norm.', 'norm.') | names.take_all('dss.norm.', 'norm_ssm.')
    fill(layer, state | names.take_all('to_out.', 'out.'))
    names.check_empty()
    return layer


def load_gss_language_model(weights: Mapping[str, Any], prefix: str = '', **options: Any) -> SequenceModel:
    """Build the language model (GatedStateSpacesLM) whose names begin with `prefix`. Options as `load_gss`.

    Raises:
        ValueError: as `load_gss`.
    """
    names = Names(weights, prefix)
    embedding, depth = names.take('token_emb.weight'), 0
    while f'layers.{depth}.norm.weight' in names:
        depth += 1
    layers = [load_gss(weights, f'{prefix}layers.{i}.', **options) for i in range(depth)]
    place = {key: value for key, value in options.items() if key in ('device', 'dtype')}
    tokens, d_model = embedding.shape
    model = SequenceModel(tokens, tokens, layers, d_model=d_model, tokens=True, norm=None, **place)
    state = {name: value for name, value in model.state_dict().items() if name.startswith('layers.')}
    head = names.take('to_logits.weight')
    ends = {'encoder.weight': embedding, 'decoder.weight': head, 'decoder.bias': head.new_zeros(tokens)}
    fill(model, state | ends)
    names.take_all('layers.')
    names.check_empty()
    return model


def _dss_spectrum(names: Names) -> dict[str, Tensor]:
    if 'kernel.Lambda' in names:
        real, imag = names.take('kernel.Lambda').unbind(-1)
        return {'A_real': real[None], 'A_imag': -imag[None]}
    if 'kernel.Lambda_log_im' in names:
        imag = names.take('kernel.Lambda_log_im').exp()
    else:
        imag = names.take('kernel.Lambda_im')
    return {'log_A_real': names.take('kernel.Lambda_log_neg_re')[None], 'A_imag': -imag[None]}
