"""The same numbers on a GPU as on the CPU; skipped where there is none.

Without `-k` it takes about a minute on one card; `make gpu` runs it with tests/ops/test_fused.py.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from s4nd import S4, S4ND
from s4nd.kernels import KERNELS, RecurrentKernel
from s4nd.layers import GSS, S5, CKConv, LiquidS4, Mega
from tests.models import families

DEVICE = 'cuda'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    's4nd': (lambda: S4ND(4, (13, 8), d_state=16, tensor_rank=2), (13, 8)),
    's4nd 3 axes': (lambda: S4ND(4, (4, 6, 5), d_state=16, bidirectional=(False, True, True)), (4, 6, 5)),
    's4nd wide': (lambda: S4ND(4, (80, 9), d_state=16), (80, 9)),
    's4': (lambda: S4(4, d_state=16), (700,)),
    's5': (lambda: S5(4, d_state=16), (100,)),
    'liquid': (lambda: LiquidS4(4, d_state=16), (60,)),
    'gss': (lambda: GSS(4), (100,)),
    'mega': (lambda: Mega(8), (60,)),
    'ckconv': (lambda: CKConv(4, (9, 12)), (9, 12)),
}


def relative(found: Tensor, true: Tensor) -> float:
    found, true = found.detach().double().cpu(), true.detach().double().cpu()
    return float((found - true).norm() / true.norm().clamp(min=1e-12))


def compare(here: nn.Module, x: Tensor, limit: float, grad_limit: float, there: nn.Module | None = None) -> None:
    """Output and gradients of a module on the CPU and of `there`, by default its copy, on the GPU."""
    away = copy.deepcopy(here).to(DEVICE) if there is None else there
    near, far = x.clone().requires_grad_(), x.to(DEVICE).requires_grad_()
    true, found = here(near), away(far)
    assert relative(found, true) < limit
    weight = torch.randn_like(true)
    names = [name for name, p in here.named_parameters() if p.requires_grad]
    expected = torch.autograd.grad(true, [near, *here.parameters()], weight)
    ours = torch.autograd.grad(found, [far, *away.parameters()], weight.to(found))
    for name, a, b in zip(['x', *names], ours, expected, strict=True):
        assert relative(a, b) < grad_limit, name


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('method', ['auto', 'toeplitz', 'fft'])
@pytest.mark.parametrize('size', [(70,), (13, 8), (4, 6, 5)], ids=str)
def test_kernels(kernel: str, method: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = S4ND(4, size, kernel=kernel, d_state=16)
    layer.method = method
    compare(layer, torch.randn(2, 4, *size), 1e-5, 1e-3)


@pytest.mark.parametrize('name', LAYERS)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    make, size = LAYERS[name]
    layer = make()
    compare(layer, torch.randn(2, layer.d_model, *size), 1e-4, 1e-3)


@pytest.mark.parametrize('case', [*families.SMALL, *families.CLIPS])
def test_families(case: str) -> None:
    model = families.build(case)
    compare(model, sample(model), 1e-4, 5e-3)


def sample(model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    grid = model.img_size if model.num_frames is None else (model.num_frames, *model.img_size)
    return torch.randn(2, model.in_chans, *grid)


@pytest.mark.parametrize('case', ['convnext', 'vit', 'isotropic', 'ccnn batchnorm', 'convnext3d', 'isotropic3d'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_autocast(case: str, dtype: torch.dtype, layout: str) -> None:
    model, x = families.build(case), None
    x = sample(model)
    true = model(x)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    away, x = model.to(DEVICE), x.to(DEVICE)
    if layout == 'channels_last':
        x = x.contiguous(memory_format=formats[x.dim()])
        if x.dim() == 4:
            away = away.to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, dtype):
        y = away(x)
    assert relative(y, true) < 3e-2
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in away.parameters())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('length', [7, 14, 28, 56])
def test_layer_at_the_stages(dtype: torch.dtype, layout: torch.memory_format, length: int) -> None:
    torch.manual_seed(0)
    layer = S4ND(40, (length, length))
    x = torch.randn(3, 40, length, length)
    true = layer(x)
    away = layer.to(DEVICE)
    y = away(x.to(DEVICE, dtype).contiguous(memory_format=layout))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    assert relative(y, true) < {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


@pytest.mark.parametrize('case', ['convnext', 'convnext3d'])
def test_compiled(case: str) -> None:
    model = families.build(case)
    compare(model, sample(model), 1e-4, 5e-3, torch.compile(copy.deepcopy(model).to(DEVICE)))


@pytest.mark.parametrize('case', ['convnext', 'convnext s4', 'vit', 'isotropic', 'ccnn batchnorm', 'convnext3d'])
def test_a_training_step_does_not_wait_for_the_gpu(case: str) -> None:
    model = families.build(case).train()
    x = sample(model).to(DEVICE)
    model.to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    target = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)

    def step() -> None:
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('kernel', [name for name in KERNELS if issubclass(KERNELS[name], RecurrentKernel)])
def test_streaming(kernel: str) -> None:
    layer = S4(4, kernel=kernel, d_state=16).to(DEVICE)
    x = torch.randn(2, 4, 50, device=DEVICE)
    state, system, outputs = layer.init_state(2), layer.system(), []
    for x_t in x.unbind(-1):
        y, state = layer.step(x_t, state, system)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, -1), layer(x), atol=1e-4, rtol=1e-4)
