"""The convolution in one pass against the direct sum; without a GPU, in Triton's interpreter."""

import pytest
import torch

from s4nd import S4ND
from s4nd.ops import fused, separable_conv
from tests import oracles

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
LAYOUTS = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}

pytestmark = pytest.mark.skipif(not fused.runs_on(DEVICE), reason='needs Triton, and a GPU or TRITON_INTERPRET=1')


def problem(size: tuple[int, ...], rank: int, kind: str = 'bidirectional', batch: int = 3, features: int = 5) -> tuple:
    """Signal, skip and taps in float64, values that float32 holds."""
    torch.manual_seed(0)
    taps, centers = [], []
    for length in size:
        reach = {'short': max(1, length // 2), 'long': length + 3}.get(kind, length)
        lags, center = (reach, 0) if kind == 'causal' else (2 * reach - 1, reach - 1)
        taps.append(torch.randn(rank, features, lags) / length**0.5)
        centers.append(center)
    inputs = [torch.randn(batch, features, *size), torch.randn(features), *taps]
    return [t.double().requires_grad_() for t in inputs], centers


def truth(inputs: list[torch.Tensor], centers: list[int], weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients by the direct sum."""
    x, skip, *taps = inputs
    y = oracles.direct_conv(x, oracles.full_kernel(taps), centers) + skip.reshape(-1, *[1] * len(centers)) * x
    return [y.detach(), *torch.autograd.grad(y, inputs, weight)]


def ours(
    inputs: list[torch.Tensor],
    centers: list[int],
    weight: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    exact: bool = False,
) -> list[torch.Tensor]:
    x = inputs[0].detach().to(DEVICE, dtype).contiguous(memory_format=layout).requires_grad_()
    skip, *taps = (t.detach().to(DEVICE, torch.float32).requires_grad_() for t in inputs[1:])
    y = separable_conv(x, taps, centers, 'triton', skip, exact)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    return [y.detach(), *torch.autograd.grad(y, [x, skip, *taps], weight.to(DEVICE, dtype))]


def errors(found: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
    return [float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]


@pytest.mark.parametrize('size', [(1,), (7,), (33,), (1, 1), (5, 9), (17, 3), (2, 3, 5), (4, 1, 6)], ids=str)
@pytest.mark.parametrize(('rank', 'kind'), [(1, 'bidirectional'), (2, 'causal'), (3, 'long'), (1, 'short')])
def test_equals_the_direct_sum(size: tuple[int, ...], rank: int, kind: str) -> None:
    inputs, centers = problem(size, rank, kind)
    weight = torch.randn_like(inputs[0])
    assert max(errors(ours(inputs, centers, weight), truth(inputs, centers, weight))) < 1e-5


@pytest.mark.parametrize('size', [(19,), (6, 10), (3, 5, 2)], ids=str)
@pytest.mark.parametrize('rank', [1, 2])
@pytest.mark.parametrize(('dtype', 'limit', 'layout'), [
    (torch.bfloat16, 1e-2, 'contiguous'), (torch.bfloat16, 1e-2, 'channels_last'), (torch.float16, 2e-3, 'contiguous'),
])  # fmt: skip
def test_half_precision(size: tuple[int, ...], rank: int, layout: str, dtype: torch.dtype, limit: float) -> None:
    inputs, centers = problem(size, rank)
    weight = torch.randn_like(inputs[0])
    memory_format = LAYOUTS[len(size) + 2] if layout == 'channels_last' else torch.contiguous_format
    true = truth(inputs, centers, weight)
    found = ours(inputs, centers, weight, dtype, memory_format)
    assert max(errors(found, true)) < limit
    exact = ours(inputs, centers, weight, dtype, memory_format, exact=True)
    assert sum(errors(exact, true)) < sum(errors(found, true))


@pytest.mark.parametrize('size', [(6, 10), (3, 5, 2)], ids=str)
@pytest.mark.parametrize('features', [3, 20])
def test_channels_last(size: tuple[int, ...], features: int) -> None:
    inputs, centers = problem(size, 1, features=features)
    weight = torch.randn_like(inputs[0])
    found = ours(inputs, centers, weight, layout=LAYOUTS[len(size) + 2])
    assert max(errors(found, truth(inputs, centers, weight))) < 1e-5


def test_the_longest_axes_in_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, centers = problem((64, 57), 1, batch=5, features=2)
    weight = torch.randn_like(inputs[0])
    cut = fused.launch
    monkeypatch.setattr(fused, 'launch', lambda x: cut(x, programs=4))
    assert cut(inputs[0], programs=4).rows == 3  # two programs for each feature, the second with a row too many
    x, skip, *taps = inputs
    y = separable_conv(x, taps, centers, 'fft', skip)
    true = [y.detach(), *torch.autograd.grad(y, inputs, weight)]
    assert max(errors(ours(inputs, centers, weight), true)) < 1e-5


def test_views_as_they_come() -> None:
    """Signals and gradients with gaps or other strides than those of a new tensor."""
    inputs, centers = problem((6, 5), 1)
    true = truth(inputs, centers, torch.ones_like(inputs[0]))
    x = torch.zeros(3, 5, 6, 11, device=DEVICE)[..., 1:11:2].copy_(inputs[0].detach()).requires_grad_()
    skip, *taps = (t.detach().to(DEVICE, torch.float32).requires_grad_() for t in inputs[1:])
    y = separable_conv(x, taps, centers, 'triton', skip)
    found = torch.autograd.grad(y.sum(), [x, skip, *taps])  # a gradient of stride 0
    assert max(errors([y.detach(), *found], true)) < 1e-5


@pytest.mark.parametrize('needs', ['x', 'taps', 'skip'])
def test_only_what_is_needed(needs: str) -> None:
    inputs, centers = problem((4, 6), 2)
    true = truth(inputs, centers, torch.ones_like(inputs[0]))
    place = {'x': slice(0, 1), 'skip': slice(1, 2), 'taps': slice(2, None)}[needs]
    x, skip, *taps = (t.detach().to(DEVICE, torch.float32) for t in inputs)
    wanted = [t.requires_grad_() for t in [x, skip, *taps][place]]
    found = torch.autograd.grad(separable_conv(x, taps, centers, 'triton', skip).sum(), wanted)
    assert max(errors(list(found), true[1:][place])) < 1e-5


def test_no_skip() -> None:
    inputs, centers = problem((4, 6), 2)
    x, _, *taps = (t.detach().to(DEVICE, torch.float32).requires_grad_() for t in inputs)
    y, true = (separable_conv(x, taps, centers, method) for method in ('triton', 'fft'))
    torch.testing.assert_close(y, true)
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), [x, *taps]) for t in (y, true)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_second_derivatives() -> None:
    inputs, centers = problem((3, 4), 2)

    def second(method: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        x, skip, *taps = inputs
        y = separable_conv(x, taps, centers, method, skip)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))

    single = [t.detach().to(DEVICE, torch.float32).requires_grad_() for t in inputs]
    assert max(errors(second('triton', single), second('fft', inputs))) < 1e-5


def test_layer() -> None:
    layer = S4ND(6, (9, 7), d_state=8, tensor_rank=2).to(DEVICE)
    x = torch.randn(2, 6, 12, 7, device=DEVICE)
    layer.method = 'toeplitz'
    true = layer(x)
    layer.method = 'triton'
    torch.testing.assert_close(layer(x), true, atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # remembers taps, no matrices
        torch.testing.assert_close(layer.eval()(x), true, atol=1e-5, rtol=1e-4)
    assert all(k.dim() == 3 for k in layer._kept['operators'].value[0])


def test_not_a_number_reaches_its_feature_and_row_alone() -> None:
    inputs, centers = problem((4, 6), 1, 'causal')
    x, skip, *taps = (t.detach().to(DEVICE, torch.float32) for t in inputs)
    x[1, 2, 3, 5] = float('nan')
    y = separable_conv(x, taps, centers, 'triton', skip)
    assert y[1, 2].isnan().all()
    assert y.isnan().sum() == y[1, 2].numel()


def test_compiled() -> None:
    inputs, centers = problem((4, 6), 1)
    x, skip, *taps = (t.detach().to(DEVICE, torch.float32).requires_grad_() for t in inputs)
    compiled = torch.compile(separable_conv, backend='aot_eager', fullgraph=True)
    results = [function(x, taps, centers, 'triton', skip) for function in (separable_conv, compiled)]
    gradients = [torch.autograd.grad(y.square().sum(), [x, skip, *taps]) for y in results]
    torch.testing.assert_close(*results)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(('size', 'dtype'), [
    ((65, 4), torch.float32), ((4, 4), torch.float64), ((64, 64, 8), torch.float32),
], ids=str)  # fmt: skip
def test_what_does_not_fit(size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.zeros(1, 2, *size, dtype=dtype, device=DEVICE)
    taps = [torch.zeros(1, 2, 1, device=DEVICE) for _ in size]
    with pytest.raises(ValueError, match=r"'triton'.*got size \["):
        separable_conv(x, taps, [0] * len(size), 'triton')
    assert separable_conv(x, taps, [0] * len(size)).shape == x.shape


def test_matrices_cannot_be_forced() -> None:
    x, matrices = torch.zeros(1, 2, 4, device=DEVICE), torch.zeros(1, 2, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match='matrices'):
        separable_conv(x, [matrices], [0], 'triton')
