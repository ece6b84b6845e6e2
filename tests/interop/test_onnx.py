"""Models in the hands of deployment tools: torch.export, torch.compile, ONNX."""

import copy
import io
import json
import math
import os
from pathlib import Path

import pytest
import torch
from timm.models import create_feature_extractor
from torch import Tensor, nn

from s4nd import S4ND, cli
from s4nd.interop.frozen import freeze
from s4nd.interop.onnx import ExportError, export_onnx, relative_error
from s4nd.training.checkpoint import save_weights
from tests.models.families import build, image


def main(arguments: list[str]) -> int:
    """The exit code of `s4nd export`."""
    return cli.main(['export', *arguments])


# As few layers as a family can have: tracing costs seconds each.
FAMILIES = {
    'convnext': dict(depths=(1, 1, 1, 1), dims=(4, 4, 6, 6), d_state=4, img_size=32),
    'vit': dict(embed_dim=8, depths=(1,), d_state=4),
    'isotropic': dict(dim=8, depths=(1,), d_state=4, img_size=12),
    'vit 1d': dict(embed_dim=8, depths=(1,), d_state=4),
    'ccnn batchnorm': dict(dim=6, depths=(1,), hidden=4, img_size=10, norm='layer'),
}
BATCH = torch.export.Dim('batch')
TINY = dict(dim=4, depths=(1,), d_state=4, img_size=8, num_classes=3)


def tiny_checkpoint(folder: Path) -> nn.Module:
    model = build('isotropic', **TINY)
    metadata = {'model': 's4nd_isotropic_mini', 'args': json.dumps(TINY), 'classes': '["a", "b", "c"]'}
    save_weights(folder / 'best.safetensors', model, metadata)
    return model


def build_small(case: str) -> tuple[nn.Module, int]:
    """A model and its training size."""
    model = build(case, **FAMILIES[case])
    return model, model.img_size[0]


@pytest.mark.parametrize('case', list(FAMILIES))
@torch.no_grad()
def test_torch_export_with_a_dynamic_batch(case: str) -> None:
    model, size = build_small(case)
    program = torch.export.export(model, (image(size),), dynamic_shapes=({0: BATCH},)).module()
    for batch in (1, 5):
        x = image(size, batch=batch)
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_exported_program_can_be_saved() -> None:
    model, x, file = build('isotropic', **TINY), image(8), io.BytesIO()
    torch.export.save(torch.export.export(freeze(model, x), (x,), dynamic_shapes=({0: BATCH},)), file)
    file.seek(0)
    x = image(8, batch=3)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x), atol=1e-5, rtol=1e-4)


class Counter:
    """A backend of torch.compile that counts compilations and runs what it gets."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        self.count += 1
        return graph


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('case', list(FAMILIES))
def test_compile_once_for_all_batches(case: str, training: bool) -> None:
    torch._dynamo.reset()
    model, size = build_small(case)
    model.train(training)
    counter = Counter()
    compiled = torch.compile(copy.deepcopy(model), backend=counter, fullgraph=True)
    with torch.set_grad_enabled(training):
        for batch in (2, 3, 7):
            x = image(size, batch=batch)
            torch._dynamo.mark_dynamic(x, 0)
            got, expected = compiled(x), model(x)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
            if training:
                got.square().sum().backward()
                expected.square().sum().backward()
    assert counter.count == 1
    if training:
        assert_same_gradients(compiled, model)


def assert_same_gradients(model: nn.Module, expected: nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert (ours.grad - theirs[1].grad).abs().max() <= 1e-4 * theirs[1].grad.abs().max(), name


@pytest.mark.skipif('S4ND_SLOW' not in os.environ, reason='compiles C++ for half a minute: set S4ND_SLOW=1')
def test_inductor_trains() -> None:
    torch._dynamo.reset()
    layer = S4ND(2, (4,), d_state=2).train()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True)
    for batch in (2, 4):
        x = torch.randn(batch, 2, 4)
        for run in (layer, compiled):
            run(x).square().sum().backward()
    assert_same_gradients(compiled, layer)


@pytest.mark.parametrize('case', list(FAMILIES))
def test_fx_and_torchscript(case: str) -> None:
    model, size = build_small(case)
    x = image(size)
    graph = create_feature_extractor(model, {'head': 'logits'})
    torch.testing.assert_close(graph(x)['logits'], model(x), atol=0, rtol=0)
    graph(x)['logits'].square().sum().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())
    with torch.no_grad():
        scripted = torch.jit.script(build(case, **FAMILIES[case], scriptable=True))
        for other in (x, image(size + 8, batch=3)):
            torch.testing.assert_close(scripted(other), model(other), atol=1e-5, rtol=1e-4)


@pytest.fixture
def onnx() -> None:
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)


@pytest.mark.usefixtures('onnx')
@pytest.mark.parametrize('case', list(FAMILIES))
def test_onnx_agrees_at_every_batch(case: str, tmp_path: Path) -> None:
    import onnxruntime

    model, size = build_small(case)
    x = image(size)
    path = tmp_path / 'deep' / 'model.onnx'
    worst = export_onnx(model, {'image': x}, path, metadata={'classes': '["a"]'})
    assert 0 <= worst <= 1e-5
    assert [file.name for file in path.parent.iterdir()] == ['model.onnx']
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ['batch', 3, size, size]
    assert session.get_modelmeta().custom_metadata_map == {'classes': '["a"]'}
    # Other pictures than those of the check.
    other = image(size, batch=4, seed=9)
    with torch.no_grad():
        expected = model(other)
    got = torch.from_numpy(session.run(['logits'], {'image': other.numpy()})[0])
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures('onnx')
def test_the_command_and_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_checkpoint(tmp_path)
    out = tmp_path / 'out' / 'model.onnx'
    arguments = [f'checkpoint={tmp_path}', 'size=8x12', f'out={out}']

    def wrong(model: nn.Module, *example: Tensor) -> nn.Module:
        model = freeze(model, *example)
        model.head.fc.weight.data[0, 0] += 1e-2
        return model

    with monkeypatch.context() as patch:
        patch.setattr('s4nd.interop.onnx.freeze', wrong)
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert 'expected at most 1e-04' in error and 'was not written' in error
    assert list(out.parent.iterdir()) == []
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out and out.stat().st_size > 1000


@pytest.mark.usefixtures('onnx')
def test_one_file_for_each_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph holds the kernels of one size, so three sizes are three files, each equal to the model there."""
    import onnxruntime

    model = tiny_checkpoint(tmp_path)
    assert main([f'checkpoint={tmp_path}', 'sizes=[8,12,10x6]', f'out={tmp_path / "m.onnx"}']) == 0
    assert capsys.readouterr().out.count('agrees with the model') == 3
    for name, size in (('8', (8, 8)), ('12', (12, 12)), ('10x6', (10, 6))):
        x = image(size, batch=3)
        (found,) = onnxruntime.InferenceSession(tmp_path / f'm_{name}.onnx').run(None, {'image': x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures('onnx')
def test_a_failing_check_keeps_the_old_file(tmp_path: Path) -> None:
    path, example = tmp_path / 'model.onnx', {'x': torch.randn(2, 3)}
    path.write_text('old')

    def fail(session: object) -> float:
        raise KeyError('x')

    for measure, message in ((lambda _: math.nan, 'differs from the model by nan'), (fail, 'cannot run the graph')):
        with pytest.raises(ExportError, match=message):
            export_onnx(nn.Linear(3, 3).eval(), example, path, measure=measure)
        assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@torch.no_grad()
def test_relative_error_sees_every_output_batch_and_nan() -> None:
    class Session:
        def __init__(self, wrong: float, at: int) -> None:
            self.wrong, self.at = wrong, at

        def run(self, _: None, inputs: dict) -> list:
            x = inputs['x']
            return [x, 2 * x + (self.wrong if len(x) == self.at else 0)]

    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    example = {'x': torch.tensor([[1.0], [2.0]])}
    assert relative_error(Session(0.0, 1), Model(), example, (1, 3)) == 0
    assert relative_error(Session(0.4, 3), Model(), example, (1, 3)) == pytest.approx(0.1)
    assert relative_error(Session(0.4, 1), Model(), example, (1, 3)) == pytest.approx(0.2)
    assert math.isnan(relative_error(Session(math.nan, 1), Model(), example, (1, 3)))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['model=s4nd_isotropic_mini'], 'expected either size=… or sizes=[…, …]'),
        (['checkpoint=audio_classifier.digits'], "'audio_classifier' cannot be exported, expected a timm model"),
        (['model=s4nd_isotropic_min'], "no model 's4nd_isotropic_min'; did you mean 's4nd_isotropic_mini'"),
        (['size=8'], 'expected either checkpoint=… or model=…'),
        (['size=8', 'model=s4nd_isotropic_mini', 'checkpoint=x'], 'expected either checkpoint=… or model=…'),
        (['size=8', 'checkpoint=nowhere'], 'no checkpoint at nowhere'),
        (['size=8', 'model=s4nd_isotropc_mini'], "no model 's4nd_isotropc_mini'; did you mean 's4nd_isotropic_mini'?"),
        (['size=16', 'model=s4nd_convnext_micro'], 'img_size must be at least 32'),
        (['size=0', 'model=s4nd_isotropic_mini'], "got '0'"),
        (['size=8', 'model=s4nd_isotropic_mini', 'out=model.pt'], "ends in .onnx, got 'model.pt'"),
        (['sise=8'], "unknown option 'sise'; did you mean 'size'"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and message in printed and printed.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures('onnx')
def test_bad_models_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / 'last.safetensors', nn.Linear(2, 2), {'model': 'sashimi', 'args': '{}'})
    assert main(['size=8', f'checkpoint={tmp_path}']) == 2
    assert 'size and sizes are for image models' in capsys.readouterr().err
    model, size = build_small('convnext')
    with pytest.raises(ValueError, match=r'2 or more, got \[1\]'):
        export_onnx(model, {'image': image(size, batch=1)}, tmp_path / 'm.onnx')
    with pytest.raises(ValueError, match='evaluation mode'):
        export_onnx(copy.deepcopy(model).train(), {'image': image(size)}, tmp_path / 'm.onnx')
    with pytest.raises(ValueError, match=r'32 pixels or more per side, got \[2, 3, 16, 16\]'):
        export_onnx(model, {'image': image(16)}, tmp_path / 'm.onnx')
    assert not (tmp_path / 'm.onnx').exists()
