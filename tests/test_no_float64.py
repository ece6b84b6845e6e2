"""Devices without float64 (MPS), as far as a CPU can tell: no operator of a layer makes such a tensor."""

import sys
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import s4nd
from s4nd.audio import SaShiMi
from s4nd.audio.generation.sampling import EagerLoop
from s4nd.diffusion import step_features


class NoFloat64(TorchDispatchMode):
    """Raises where an operator makes a tensor of float64 or complex128."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        wrong = [t.dtype for t in tree_leaves(found) if isinstance(t, Tensor)]
        assert not {torch.float64, torch.complex128} & set(wrong), f'{func} makes {wrong}'
        return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module take this device for one without float64."""
    for name, module in list(sys.modules.items()):
        if name.startswith('s4nd'):
            for function, value in {
                'wide': lambda x: x.float(),
                'wide_dtype': lambda device: torch.float32,
                '_checksum': lambda t: 0.0,  # of tensors on CPUs only
            }.items():
                if function in vars(module):
                    monkeypatch.setattr(module, function, value)


def layer(make: Callable[[], torch.nn.Module], *shape: int) -> Callable[[], Tensor]:
    module, x = make(), torch.randn(*shape)
    return lambda: module(x)


def chunk(module: s4nd.S4, x: Tensor) -> Callable[[], Tensor]:
    return lambda: module(x, module.init_state(1))[0]


CASES = {
    's4nd': lambda: layer(lambda: s4nd.S4ND(4, (8, 8)), 1, 4, 8, 8),
    's4': lambda: layer(lambda: s4nd.S4(4, kernel='s4'), 1, 4, 40),
    's4d': lambda: layer(lambda: s4nd.S4(4, kernel='s4d'), 1, 4, 40),
    'dss-exp': lambda: layer(lambda: s4nd.S4(4, kernel='dss-exp'), 1, 4, 40),
    'lmu': lambda: layer(lambda: s4nd.S4(4, kernel='lmu'), 1, 4, 40),
    'ema': lambda: layer(lambda: s4nd.S4(4, kernel='ema'), 1, 4, 40),
    's5': lambda: layer(lambda: s4nd.S5(4), 1, 4, 40),
    'gss': lambda: layer(lambda: s4nd.GSS(8, d_state=8), 1, 8, 40),
    'mega': lambda: layer(lambda: s4nd.Mega(8, chunk=16), 1, 8, 40),
    'convnext': lambda: layer(lambda: timm.create_model('s4nd_convnext_micro', img_size=32), 1, 3, 32, 32),
    'from a state': lambda: chunk(s4nd.S4(4, kernel='s4').eval(), torch.randn(1, 4, 600)),
    'step features': lambda: lambda: step_features(torch.arange(3), 8),
}


@pytest.mark.parametrize('name', CASES)
def test_forward_and_backward(narrow: None, name: str) -> None:
    torch.manual_seed(0)
    run = CASES[name]()
    with NoFloat64():
        y = run()
        if y.requires_grad:
            y.sum().backward()
    assert torch.isfinite(y).all()


def test_generation(narrow: None) -> None:
    model = SaShiMi(8, d_model=8, n_layers=1, d_state=8).eval()
    loop = EagerLoop(model, 1)
    assert loop.sample(torch.zeros(1, dtype=torch.long), torch.rand(1, 3).double().numpy()).shape == (1, 3)
