"""What a state reads out, and its powers: the contract on which Liquid-S4 builds, for every kernel that has a state."""

import pytest
import torch

from s4nd.kernels import KERNELS, Kernel, RecurrentKernel, make_kernel

RECURRENT = sorted(name for name, cls in KERNELS.items() if issubclass(cls, RecurrentKernel))


def build(name: str) -> Kernel:
    torch.manual_seed(0)
    return make_kernel(name, 4, channels=2, d_state=6, dt_min=0.1, dt_max=0.5, dtype=torch.float64)


@pytest.mark.parametrize('name', RECURRENT)
@pytest.mark.parametrize('length', [1, 2, 31])
@torch.no_grad()
def test_response_is_stepping_without_input(name: str, length: int) -> None:
    kernel = build(name)
    system, zero = kernel.system(0.5), kernel.init_state(1)['x']
    _, impulse = kernel.advance(zero.new_ones(1, 4), zero, system)
    torch.testing.assert_close(kernel.response(impulse[0], length, 0.5), kernel(length, 0.5), atol=1e-12, rtol=1e-10)
    start = x = torch.randn_like(zero)
    found = kernel.response(start[0], length, 0.5)
    assert found.shape == (2, 4, length)
    for lag in range(1, length):
        y, x = kernel.advance(zero.new_zeros(1, 4), x, system)
        torch.testing.assert_close(found[..., lag], y[0], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize('name', RECURRENT)
def test_products_are_of_modes_or_of_real_entries(name: str) -> None:
    kernel = build(name)
    x, y = torch.randn_like(kernel.init_state(3)['x']), torch.randn_like(kernel.init_state(3)['x'])
    if name in ('s4d', 'dss-exp'):
        true = torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(y))
    elif name == 's4':
        modes = torch.complex(x[..., :3], x[..., 3:]) * torch.complex(y[..., :3], y[..., 3:])
        true = torch.cat([modes.real, modes.imag], -1)
    else:
        true = x * y
    torch.testing.assert_close(kernel.product(x, y), true)


@pytest.mark.parametrize('name', RECURRENT)
def test_observing_is_what_a_step_does(name: str) -> None:
    kernel = build(name)
    system, x = kernel.system(), torch.randn_like(kernel.init_state(3)['x'])
    y, after = kernel.advance(torch.randn(3, 4, dtype=x.dtype), x, system)
    torch.testing.assert_close(kernel.observe(after, system), y)


def test_gradients_reach_the_state() -> None:
    kernel = build('s4')
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kernel.response(x, 5), x)
