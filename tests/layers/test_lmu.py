"""LMU: streaming, a trained window, the linear part, initialization, bad input. (Equations: tests/reference.)"""

import pytest
import torch

from s4nd import param_groups
from s4nd.kernels import LMUKernel
from s4nd.layers import LMU
from tests import oracles
from tests.layers.streaming import check_causal, check_states_are_values

DOUBLE = torch.float64


def lmu(dtype: torch.dtype = DOUBLE, **options: object) -> LMU:
    torch.manual_seed(0)
    ones = {'memories': 2, 'd_state': 4, 'theta': 9.0, 'hidden_to_memory': True, 'memory_to_memory': True}
    return LMU(6, **{**ones, 'input_to_hidden': True, 'dtype': dtype, **options})


@pytest.mark.parametrize('rule', ['zoh', 'euler'])
def test_streams(rule: str) -> None:
    layer = lmu(discretization=rule, theta=30.0)
    check_states_are_values(layer, 6)
    check_causal(layer, 6)
    x = torch.randn(2, 6, 20, dtype=DOUBLE)
    first, state = layer(x[..., :7], layer.init_state(2))
    second, _ = layer(x[..., 7:], state)
    torch.testing.assert_close(torch.cat([first, second], -1), layer(x), atol=1e-13, rtol=0)


def test_without_a_cell_the_memory_is_linear() -> None:
    """Memory i is the convolution of u with the taps of a readout of its own."""
    layer = lmu(hidden=0, hidden_to_memory=False, memory_to_memory=False, input_to_hidden=False)
    x = torch.randn(1, 6, 15, dtype=DOUBLE)
    assert layer.d_output == 8
    y, u = layer(x)[0], layer.encoder(x[0].T)
    A, B = oracles.lmu_matrices(4)
    taps = oracles.zoh_taps(1 / 9, A, B, torch.eye(4, dtype=DOUBLE), 15)
    for m in range(2):
        true = torch.stack([sum(taps[:, lag] * u[t - lag, m] for lag in range(t + 1)) for t in range(15)], -1)
        torch.testing.assert_close(y[4 * m : 4 * m + 4], true, atol=1e-12, rtol=0)


def test_a_trained_window() -> None:
    """Its gradient is right, also in the kernel, and it is in the group of the state-space parameters."""
    layer = lmu(train_theta=True)
    torch.testing.assert_close(layer.log_theta.detach().exp(), torch.tensor([9.0], dtype=DOUBLE))
    groups = [group for group in param_groups(layer, 0.01) if group['lr'] == 1e-3]
    assert [p is layer.log_theta for group in groups for p in group['params']] == [True]
    kernel = LMUKernel(2, d_state=4, theta=9.0, train_theta=True, dtype=DOUBLE)

    def taps(log_theta: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(kernel, {'log_theta': log_theta}, (6, 0.5))

    assert torch.autograd.gradcheck(taps, kernel.log_theta.detach().requires_grad_())
    fixed = LMUKernel(2, d_state=4, theta=9.0, dtype=DOUBLE)
    fixed.load_state_dict(kernel.state_dict(), strict=False)
    torch.testing.assert_close(kernel(9), fixed(9), atol=1e-12, rtol=0)


def test_theta_counts_samples_of_the_training_grid() -> None:
    """Two half steps move the memory as one step does, for an input that is held."""
    layer = lmu(hidden=0, hidden_to_memory=False, memory_to_memory=False)
    x, state = torch.randn(1, 6, dtype=DOUBLE), layer.init_state(1)
    _, once = layer.step(x, state, layer.system())
    for _ in range(2):
        _, state = layer.step(x, state, layer.system(0.5))
    torch.testing.assert_close(state['memory'], once['memory'], atol=1e-12, rtol=0)


def test_half_precision() -> None:
    layer = lmu(torch.float32)
    x = torch.randn(2, 6, 9)
    y = layer(x)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, atol=0.1, rtol=0)


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: LMU(0), 'd_model=0'),
    (lambda: LMU(4, memories=0), 'memories=0'),
    (lambda: LMU(4, theta=0.0), 'theta must be a positive number of samples, got 0.0'),
    (lambda: LMU(4, hidden=0, hidden_to_memory=True), 'needs a cell, got hidden=0'),
    (lambda: LMU(4, discretization='bilinear'), "unknown discretization 'bilinear': expected one of zoh, euler"),
    (lambda: LMU(4)(torch.zeros(1, 5, 3)), r'\(batch, 4, length\), got shape \[1, 5, 3\]'),
    (lambda: LMU(4).system(0.0), 'step must be positive'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
