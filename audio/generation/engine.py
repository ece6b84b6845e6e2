"""Fast sampling from a SaShiMi on a CPU: its weights laid out as flat arrays, stepped by one compiled loop.

The model becomes a list of instructions (`audio.generation.program`), so the loop is compiled once for all models, and
Numba keeps the result on disk. Arithmetic is float32, in sums of another order than the model's own step: logits agree
up to rounding.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4nd.layers.streaming import State
from s4nd.models.s4_block import S4Block

from ..models.backbone import common_phase
from ..models.sashimi import SaShiMi
from . import loops
from .program import Program, fits


class Engine:
    """Step a SaShiMi fast, with its weights at the time of construction, and keep the state.

    Args:
        model: on a CPU, not in float64, with kernel 's4', 's4d' or 'dss-exp'. Raises ValueError for another.
        batch: clips that run side by side, spread over the cores that the process may use. A row's samples do not
            depend on the others.
        label: class of each (batch,), for a model with classes.
        state: from where to go on, as the model's `init_state`, `step` or `forward` gives it; None: the beginning.
    """

    def __init__(
        self, model: SaShiMi, batch: int = 1, *, label: Tensor | None = None, state: State | None = None
    ) -> None:
        obstacle = why_not(model)
        if obstacle is not None:
            raise ValueError(f'no compiled loop for {obstacle}')
        model.check_label(label, batch)
        self._program = Program(model)
        self._period = model.backbone.period
        shift = np.zeros((batch, model.backbone.d_model), np.float32)
        if label is not None and model.class_embedding is not None:
            shift[:] = model.class_embedding(label).detach().float().numpy()
        threads = min(batch, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
        cuts = np.linspace(0, batch, threads + 1).astype(int).tolist()
        self._rows = [slice(low, high) for low, high in itertools.pairwise(cuts)]
        self._parts = [_Part(self._program, shift[rows]) for rows in self._rows]
        self._threads = ThreadPoolExecutor(threads)
        self._count = 0
        self.load(model.init_state(batch) if state is None else state)

    def load(self, state: State) -> None:
        """Go on from this state. Raises ValueError where rows are at different phases."""
        self._count = common_phase(state['phase'])
        for name, slot in self._program.slots.items():
            value = slot.inward(state[name].detach().float(), self._count)
            for part, rows in zip(self._parts, self._rows, strict=True):
                part.view(slot.place, slot.size)[:] = value[rows].flatten(1).numpy()

    def state(self) -> State:
        """The state now, as the model's `step` takes it (float32)."""
        state = {'phase': torch.full((self._rows[-1].stop,), self._count % self._period)}
        for name, slot in self._program.slots.items():
            value = np.concatenate([part.view(slot.place, slot.size) for part in self._parts])
            state[name] = slot.outward(torch.from_numpy(value), self._count)
        return state

    def step(self, token: Tensor) -> Tensor:
        """One token (B,) -> logits (B, 2**bits) of the next."""
        tokens = token.contiguous().numpy()
        for part, rows in zip(self._parts, self._rows, strict=True):
            loops.step(*part.arrays, tokens[rows], self._count)
        self._count += 1
        place, codes = self._program.logits, self._program.codes
        return torch.from_numpy(np.concatenate([part.view(place, codes) for part in self._parts]))

    def sample(self, first: Tensor, uniforms: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """Draw codes (B, n) after the codes `first` (B,), one for each of uniforms (B, n): see `sampling.draw`."""
        tokens, uniforms = first.contiguous().numpy(), np.ascontiguousarray(uniforms, np.float64)
        submit: Any = self._threads.submit  # of a compiled loop, with types of its own
        tasks = [
            submit(
                loops.sample,
                *part.arrays,
                self._program.logits,
                tokens[rows],
                uniforms[rows],
                float(temperature),
                float(top_p),
                self._count,
            )
            for part, rows in zip(self._parts, self._rows, strict=True)
        ]
        codes = np.concatenate([task.result() for task in tasks])
        self._count += codes.shape[1]
        return torch.from_numpy(codes)


def why_not(model: SaShiMi) -> str | None:
    """What keeps `Engine` from running this model; None: nothing."""
    weight = model.head.weight
    if weight.device.type != 'cpu':
        return f'device {weight.device.type}'
    if weight.dtype == torch.float64:
        return 'float64'
    for module in model.modules():
        if isinstance(module, S4Block) and not fits(module.s4.kernels[0]):
            return type(module.s4.kernels[0]).__name__
    return None


class _Part:
    """Some rows of the batch: the arrays that one thread works on."""

    def __init__(self, program: Program, shift: np.ndarray) -> None:
        self._batch = len(shift)
        self._memory = np.zeros(self._batch * program.memory_size, np.float32)
        self.arrays = program.instructions, program.weights, self._memory
        self.view(program.shift, shift.shape[1])[:] = shift

    def view(self, place: int, size: int) -> np.ndarray:
        """(B, size) of the memory."""
        return self._memory[self._batch * place :][: self._batch * size].reshape(self._batch, size)
