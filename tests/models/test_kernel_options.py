"""kernel='…' and kernel_args in every timm family: built, run at two sizes, trained, saved and loaded."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from s4nd import S4ND
from s4nd.kernels import KERNELS, Kernel
from tests.models.families import SMALL, image

FAMILIES = ['isotropic', 'vit', 'vit 1d', 'convnext', 'convnext s4nd everywhere']

# Of every kernel an option that its class has beside the keywords of the models, and a value that is not the default.
OPTIONS = {
    's4d': {'discretization': 'bilinear'},
    's4': {'rank': 2},
    'lmu': {'theta': 28.0},
    'dss-softmax': {'length': 30},
    'sgconv': {'length': 30},
    'ckconv': {'network': 'siren', 'mask': False, 'hidden': 8},
}


def make(family: str, kernel: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    name, base = SMALL[family]
    return timm.create_model(name, **{**base, 'bandlimit': None, 'd_state': 4, 'kernel': kernel, **options})


def axis_kernels(model: torch.nn.Module) -> list[Kernel]:
    return [axis for layer in model.modules() if isinstance(layer, S4ND) for axis in layer.kernels]


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('family', FAMILIES)
def test_every_kernel_in_every_family(family: str, kernel: str, tmp_path: Path) -> None:
    """kernel='…' alone: every parameter learns, another size runs, and a saved model is the same one."""
    model = make(family, kernel)
    size = model.img_size[0]
    model(image(size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    save_for_hf(model.eval(), tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        for at in (size, (size + 8, size + 16)):
            assert model(image(at)).isfinite().all()
            assert torch.equal(loaded(image(at)), model(image(at)))


@pytest.mark.parametrize('kernel', OPTIONS)
@pytest.mark.parametrize('family', FAMILIES)
def test_options_reach_every_kernel_and_the_hub(family: str, kernel: str, tmp_path: Path) -> None:
    options = OPTIONS[kernel]
    model = make(family, kernel, kernel_args=options).eval()
    pairs = list(zip(axis_kernels(model), axis_kernels(make(family, kernel)), strict=True))
    assert len(pairs) >= 3
    for ours, plain in pairs:
        with torch.no_grad():
            assert not torch.allclose(ours(16), plain(16)), ours
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / 'config.json').read_text())['model_args']['kernel_args'] == options
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image(40)), model(image(40)))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_wrong_option_is_named_beside_the_right_ones(family: str) -> None:
    with pytest.raises(ValueError, match=r"kernel 'lmu' has no option \['window'\]: expected some of \[.*'theta'"):
        make(family, 'lmu', kernel_args={'window': 28})
    with pytest.raises(ValueError, match='theta must be'):
        make(family, 'lmu', kernel_args={'theta': -1})


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('network', ['magnet', 'siren'])
def test_networks_in_kernels_keep_their_own_initialization(family: str, network: str) -> None:
    """The linear layers of a model start small; those inside a kernel must not: its taps would all but vanish."""
    model = make(family, 'ckconv', kernel_args={'network': network})
    model.init_weights()
    for axis in axis_kernels(model):
        norm = axis(round(axis.length)).square().sum(-1).mean().sqrt()
        assert abs(norm - 1) < 1e-3, axis
