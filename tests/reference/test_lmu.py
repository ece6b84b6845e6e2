"""LMU: the matrices of the memory by both rules, and cells with every connection, against the released formulas."""

import pytest
import torch

from s4nd.interop.lmu import load_lmu
from s4nd.kernels import LMUKernel
from s4nd.kernels.lmu import legendre_delay
from s4nd.layers.lmu import LMU
from tests.reference.cases import Case, check_covered, of_kind


def cell_of(case: Case, dtype: torch.dtype) -> LMU:
    meta = case.meta
    layer = load_lmu(
        case.param,
        d_state=meta['order'],
        theta=meta['theta'],
        discretization=meta['discretizer'],
        input_to_hidden=meta['input_to_hidden'],
        dtype=dtype,
    )
    assert (layer.hidden, layer.memories) == (meta['hidden'], meta['memory_d'])
    assert layer.hidden_to_memory == meta['hidden_to_memory']
    assert (layer.recall is not None) == meta['memory_to_memory']
    return layer


@of_kind('lmu', 'LMU memory')
def test_reference_matrices(case: Case) -> None:
    order, theta = case.meta['order'], case.meta['theta']
    A, B = legendre_delay(order, torch.device('cpu'))
    case.check('A', A)  # before the division by theta
    case.check('B', B[:, None])
    for rule in ('zoh', 'euler'):
        kernel = LMUKernel(1, d_state=order, theta=theta, discretization=rule, dtype=torch.float64)
        A, B = kernel.matrices(1.0)
        case.check(f'A_{rule}', A[0])
        case.check(f'B_{rule}', B.T)


@of_kind('lmu', 'LMU cell')
@torch.no_grad()
def test_reference_cells(case: Case) -> None:
    x = case.given['x'].transpose(1, 2)
    case.check_float32('y', cell_of(case, torch.float32)(x.float()).transpose(1, 2))
    layer = cell_of(case, torch.float64)
    case.check('y', layer(x).transpose(1, 2))
    state, system, memories = layer.init_state(len(x)), layer.system(), []
    for x_t in x.unbind(-1):
        _, state = layer.step(x_t, state, system)
        memories.append(state['memory'].flatten(1))
    case.check('memory', torch.stack(memories, 1))


def test_reference_is_covered() -> None:
    memory = {'A', 'B', 'A_zoh', 'B_zoh', 'A_euler', 'B_euler'}
    check_covered('lmu', {'LMU memory': memory, 'LMU cell': {'y', 'memory'}})


def test_reference_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match='no kernel in the published weights'):
        load_lmu({'bias': torch.zeros(1)}, d_state=4, theta=9.0)
    with pytest.raises(ValueError, match='gate has no place'):
        load_lmu({'kernel': torch.zeros(3, 1), 'gate': torch.zeros(1)}, d_state=4, theta=9.0)
