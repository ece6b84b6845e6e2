"""Models whose kernels are stored for one size: the same function, and what graph tools make of it."""

import io
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from s4nd import S4, S4ND
from s4nd.interop.frozen import FrozenCKConv, FrozenS4ND, freeze
from s4nd.layers import CKConv
from s4nd.models.ccnn import CCNN
from tests.models.families import CLIPS, SMALL, build, clip, image, size_of

OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    'ccnn 1': (lambda: CCNN(3, 5, spatial_dims=1, grid=24, dim=8, mixer_args={'hidden': 4}), (2, 3, 24)),
    'ccnn 1 causal': (
        lambda: CCNN(3, 5, spatial_dims=1, grid=24, dim=8, mixer_args={'hidden': 4, 'causal': True}),
        (2, 3, 24),
    ),
    'ccnn 3': (
        lambda: CCNN(3, 5, spatial_dims=3, grid=(4, 6, 6), dim=8, mixer_args={'hidden': 4}),
        (2, 3, 4, 6, 6),
    ),
    'ccnn uncropped': (lambda: CCNN(3, 5, img_size=20, dim=6, mixer_args={'hidden': 4, 'crop': None}), (2, 3, 20, 20)),
}


def make(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if case in OTHERS:
        return OTHERS[case][0]().eval(), torch.randn(OTHERS[case][1])
    return build(case), image(size_of(case)) if case in SMALL else clip(case)


@pytest.mark.parametrize('case', [*SMALL, *CLIPS, *OTHERS])
@torch.no_grad()
def test_plain_fx_traces_a_frozen_model(case: str) -> None:
    model, x = make(case)
    frozen = freeze(model, x)
    assert not any(isinstance(module, (S4ND, CKConv)) for module in frozen.modules())
    graph = torch.fx.symbolic_trace(frozen)
    rows = torch.cat([x, x[:1]])
    torch.testing.assert_close(graph(rows), model(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('case', ['convnext s4nd everywhere', 'vit s4nd stem', 'vit 1d', 'ccnn batchnorm'])
@torch.no_grad()
def test_frozen_runs_at_one_size(case: str) -> None:
    model, x = make(case)
    size = model.img_size[0]
    frozen = freeze(model, x[:1])
    torch.testing.assert_close(frozen(x), model(x), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r'was frozen at size \[.*\], got an input of shape \[2'):
        frozen(image(2 * size))


LAYERS = {
    's4nd': lambda: (S4ND(4, (6, 5), d_state=4, channels=2, tensor_rank=2), (2, 4, 6, 5)),
    's4nd published': lambda: (S4ND(4, (6, 5), d_state=4, skip=False, cell='published'), (2, 4, 6, 5)),
    's4nd at another size': lambda: (S4ND(4, (6, 5), d_state=4), (2, 4, 9, 4)),
    's4': lambda: (S4(4, d_state=4), (2, 4, 9)),
    'ckconv 1': lambda: (CKConv(4, (9,), hidden=4, causal=True), (2, 4, 9)),
    'ckconv 2': lambda: (CKConv(4, (6, 5), hidden=4), (2, 4, 9, 4)),
    'ckconv 3': lambda: (CKConv(4, (3, 4, 5), hidden=4, crop=None), (2, 4, 3, 4, 5)),
    'ckconv mixing': lambda: (CKConv(4, (6, 5), hidden=4, out_channels=3), (2, 4, 6, 5)),
    'ckconv by fft': lambda: (CKConv(4, (20, 21), hidden=4, mask=False), (2, 4, 20, 21)),
    'ckconv mixing by fft': lambda: (CKConv(4, (20, 21), hidden=4, mask=False, out_channels=3), (2, 4, 20, 21)),
}


@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_frozen_layers_of_every_kind(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    frozen = freeze(layer, x)
    assert isinstance(frozen, FrozenCKConv if isinstance(layer, CKConv) else FrozenS4ND)
    torch.testing.assert_close(frozen(x), layer.eval()(x), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(freeze(nn.Sequential(layer), x)(x), layer(x), atol=1e-10, rtol=1e-10)


class Twice(nn.Module):
    """One layer under two names, the second after a stride."""

    def __init__(self, stride: int, **options: float) -> None:
        super().__init__()
        self.one = self.two = S4(4, d_state=4)
        self.stride, self.options = stride, options

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)[..., :: self.stride] + self.two(x[..., :: self.stride], **self.options)


@torch.no_grad()
def test_shared_layers_and_those_that_cannot_be_frozen() -> None:
    x = torch.randn(1, 4, 6)
    model = Twice(1).eval()
    frozen = freeze(model, x)
    assert frozen.one is frozen.two and isinstance(frozen.two, FrozenS4ND)
    torch.testing.assert_close(frozen(x), model(x), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r'sees the sizes \[6\] and \[3\]'):
        freeze(Twice(2), x)
    with pytest.raises(ValueError, match='is given a step or a state'):
        freeze(Twice(1, step=0.5), x)


@torch.no_grad()
def test_freezing_leaves_the_model_as_it_is() -> None:
    model = build('isotropic batchnorm').train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = freeze(model, image(16))
    assert model.training and not frozen.training
    for other in (model, frozen):
        assert all(torch.equal(other.state_dict()[name], before[name]) for name in before if 'mean' in name)


@pytest.mark.parametrize('case', ['convnext s4nd everywhere', 'vit', 'ccnn batchnorm', 'isotropic3d'])
@torch.no_grad()
def test_the_older_onnx_exporter(case: str) -> None:
    """It takes frozen models, and says so of others."""
    onnxruntime = pytest.importorskip('onnxruntime')
    model, x = make(case)
    options = dict(dynamo=False, opset_version=17, input_names=['x'], dynamic_axes={'x': {0: 'batch'}})
    with pytest.raises(ValueError, match=r'dynamo=True .*--dynamo.* or s4nd\.export\.export_onnx, .*freeze'):
        torch.onnx.export(model, (x,), io.BytesIO(), **options)
    file = io.BytesIO()
    torch.onnx.export(freeze(model, x), (x,), file, **options)
    rows = torch.cat([x, x[:1]])
    (found,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {'x': rows.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(rows), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frozen_heads_of_long_videos() -> None:
    model = timm.create_model('s4nd_vis4mer_tiny_head', in_chans=6, dim=16, d_state=4, length=8).eval()
    x = torch.randn(2, 8, 6)
    torch.testing.assert_close(freeze(model, x)(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', ['isotropic', 'ccnn batchnorm'])
@torch.no_grad()
def test_int8_by_fx(case: str) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = make(case)
    prepared = prepare_fx(freeze(model, x), get_default_qconfig_mapping('x86'), (x,))
    prepared(x)
    error = (convert_fx(prepared)(x) - model(x)).norm() / model(x).norm()
    assert 1e-4 < error < 0.2
