"""The same numbers on a GPU as on the CPU; skipped where there is none."""

import copy

import pytest
import torch

from s4nd import S4, S4ND
from s4nd.kernels import KERNELS, RecurrentKernel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
@pytest.mark.parametrize('size', [(700,), (13, 8), (4, 6, 5)], ids=str)
def test_forward_and_gradients(kernel: str, method: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = S4ND(4, size, kernel=kernel, d_state=16, method=method)
    there = copy.deepcopy(layer).cuda()
    x = torch.randn(2, 4, *size)
    here, away = layer(x), there(x.cuda())
    torch.testing.assert_close(away.cpu(), here, atol=1e-4, rtol=1e-4)
    here.square().sum().backward()
    away.square().sum().backward()
    for name, parameter in layer.named_parameters():
        other = there.get_parameter(name).grad.cpu()
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(other / scale, parameter.grad / scale, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    layer = S4ND(4, (16, 16), d_state=16).cuda()
    x = torch.randn(2, 4, 16, 16, device='cuda')
    with torch.autocast('cuda', dtype):
        torch.testing.assert_close(layer(x), layer.cpu()(x.cpu()).cuda(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kernel', [name for name in KERNELS if issubclass(KERNELS[name], RecurrentKernel)])
def test_streaming(kernel: str) -> None:
    layer = S4(4, kernel=kernel, d_state=16).cuda()
    x = torch.randn(2, 4, 50, device='cuda')
    state, system, outputs = layer.init_state(2), layer.system(), []
    for x_t in x.unbind(-1):
        y, state = layer.step(x_t, state, system)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, -1), layer(x), atol=1e-4, rtol=1e-4)
