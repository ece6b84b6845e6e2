"""SaShiMi's step as an ONNX graph, driven as docs/guides/export.md shows."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from audio.cli import export
from audio.generation import Generator
from audio.models.onnx import StepGraph
from audio.models.sashimi import SaShiMi
from audio.quantization import Quantizer
from s4nd.cli import main
from s4nd.training.checkpoint import save_weights

ARGS = {'d_model': 4, 'n_layers': 1, 'pool': [2, 3], 'ff': 0, 'd_state': 4, 'kernel': 's4'}


def checkpoint(folder: Path, options: dict) -> SaShiMi:
    torch.manual_seed(0)
    args = {**ARGS, **options}
    model = SaShiMi(4, **args).eval()
    metadata = {'model': 'sashimi', 'args': json.dumps(args), 'sample_rate': '500'}
    metadata['quantizer'] = Quantizer('linear', 4).to_json()
    save_weights(folder / 'last.safetensors', model, metadata)
    return model


@pytest.mark.parametrize(
    'options',
    [{}, {'unet': True, 'ff': 2}, {'pool': [1, 3]}, {'pool': []}, {'num_classes': 3, 'kernel': 's4d'}],
)
@torch.no_grad()
def test_the_graph_steps_as_the_model(options: dict) -> None:
    torch.manual_seed(0)
    model = SaShiMi(4, **{**ARGS, **options}).eval()
    graph, state = StepGraph(model), model.init_state(2)
    states = list(state.values())
    label = [torch.tensor([2, 0])] if model.num_classes else []
    for t in range(2 * model.backbone.period + 3):
        code = torch.tensor([t % 16, 3 * t % 16])
        expected, state = model.step(code, state, label=label[0] if label else None)
        # Without a graph torch.cond compiles; the branch is what is to be seen here.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, 'cond', lambda condition, run, keep, inputs: (run if condition else keep)(*inputs))
            logits, *states = graph(code, *label, *states)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
        for name, value in zip(graph.names, states, strict=True):
            torch.testing.assert_close(value, state[name], atol=1e-6, rtol=1e-5)


def test_onnx_steps_as_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ('onnx', 'onnxscript'):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip('onnxruntime')
    model = checkpoint(tmp_path, {'num_classes': 3})
    out = tmp_path / 'step.onnx'
    assert export([f'checkpoint={tmp_path}', f'out={out}']) == 0
    assert 'agrees with the model' in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out)
    assert session.get_modelmeta().custom_metadata_map['sample_rate'] == '500'
    # The states carry over from sample to sample: the steps equal the forward over the whole clip.
    batch, length = 2, 2 * model.backbone.period + 5
    codes, label = torch.randint(16, (batch, length)), torch.tensor([1, 2])
    with torch.no_grad():
        expected = model(codes, label=label)
    fed = {name: value.numpy() for name, value in model.init_state(batch).items()}
    for t in range(length):
        inputs = {'code': codes[:, t].numpy(), 'label': label.numpy()}
        logits, *after = session.run(None, inputs | fed)
        fed = dict(zip(fed, after, strict=True))
        torch.testing.assert_close(torch.from_numpy(logits), expected[:, t], atol=1e-4, rtol=0)


def test_a_failing_check_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    model = checkpoint(tmp_path, {'pool': []})
    head = StepGraph.forward

    def wrong(self: StepGraph, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, *states = head(self, *inputs)
        return logits + 1e-2 * logits, *states

    monkeypatch.setattr(StepGraph, 'forward', wrong)
    assert export([f'checkpoint={tmp_path}', f'out={tmp_path / "step.onnx"}']) == 1
    assert 'expected at most 1e-04' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['last.safetensors'] and not model.training


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'checkpoint must be given (checkpoint=…)'),
        (['checkpoint=nowhere'], 'no checkpoint at nowhere'),
        (['checkpoint=.'], 'holds the weights of s4nd_isotropic_mini, expected sashimi'),
        (['checkpoint=.', 'out=step.pt'], "ends in .onnx, got 'step.pt'"),
        (['checkpoint=.', 'size=8'], "unknown option 'size'; known: checkpoint, out"),
    ],
)
def test_bad_input(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights('last.safetensors', torch.nn.Linear(2, 2), {'model': 's4nd_isotropic_mini', 'args': '{}'})
    assert export(words) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count('\n') == 1
    assert not list(tmp_path.glob('*.onnx'))


def test_the_command_knows_models_of_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path, {'pool': []})
    entry = EntryPoint('sashimi', 's4nd.audio.cli:export_checkpoint', 's4nd.exporters')
    monkeypatch.setattr('s4nd.interop.onnx._exporters', lambda: {'sashimi': entry})
    monkeypatch.setattr('audio.models.onnx.export_step', lambda model, out, metadata: 0.0)
    assert main(['export', f'checkpoint={tmp_path}', 'out=step.onnx']) == 0
    assert capsys.readouterr().out.startswith('step.onnx\n')
    assert main(['export', f'checkpoint={tmp_path}', 'size=8']) == 2
    assert 'size and sizes are for image models' in capsys.readouterr().err


def test_a_model_without_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr('audio.cli.load_generator', lambda _: Generator(torch.nn.Linear(2, 2), None, 500))
    assert export(['checkpoint=x']) == 2
    assert 'x holds a Linear, which has no step: expected a SaShiMi' in capsys.readouterr().err
