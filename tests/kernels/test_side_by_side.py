"""Kernels of one form evaluated at once, against each alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from s4nd import S4ND
from s4nd.kernels import KERNELS, S4DKernel, S4Kernel, form_of, make_kernel, side_by_side
from s4nd.layers import s4nd as layer_module

OPTIONS: list[dict] = [
    {},
    {'init': 'real', 'bandlimit': 0.3},
    {'n_ssm': 2, 'dt_tied': False},
    {'discretization': 'bilinear', 'channels': 2, 'bandlimit': 0.3},
    {'real': 'free', 'init': 'inv+lin', 'n_ssm': 4},
]


def kernels(count: int = 2, **options: object) -> list[S4DKernel]:
    torch.manual_seed(0)
    return [S4DKernel(4, d_state=6, dt_min=0.01, dt_max=0.5, **options).double() for _ in range(count)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('length', [1, 2, 9])
@pytest.mark.parametrize('cells', [True, False])
def test_equals_each_alone(options: dict, length: int, cells: bool) -> None:
    each = kernels(3, **options)
    assert len({form_of(kernel) for kernel in each}) == 1
    alone = torch.stack([kernel(length, 0.7, cells) for kernel in each])
    joint = side_by_side(each)(length, 0.7, cells)
    torch.testing.assert_close(joint, alone, atol=1e-12, rtol=0)
    parameters = [p for kernel in each for p in kernel.parameters()]
    weight = torch.randn_like(alone)
    found = [torch.autograd.grad((t * weight).sum(), parameters, materialize_grads=True) for t in (joint, alone)]
    for ours, true in zip(*found, strict=True):
        torch.testing.assert_close(ours, true, atol=1e-11, rtol=0)


def test_second_derivatives() -> None:
    each = kernels(2)
    parameters = [p for kernel in each for p in kernel.parameters()]

    def second(taps: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(taps.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    joint = second(side_by_side(each)(5, 0.7, True))
    alone = second(torch.stack([kernel(5, 0.7, True) for kernel in each]))
    for ours, true in zip(joint, alone, strict=True):
        torch.testing.assert_close(ours, true, atol=1e-10, rtol=1e-10)


def test_others_are_evaluated_alone() -> None:
    class Other(S4DKernel):
        pass

    first, *rest = kernels(5)
    assert form_of(first) == form_of(rest[0]) is not None
    prune.l1_unstructured(rest[0], 'C', 0.5)
    parametrizations.orthogonal(rest[1], 'C')
    rest[2].register_forward_hook(lambda *given: None)
    rest[3].bandlimit = 0.5
    others = [*rest, *kernels(1, real='free'), Other(4, d_state=6), make_kernel('s4', 4, d_state=6), nn.Linear(2, 2)]
    assert not any(form_of(kernel) == form_of(first) for kernel in others)
    assert [form_of(kernel) for kernel in (*rest[:3], *others[-3:])] == [None] * 6
    assert isinstance(others[-2], S4Kernel)


class Counted(S4DKernel):
    """S4D that counts its evaluations."""

    stacks = True
    calls = 0

    def _taps(self, length: int, step: float, cells: bool) -> Tensor:
        Counted.calls += 1
        return super()._taps(length, step, cells)


@pytest.mark.parametrize(
    ('grid', 'size', 'options', 'calls'),
    [
        ((5, 5), (5, 5), {}, 1),
        ((5, 5), (7, 7), {'tensor_rank': 2}, 1),
        ((5, 7), (5, 7), {'padding_mode': 'circular'}, 2),
        ((3, 5, 5), (3, 5, 5), {'cell': 'published', 'channels': 2}, 2),
        ((5, 5), (5, 5), {'bidirectional': (True, False)}, 2),
        ((5, 5), (5, 5), {'bidirectional': False, 'l_max': (3, 5), 'kernel_args': {'n_ssm': 2}}, 2),
        ((5, 5), (5, 5), {'kernel': ('s4d', 's4')}, 1),
        ((5, 5), (3, 3), {'padding_mode': ('circular', 'zeros'), 'l_max': 3}, 1),
    ],
)
def test_axes_of_a_layer(grid: tuple, size: tuple, options: dict, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(KERNELS, 's4d', Counted)
    layer = S4ND(4, grid, d_state=6, dtype=torch.float64, **options)
    steps = [n / m for n, m in zip(grid, size, strict=True)]
    monkeypatch.setattr(Counted, 'calls', 0)
    joint = layer.all_taps(list(size), steps)
    assert Counted.calls == calls
    monkeypatch.setattr(layer_module, 'observed', lambda: True)
    alone = layer.all_taps(list(size), steps)
    assert joint[1] == alone[1]
    for ours, true in zip(joint[0], alone[0], strict=True):
        torch.testing.assert_close(ours, true, atol=1e-12, rtol=0)


def test_one_kernel_for_both_axes() -> None:
    for name in ('s4d', 's4'):
        layer = S4ND(3, (5, 5), kernel=name, d_state=4, dtype=torch.float64)
        layer.kernels[1] = layer.kernels[0]
        taps, _ = layer.all_taps([5, 5], [1.0, 1.0])
        torch.testing.assert_close(taps[0], taps[1], atol=0, rtol=0)
        (taps[0].square().sum() + taps[1].square().sum()).backward()
        once = layer.axis_taps(0, 5, 1.0)[0]
        true = torch.autograd.grad(2 * once.square().sum(), layer.kernels[0].C)[0]
        torch.testing.assert_close(layer.kernels[0].C.grad, true, atol=1e-10, rtol=1e-10)


def test_the_plain_path_of_other_devices_takes_kernels_alone() -> None:
    layer = S4ND(4, (5, 5), d_state=4, device='meta')
    assert layer(torch.empty(2, 4, 5, 5, device='meta')).shape == (2, 4, 5, 5)
