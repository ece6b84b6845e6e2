"""The causal 1-D layer: streaming equals the forward, states are values, nothing leaks from the future."""

import copy

import pytest
import torch

from s4nd import S4
from s4nd.kernels import KERNELS, RecurrentKernel
from tests.layers.streaming import check_chunks

STREAMING = [name for name, kernel in KERNELS.items() if issubclass(kernel, RecurrentKernel)]


@pytest.mark.parametrize('kernel', STREAMING)
@pytest.mark.parametrize('length', [1, 2, 31])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_stepping_equals_forward(kernel: str, length: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layer = S4(6, kernel=kernel, d_state=16, dtype=dtype)
    x = torch.randn(2, 6, length, dtype=dtype)
    state, outputs = layer.init_state(2), []
    assert all(value.shape[0] == 2 and value.dtype == dtype for value in state.values())
    for x_t in x.unbind(-1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, -1), layer(x), atol=tolerance, rtol=0)
    check_chunks(layer, x, layer(x), tolerance)


@pytest.mark.parametrize('kernel', STREAMING)
def test_gradients_pass_through_the_state(kernel: str) -> None:
    """Truncating nothing: the gradients of a clip in chunks are those of the whole."""
    torch.manual_seed(0)
    layer = S4(3, kernel=kernel, d_state=8, dtype=torch.float64)
    x = torch.randn(2, 3, 70, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    whole = torch.autograd.grad(layer(x).square().sum(), inputs)
    state, total = layer.init_state(2), 0
    for part in x.split(20, -1):
        y, state = layer(part, state)
        total = total + y.square().sum()
    for ours, theirs in zip(torch.autograd.grad(total, inputs), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8 * theirs.abs().max().item(), rtol=1e-6)


def test_a_nan_leaves_earlier_outputs_alone_in_streams() -> None:
    layer, x = S4(3, kernel='s4d'), torch.randn(1, 3, 100)
    x[..., 90] = torch.nan
    with torch.no_grad():
        y, _ = layer(x, layer.init_state(1))
    assert y[..., :90].isfinite().all() and y[..., 90:].isnan().all()


@pytest.mark.parametrize('kernel', STREAMING)
def test_a_state_can_be_used_twice(kernel: str) -> None:
    layer = S4(4, kernel=kernel, d_state=8).eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        _, state = layer.step(x, layer.init_state(3))
        kept = copy.deepcopy(state)
        first, second = layer.step(x, state), layer.step(x, state)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][key], second[1][key]) for key in state)
    assert all(torch.equal(state[key], kept[key]) for key in state)


@pytest.mark.parametrize('kernel', STREAMING)
def test_causal(kernel: str) -> None:
    layer = S4(4, kernel=kernel, d_state=8, dtype=torch.float64)
    x = torch.randn(1, 4, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[..., 5].sum(), x)
    assert gradient[..., :6].abs().min() > 0
    # (An FFT leaves rounding where there is nothing.)
    assert gradient[..., 6:].abs().max() < 1e-14 * gradient.abs().max()


def test_steps_notice_a_changed_parameter() -> None:
    layer = S4(4, d_state=8).eval()
    x, state = torch.randn(1, 4), layer.init_state(1)
    with torch.no_grad():
        before, _ = layer.step(x, state)
        layer.kernels[0].C.mul_(2)
        after, _ = layer.step(x, state)
        torch.testing.assert_close(after - layer.D[0] * x, 2 * (before - layer.D[0] * x))


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: S4(4, kernel='s6'), "unknown kernel 's6'"),
    (lambda: S4(4).step(torch.zeros(1, 3), S4(4).init_state(1)), r'\(batch, 4\).*\[1, 3\]'),
    (lambda: S4(4)(torch.zeros(1, 4, 2, 2)), r'\(batch, 4, length\)'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
