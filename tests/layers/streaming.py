"""What layers that stream must do: step as they run, keep states as values, see no future; precisions and export."""

import copy

import torch
from torch import Tensor, nn


def run_steps(layer: nn.Module, x: Tensor) -> Tensor:
    """(B, C, L) through `step`, the system computed once -> (B, C, L)."""
    state, system, outputs = layer.init_state(len(x)), layer.system(), []
    for x_t in x.unbind(-1):
        y, state = layer.step(x_t, state, system)
        outputs.append(y)
    return torch.stack(outputs, -1)


def check_streaming(layer: nn.Module, d_model: int, tolerance: float) -> None:
    """Stepping through clips of several lengths equals the forward."""
    torch.manual_seed(1)
    dtype = next(layer.parameters()).dtype
    for length in (1, 2, 31):
        x = torch.randn(2, d_model, length, dtype=dtype)
        y = layer(x)
        assert y.shape == x.shape and y.dtype == dtype
        torch.testing.assert_close(run_steps(layer, x), y, atol=tolerance, rtol=0)
        check_chunks(layer, x, y, tolerance)
        # The system is computed anew where it is not given.
        first, _ = layer.step(x[..., 0], layer.init_state(2))
        torch.testing.assert_close(first, y[..., 0], atol=tolerance, rtol=0)


def check_chunks(layer: nn.Module, x: Tensor, y: Tensor, tolerance: float) -> None:
    """Stretches of any length from the state before them give what the whole clip gives, and steps go on from them."""
    for size in (1, 2, 7, 30):
        state, outputs = layer.init_state(len(x)), []
        for part in x.split(size, -1):
            kept = {key: value.clone() for key, value in state.items()}
            before = state
            y_part, state = layer(part, state)
            assert all(torch.equal(before[key], kept[key]) for key in kept)
            outputs.append(y_part)
        torch.testing.assert_close(torch.cat(outputs, -1), y, atol=tolerance, rtol=0)
    if x.shape[-1] > 3:
        _, state = layer(x[..., :-1], layer.init_state(len(x)))
        torch.testing.assert_close(layer.step(x[..., -1], state)[0], y[..., -1], atol=tolerance, rtol=0)


def check_states_are_values(layer: nn.Module, d_model: int) -> None:
    """Flat, batch first, of the layer's dtype; a state can be used twice and is left as it was; gradients pass."""
    torch.manual_seed(1)
    dtype = next(layer.parameters()).dtype
    state = layer.init_state(3)
    assert all(isinstance(value, Tensor) and len(value) == 3 and value.dtype == dtype for value in state.values())
    x = torch.randn(7, 3, d_model, dtype=dtype)
    for x_t in x[:-1]:
        _, state = layer.step(x_t, state)
    kept = {key: value.clone() for key, value in state.items()}
    first, second = layer.step(x[-1], state), layer.step(x[-1], copy.copy(state))
    assert torch.equal(first[0], second[0])
    assert state.keys() == first[1].keys()
    assert all(torch.equal(first[1][key], second[1][key]) for key in state)
    assert all(torch.equal(state[key], kept[key]) for key in state)


def check_causal(layer: nn.Module, d_model: int, first: int = 0) -> None:
    """Through gradients (float64): output 12 of 20 depends on samples `first` … 12 and on no later or earlier one."""
    torch.manual_seed(1)
    x = torch.randn(1, d_model, 20, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(x)[..., 12] * torch.randn(d_model, dtype=torch.float64)).sum(), x)
    size = gradient[0].abs().amax(0)
    assert size[first:13].min() > 1e-9 * size.max()
    # (An FFT leaves rounding where there is nothing.)
    assert size[13:].max() < 1e-14 * size.max()
    assert first == 0 or size[:first].max() == 0


def check_half_precision_and_export(layer: nn.Module, d_model: int) -> None:
    """bfloat16 in and out, near the float32 output; autocast keeps the dtype; torch.export gives the same (float32)."""
    torch.manual_seed(1)
    x = torch.randn(2, d_model, 11)
    y = layer(x)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), y, atol=1e-5, rtol=0)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x), y, atol=0.1, rtol=0)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, atol=0.1, rtol=0)
