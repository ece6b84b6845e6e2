"""A model to ONNX, checked: `s4nd export checkpoint=out/run size=224 [out=model.onnx]`.

`model=NAME` in place of `checkpoint` takes an untrained model, trained for `size` as it were. `size` is a side in
pixels, or height x width (224x320): it is fixed in the file, the number of images is not. `sizes=[16,24,32x40]` in its
place writes a file for each: model_16.onnx and so on. `checkpoint` is a run, a hub folder or a file of weights. Of a
SaShiMi one step is written, without a size. A file is written only if ONNX Runtime agrees with the model to 1e-4 of
its largest output.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from s4nd.files import write_atomically
from s4nd.interop.frozen import freeze
from s4nd.models import is_ours, load_checkpoint
from s4nd.options import nearest, option
from s4nd.resolution import parse_size, size_name
from s4nd.training.checkpoint import find_weights, read_metadata
from s4nd.words import parse_words

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ['OPSET', 'TOLERANCE', 'ExportError', 'export_onnx', 'main', 'relative_error']

OPSET = 18
TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """The exported graph does not compute what the model computes."""


def export_onnx(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: str | Path,
    *,
    outputs: Sequence[str] = ('logits',),
    metadata: Mapping[str, str] | None = None,
    measure: Callable[[InferenceSession], float] | None = None,
) -> float:
    """Write `model` as one self-contained ONNX file (opset 18), check it, and return its worst relative error.

    Args:
        model: in evaluation mode, on the CPU; called with the values of `example` in order.
        example: inputs by name, batch first, at least 2 rows. The batch is dynamic, all other sizes are fixed.
        path: the file; it is replaced only by one that passed.
        outputs: names of the model's outputs.
        metadata: strings to keep in the file.
        measure: the worst relative error of a session of the file; None: `relative_error` against the model, at
            batches of 1 and of one more row than the example has.

    Raises:
        ExportError: the error is above 1e-4, or not a number.
        ValueError: the model is in training mode, the example has fewer than 2 rows, or the model refuses it.
        ImportError: the packages of the extra `export` are not installed.
    """
    import onnxruntime  # noqa: F401 (missing, it is told before the work)

    rows = {len(value) for value in example.values()}
    if len(rows) != 1 or min(rows) < 2:
        raise ValueError(f'the inputs of the example must have the same number of rows, 2 or more, got {sorted(rows)}')
    if model.training:
        raise ValueError('the model must be in evaluation mode: call eval() first')
    program = _trace(model, example, outputs)
    # Where the nodes came from, paths of this machine among it: several times the size of a small graph.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.model.metadata_props.update(metadata or {})
    if measure is None:
        batches = (1, min(rows) + 1)
        measure = lambda session: relative_error(session, model, example, batches)  # noqa: E731
    worst = math.nan

    def write(temporary: Path) -> None:
        nonlocal worst
        program.save(temporary, external_data=False)
        worst = _measure(temporary, path, measure)

    write_atomically(path, write)
    return worst


def _measure(temporary: Path, path: str | Path, measure: Callable[[InferenceSession], float]) -> float:
    """The worst relative error of the graph that stands at `temporary`, to be `path`; ExportError above TOLERANCE."""
    import onnxruntime

    try:
        worst = measure(onnxruntime.InferenceSession(temporary, providers=['CPUExecutionProvider']))
    except Exception as error:  # ONNX Runtime has a dozen types, with no common one but this
        raise ExportError(f'ONNX Runtime cannot run the graph: {path} was not written ({error})') from error
    if not worst <= TOLERANCE:
        raise ExportError(
            f'ONNX Runtime differs from the model by {worst:.1e} of its largest output, expected at most '
            f'{TOLERANCE:.0e}: {path} was not written'
        )
    return worst


@torch.no_grad()
def relative_error(
    session: InferenceSession, model: nn.Module, example: Mapping[str, Tensor], batches: Sequence[int]
) -> float:
    """Largest |session - model| over the largest |model| of each output, for batches made of the example's rows."""
    errors = []
    for batch in batches:
        inputs = {name: value[torch.arange(batch) % len(value)] for name, value in example.items()}
        expected = model(*inputs.values())
        expected = [expected] if isinstance(expected, Tensor) else expected
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for ours, theirs in zip(expected, found, strict=True):
            scale = ours.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            errors.append((torch.from_numpy(theirs) - ours).abs().max() / scale)
    return float(torch.stack(errors).max())


def _trace(model: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    values = tuple(example.values())
    batch = {0: torch.export.Dim('batch')}
    bound = inspect.signature(model.forward).bind(*values).arguments
    shapes = {name: (batch,) * len(value) if isinstance(value, tuple) else batch for name, value in bound.items()}
    # What the exporter warns of concerns its own code (a deprecated call, one name for the batch of all inputs).
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        warnings.filterwarnings('ignore', message='.*axis name: batch')
        # Traced here, since torch.onnx.export would fix the batch where it cannot be dynamic, and say nothing.
        program = torch.export.export(freeze(model, *values), values, dynamic_shapes=shapes)
        return torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=list(example),
            output_names=list(outputs),
            verbose=False,
        )


@dataclass
class Options:
    """The command's options, with their defaults."""

    size: Any = option(None, 'side in pixels, or height x width: 224x320')
    sizes: Any = option(None, 'several of them, [16,24x32], in place of `size`: a file for each')
    checkpoint: str | None = option(None, 'folder of a run, a .safetensors file, or the name of weights that ship')
    model: str | None = option(None, 'a registered name, in place of a checkpoint')
    out: str = option('model.onnx', 'the ONNX file')


def main(arguments: Sequence[str]) -> None:
    """Export what `arguments`, key=value words, name, and print the files."""
    options = parse_words(Options, arguments)
    check_suffix(options.out)
    show(run(options))


def check_suffix(out: str) -> None:
    """Raise ValueError unless `out` is the name of an ONNX file."""
    if Path(out).suffix != '.onnx':
        raise ValueError(f'out: expected a name that ends in .onnx, got {out!r}')


def show(written: Mapping[str, float]) -> None:
    """Print files and the worst relative error of each."""
    for path, worst in written.items():
        print(f'{path}\nONNX Runtime agrees with the model to {worst:.1e} of its largest output')  # noqa: T201


@cache
def _exporters() -> dict[str, EntryPoint]:
    """Functions (checkpoint, out) -> {file: error} for models of other packages, by the name of the model."""
    return {entry.name: entry for entry in entry_points(group='s4nd.exporters')}


def run(options: Options) -> dict[str, float]:
    """Load the model and export it; returns the files and their worst relative errors."""
    if (options.checkpoint is None) == (options.model is None):
        raise ValueError('expected either checkpoint=… or model=…')
    if options.checkpoint is not None:
        name = read_metadata(find_weights(options.checkpoint)).get('model', '')
        exporter = _exporters().get(name)
        if exporter is not None and (options.size, options.sizes) != (None, None):
            raise ValueError('size and sizes are for image models: expected checkpoint=… and out=…')
        if exporter is not None:
            return exporter.load()(options.checkpoint, options.out)
        if name and not timm.is_model(name):
            known = ', '.join(_exporters())
            raise ValueError(f"checkpoint: '{name}' cannot be exported, expected a timm model or one of {known}")
    else:
        _check_name(str(options.model))
    if (options.size is None) == (options.sizes is None):
        raise ValueError('expected either size=… or sizes=[…, …]')
    sizes = [parse_size(size.strip()) for size in str(options.sizes or options.size).strip('[]').split(',')]
    if options.checkpoint is not None:
        model, metadata = load_checkpoint(options.checkpoint), read_metadata(find_weights(options.checkpoint))
    else:
        model, metadata = _create(str(options.model), sizes[0]), {'model': str(options.model)}
    channels = get_model_input_config(model)['input_size'][0]
    written, out = {}, Path(options.out)
    for size in sizes:
        path = out if options.size is not None else out.with_stem(f'{out.stem}_{size_name(size)}')
        image = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
        written[str(path)] = export_onnx(model, {'image': image}, path, metadata=metadata)
    return written


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise ValueError(f"model: timm has no model '{name}'{nearest(name, list(filter(is_ours, timm.list_models())))}")


def _create(name: str, size: tuple[int, int]) -> nn.Module:
    return timm.create_model(name, **({'img_size': size} if is_ours(name) else {})).eval()
