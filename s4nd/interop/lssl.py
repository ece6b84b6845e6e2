"""Weights of LSSL (state-spaces/s4, its first version) in ours, with equal outputs: dense and structured transitions.

Shape legend: H = d_model, N = d_state, c = channels.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.kernels.lssl import LSSLKernel
from s4nd.layers.s4 import S4


def load_lssl(weights: Mapping[str, Any], prefix: str = '', **place: Any) -> S4:
    """Build the layer whose names begin with `prefix`: transition.…, log_dt, C (H, c, N), D (H, c).

    The names of the transition tell its structure: dl, d, du, … are tridiagonal, a and b dense or, as numbers,
    'cumsum'. In T, dl[i] stands left of the diagonal in row i and du[i] right of it in row i - 1, i = 1 … N - 1. Our
    output has c·H features, channel-major.

    Args:
        weights: tensors or arrays by their released names.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    C = names.take('C').transpose(0, 1)  # (c, H, N)
    structure, state = _transition(names)
    layer = S4(
        C.shape[1],
        kernel='lssl',
        d_state=C.shape[2],
        init='lagt',
        channels=len(C),
        kernel_args={'n_ssm': len(state['B']), 'structure': structure},
        **place,
    )
    state |= {'C': C, 'log_dt': names.take('log_dt')[:, None]}
    state = {f'kernels.0.{name}': value for name, value in state.items()}
    fill(layer, state | {'D': names.take('D').T})
    names.check_empty()
    return layer


def load_lssl_transition(weights: Mapping[str, Any], prefix: str = 'transition.', **place: Any) -> LSSLKernel:
    """Build a kernel of one feature from a transition alone; its C and dt are new. Raises as `load_lssl`."""
    names = Names({f'transition.{k.removeprefix(prefix)}': v for k, v in weights.items() if k.startswith(prefix)})
    structure, state = _transition(names)
    names.check_empty()
    if structure == 'cumsum':
        raise ValueError(f'{prefix}a: a number does not tell the size of the state')
    kernel = LSSLKernel(1, d_state=state['B'].shape[1], init='lagt', structure=structure, **place)
    fill(kernel, {**kernel.state_dict(), **state})
    return kernel


def _transition(names: Names) -> tuple[str, dict[str, Tensor]]:
    """The structure, and our parameters (S, …)."""
    if 'transition.dl' not in names:
        a, b = names.take('transition.a'), names.take('transition.b')
        if a.dim() == b.dim():
            return 'cumsum', {'A_diag': a.reshape(-1, 1), 'B': b.reshape(-1, 1)}
        return 'dense', {'A': a.reshape(-1, *a.shape[-2:]), 'B': b.reshape(-1, b.shape[-1])}
    ours = {
        'T_lower': 'dl', 'T_diag': 'd', 'T_upper': 'du', 'P_left': 'pl', 'P_right': 'pr', 'A_diag': 'c', 'B': 'b',
    }  # fmt: skip
    state = {name: names.take(f'transition.{theirs}') for name, theirs in ours.items()}
    state = {name: value.reshape(-1, value.shape[-1]) for name, value in state.items()}
    # The first and the last of N + 1 entries are outside T.
    state |= {name: state[name][:, 1:-1] for name in ('T_lower', 'T_upper')}
    return 'tridiagonal', state
