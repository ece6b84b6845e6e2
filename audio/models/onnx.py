"""SaShiMi's step as an ONNX graph, checked with ONNX Runtime.

One graph takes one sample: the codes 'code' (B,), for a model with classes 'label' (B,), and the states, to 'logits'
(B, 2**bits) and the states after it, named 'next.' and the state. All states begin as zeros (docs/guides/export.md
shows the loop). A coarser level is a branch that runs only at the samples that complete a step of it, as in
`SaShiMi.step`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s4nd.interop.onnx import export_onnx
from s4nd.layers.streaming import State

from .sashimi import SaShiMi
from .walks import Pools, Step, spread

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ['StepGraph', 'export_step']


def export_step(model: SaShiMi, path: str | Path, metadata: dict[str, str] | None = None) -> float:
    """Write `model.step` as ONNX and return its worst relative error over more than two periods.

    Raises what `export_onnx` raises.
    """
    graph = StepGraph(model)
    example = {**_inputs(model, 2), **model.init_state(2)}
    outputs = ['logits', *(f'next.{name}' for name in graph.names)]
    return export_onnx(
        graph, example, path, outputs=outputs, metadata=metadata, measure=lambda session: _drive(session, model)
    )


class StepGraph(nn.Module):
    """Run `SaShiMi.step` on tensors alone: (code[, label], *states) -> (logits, *new states).

    The states come in the order of `init_state`. Rows of a batch are at the same phase: that of the first row counts.
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
        state = dict(zip(self.names, states, strict=True))
        phase, backbone = state.pop('phase'), self.model.backbone
        way = _BranchStep(state, self, phase[0])
        logits = self.model.head(backbone.norm(backbone.walk(self.model.embed(code, label), way)))
        new = way.new | {'phase': (phase + 1) % backbone.period}
        return logits, *(new[name] for name in self.names)


class _BranchStep(Step):
    """A step whose phase is a tensor, so that whether a coarse step runs is part of the graph (`torch.cond`).

    `old` holds the states of the levels from here on alone: all that a branch returns.
    """

    def __init__(self, old: State, graph: StepGraph, phase: Tensor) -> None:
        super().__init__(old, None, phase=0)
        self.graph, self.now = graph, phase

    def system_of(self, name: str) -> list[Tensor]:
        # Read from the module inside the branch: tensors that a branch closes over get dynamic sizes.
        return [self.graph.get_buffer(buffer) for buffer in self.graph.systems[name]]

    def coarse(self, name: str, level: Pools, x: Tensor, deeper: Callable[[Tensor, Any], Tensor]) -> Tensor:
        place, fine = self.now % level.p, self.push(name, x)
        below = [key for key in self.old if not key.startswith(f'{name}.')]

        def run(fine: Tensor, now: Tensor, _: Tensor, *states: Tensor) -> list[Tensor]:
            way = _BranchStep(dict(zip(below, states, strict=True)), self.graph, now // level.p)
            y = spread(level, deeper(level.pool(fine.flatten(1)), way))
            return [y, *(way.new[key] for key in below)]

        def keep(fine: Tensor, now: Tensor, *states: Tensor) -> list[Tensor]:
            return [state.clone() for state in states]

        kept = [f'{name}.coarse', *below]
        after = torch.cond(place == level.p - 1, run, keep, (fine, self.now, *(self.old[key] for key in kept)))
        self.new.update(zip(kept, after, strict=True))
        return self.old[f'{name}.coarse'].index_select(-1, place.reshape(1))[..., 0] + x


@torch.no_grad()
def _drive(session: 'InferenceSession', model: SaShiMi) -> float:
    """Measure the worst relative error of the logits as session and model step through the same codes."""
    worst, system, period = [], model.system(), model.backbone.period
    for batch in (1, 3):
        state = model.init_state(batch)
        fed = {name: value.numpy() for name, value in state.items()}
        for t in range(2 * period + 2):
            inputs = _inputs(model, batch, seed=t)
            logits, *after = session.run(None, {name: value.numpy() for name, value in inputs.items()} | fed)
            fed = dict(zip(fed, after, strict=True))
            expected, state = model.step(inputs['code'], state, system, label=inputs.get('label'), phase=t % period)
            worst.append((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(worst).max())


def _inputs(model: SaShiMi, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Random codes, and labels where the model has classes."""
    random = torch.Generator().manual_seed(seed)
    inputs = {'code': torch.randint(2**model.bits, (batch,), generator=random)}
    if model.num_classes is not None:
        inputs['label'] = torch.randint(model.num_classes, (batch,), generator=random)
    return inputs
