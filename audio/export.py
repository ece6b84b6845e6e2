"""SaShiMi's step to ONNX, checked: `python -m audio.export checkpoint=out/sashimi [out=sashimi.onnx]`.

One graph takes one sample: the codes 'code' (B,), for a model with classes 'label' (B,), and the states, to 'logits'
(B, 2**bits) and the states after it, named 'next.' and the state. All states begin as zeros (docs/export.md shows the
loop). A coarser level is a branch that runs only at the samples that complete a step of it, as in `SaShiMi.step`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from audio.backbone import State
from audio.generation import load_generator
from audio.sashimi import SaShiMi
from s4nd.export import export_onnx, report_errors
from s4nd.training.checkpoint import find_weights, read_metadata

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ['StepGraph', 'export_step', 'main']


def export_step(model: SaShiMi, path: str | Path, metadata: dict[str, str] | None = None) -> float:
    """Write `model.step` as ONNX and return its worst relative error over more than two periods.

    Raises what `s4nd.export.export_onnx` raises.
    """
    graph = StepGraph(model)
    example = {**_inputs(model, 2), **model.init_state(2)}
    outputs = ['logits', *(f'next.{name}' for name in graph.names)]
    return export_onnx(
        graph, example, path, outputs=outputs, metadata=metadata, measure=lambda session: _drive(session, model)
    )


class StepGraph(nn.Module):
    """`SaShiMi.step` of tensors alone: (code[, label], *states) -> (logits, *new states), states as in `init_state`.

    The phase is a tensor here, so whether a coarse step runs is part of the graph (`torch.cond`). Rows of a batch are
    at the same phase: that of the first row counts.
    """

    def __init__(self, model: SaShiMi) -> None:
        super().__init__()
        self.model = model
        self.names = list(model.init_state(1))
        self.systems: dict[str, list[str]] = {}
        for layer, tensors in model.system().items():
            self.systems[layer] = [f'{layer}.system.{i}'.replace('.', '_') for i in range(len(tensors))]
            for name, tensor in zip(self.systems[layer], tensors, strict=True):
                self.register_buffer(name, tensor.detach())
        self.train(model.training)

    def forward(self, code: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states = rest[-len(self.names) :]
        label = rest[0] if len(rest) > len(states) else None
        old = dict(zip(self.names, states, strict=True))
        phase = old.pop('phase')
        x, new = self._step_from(0, self.model.embed(code, label), phase[0], old)
        new['phase'] = (phase + 1) % self.model.backbone.period
        logits = self.model.head(self.model.backbone.norm(x))
        return logits, *(new[name] for name in self.names)

    def _step_from(self, i: int, x: Tensor, phase: Tensor, old: State) -> tuple[Tensor, State]:
        """One step of level i, and of those below it where that completes a coarse step; `old` holds their states."""
        backbone, new = self.model.backbone, {}
        system = {layer: [self.get_buffer(name) for name in names] for layer, names in self.systems.items()}
        if i == len(backbone.levels):
            return backbone.step_center(x, old, new, system), new
        level, coarse = backbone.levels[i], f'levels.{i}.coarse'
        place = phase % level.p
        # The level reads the place that it is told: tell it the first, and put there what stands at the right one.
        here = old[coarse].index_select(-1, place.reshape(1))
        y, fine = backbone.step_level(i, x, 0, {**old, coarse: here}, new, system)
        below = [name for name in old if not name.startswith(f'levels.{i}.')]

        def run(fine: Tensor, phase: Tensor, _: Tensor, *states: Tensor) -> list[Tensor]:
            deeper = dict(zip(below, states, strict=True))
            x, after = self._step_from(i + 1, level.pool(fine.flatten(1)), phase // level.p, deeper)
            return [level.unpool(x).unflatten(1, (level.d_model, level.p)), *(after[name] for name in below)]

        def keep(fine: Tensor, phase: Tensor, *states: Tensor) -> list[Tensor]:
            return [state.clone() for state in states]

        kept = [coarse, *below]
        after = torch.cond(place == level.p - 1, run, keep, (fine, phase, *(old[name] for name in kept)))
        new.update(zip(kept, after, strict=True))
        return y, new


@torch.no_grad()
def _drive(session: 'InferenceSession', model: SaShiMi) -> float:
    """Worst relative error of the logits as the session and the model step through the same codes."""
    worst, system, period = [], model.system(), model.backbone.period
    for batch in (1, 3):
        state = model.init_state(batch)
        fed = {name: value.numpy() for name, value in state.items()}
        for t in range(2 * period + 2):
            inputs = _inputs(model, batch, seed=t)
            logits, *after = session.run(None, {name: value.numpy() for name, value in inputs.items()} | fed)
            fed = dict(zip(fed, after, strict=True))
            expected, state = model.step(
                inputs['code'], state, label=inputs.get('label'), system=system, phase=t % period
            )
            worst.append((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(worst).max())


def _inputs(model: SaShiMi, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Random codes, and labels where the model has classes."""
    random = torch.Generator().manual_seed(seed)
    inputs = {'code': torch.randint(2**model.bits, (batch,), generator=random)}
    if model.num_classes is not None:
        inputs['label'] = torch.randint(model.num_classes, (batch,), generator=random)
    return inputs


@dataclass
class Options:
    """The command's options, with their defaults."""

    checkpoint: str = MISSING  # a run's folder or a .safetensors file
    out: str = 'sashimi.onnx'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for bad input and 1 for a model that cannot be exported."""
    return report_errors(run, Options, sys.argv[1:] if arguments is None else arguments)


def run(options: Options) -> float:
    """Load the model and export its step; returns the worst relative error."""
    model = load_generator(options.checkpoint).model
    if not isinstance(model, SaShiMi):
        raise ValueError(f'{options.checkpoint} holds a {type(model).__name__}, which has no step: expected a SaShiMi')
    return export_step(model, options.out, read_metadata(find_weights(options.checkpoint)))


if __name__ == '__main__':
    sys.exit(main())
