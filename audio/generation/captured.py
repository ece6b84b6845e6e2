"""Fast sampling from a SaShiMi on a GPU: one CUDA graph for each phase of its pools.

A step of the plain loop is hundreds of small launches, and a GPU waits for most of them. Which levels a sample passes
through depends on its phase alone, so a graph per phase, over buffers that stay where they are, holds everything from
the last code to the next one. A replay of graphs computes what the plain loop computes, by the same kernels.

Shape legend: B = batch, n = samples, p = period of the pools.
"""

import numpy as np
import torch
from torch import Tensor

from s4nd.layers.streaming import State

from ..models.sashimi import SaShiMi
from .sampling import EagerLoop, draw


class CapturedLoop(EagerLoop):
    """Loop over replays of captured steps: the same calls and the same codes as `EagerLoop`.

    On a CPU there is nothing to capture, and the same steps over the same buffers run one by one.
    """

    def __init__(
        self, model: SaShiMi, batch: int = 1, *, label: Tensor | None = None, state: State | None = None
    ) -> None:
        super().__init__(model, batch, label=label, state=state)
        self._state = {name: t.clone() for name, t in self._state.items()}
        device, period = model.head.weight.device, model.backbone.period
        self._code = torch.zeros(batch, dtype=torch.int64, device=device)
        self._codes = torch.zeros(period, batch, dtype=torch.int64, device=device)
        self._uniforms = torch.zeros(period, batch, dtype=torch.float64, device=device)
        self._drawn: tuple[float, float] | None = None
        self._graphs: list[torch.cuda.CUDAGraph] = []

    @torch.no_grad()
    def sample(self, first: Tensor, uniforms: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """Draw codes (B, n) after the codes `first` (B,), one for each of uniforms (B, n): see `draw`."""
        if self._code.is_cuda and self._drawn != (temperature, top_p):
            self._graphs = self._capture(temperature, top_p)
        self._drawn = temperature, top_p
        self._code.copy_(first)
        given, period = torch.from_numpy(uniforms).t().to(first.device), len(self._codes)  # (n, B)
        codes, done = [], 0
        while done < len(given):
            phase = self._count % period
            count = min(period - phase, len(given) - done)
            self._uniforms[phase : phase + count] = given[done : done + count]
            for place in range(phase, phase + count):
                if self._graphs:
                    self._graphs[place].replay()
                else:
                    self._advance(place, temperature, top_p)
            codes.append(self._codes[phase : phase + count].clone())
            self._count, done = self._count + count, done + count
        return torch.cat(codes).t()

    def _advance(self, phase: int, temperature: float, top_p: float) -> None:
        """Take one sample at a phase, from buffers to buffers."""
        logits, state = self._model.step(self._code, self._state, self._system, label=self._label, phase=phase)
        for name, t in state.items():
            if t is not self._state[name]:
                self._state[name].copy_(t)
        self._code.copy_(draw(logits, self._uniforms[phase], temperature, top_p))
        self._codes[phase].copy_(self._code)

    def _capture(self, temperature: float, top_p: float) -> list[torch.cuda.CUDAGraph]:
        before = {name: t.clone() for name, t in self._state.items()}
        stream, graphs, pool = torch.cuda.Stream(), [], torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up at a first call must not be captured
            for phase in range(len(self._codes)):
                self._advance(phase, temperature, top_p)
        torch.cuda.current_stream().wait_stream(stream)
        for phase in range(len(self._codes)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._advance(phase, temperature, top_p)
            graphs.append(graph)
        for name, t in before.items():
            self._state[name].copy_(t)
        return graphs
