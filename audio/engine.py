"""Fast sampling from a SaShiMi on a CPU: its weights laid out as flat arrays, stepped by one compiled loop.

The model becomes a list of instructions (`audio.loops`), so the loop is compiled once for all models, and Numba keeps
the result on disk. Arithmetic is float32, in sums of another order than the model's own step: logits agree up to
rounding.
"""

import copy
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from audio import loops
from audio.backbone import Level, S4Block, State
from audio.sashimi import SaShiMi
from s4nd.kernels import DSSExpKernel, Kernel, S4DKernel, S4Kernel


class Engine:
    """A SaShiMi that steps fast and keeps its own state; the weights are those at the time of its making.

    Args:
        model: on a CPU, not in float64, with kernel 's4', 's4d' or 'dss-exp'. Raises ValueError for another.
        batch: clips that run side by side, spread over the cores that the process may use. A row's samples do not
            depend on the others.
        label: class of each (batch,), for a model with classes.
        state: from where to go on, as the model's `init_state`, `step` or `prefill` gives it; None: the beginning.
    """

    def __init__(
        self, model: SaShiMi, batch: int = 1, *, label: Tensor | None = None, state: State | None = None
    ) -> None:
        obstacle = why_not(model)
        if obstacle is not None:
            raise ValueError(f'no compiled loop for {obstacle}')
        model.check_label(label, batch)
        self._program = _Program(model)
        self._period = model.backbone.period
        shift = np.zeros((batch, model.backbone.d_model), np.float32)
        if label is not None:
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
        phases = state['phase'].unique()
        if len(phases) != 1:
            raise ValueError(f'all rows of a batch must be at the same phase, got {state["phase"].tolist()}')
        self._count = int(phases)
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
        """Draw codes (B, n) after the codes `first` (B,), one for each of uniforms (B, n): see `generation.draw`."""
        tokens, uniforms = first.contiguous().numpy(), np.ascontiguousarray(uniforms, np.float64)
        tasks = [
            self._threads.submit(
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
        if isinstance(module, S4Block) and not isinstance(module.s4.kernels[0], S4Kernel | S4DKernel | DSSExpKernel):
            return type(module.s4.kernels[0]).__name__
    return None


@dataclass(frozen=True)
class _Slot:
    """A tensor of the model's state: its place in the loop's, its shape without the batch, and how the two differ."""

    place: int
    shape: tuple[int, ...]
    pairs: bool = False  # (…, n, 2) there, (…, 2, n) here
    every: int = 0  # not 0: a shift register there, a ring here, moved once in so many samples

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def inward(self, value: Tensor, count: int) -> Tensor:
        value = value.transpose(-1, -2) if self.pairs else value
        return value.roll(count // self.every, -1) if self.every else value

    def outward(self, value: Tensor, count: int) -> Tensor:
        if self.pairs:
            return value.reshape(len(value), *self.shape[:-2], 2, -1).transpose(-1, -2).contiguous()
        value = value.reshape(len(value), *self.shape)
        return value.roll(-(count // self.every), -1) if self.every else value


class _Program:
    """A model as `loops.step` takes it: `instructions`, `weights`, and where in the memory things are."""

    def __init__(self, model: SaShiMi) -> None:
        self.slots: dict[str, _Slot] = {}
        self.memory_size = self._weights_size = 0
        self._lines: list[tuple[int, ...]] = []
        self._arrays: list[np.ndarray] = []
        backbone, every = model.backbone, 1
        width = backbone.d_model
        hidden = [layer.out_features for layer in backbone.modules() if isinstance(layer, nn.Linear)]
        self._inner, self._wide = self._room(max(hidden)), self._room(max(hidden))
        x, self.shift = self._room(width), self._room(width)
        self._emit(loops.EMBED, 1, (self.shift, width), (x, width), self._store(model.embedding.weight))
        finest, back = x, []
        for i, level in enumerate(backbone.levels):
            fine, coarse = self._level(level, f'levels.{i}', x, every)
            every, wide, size = every * level.p, level.pool.out_features, level.d_model * level.p
            x = self._room(wide)
            self._linear(level.pool, every, (fine, size), (x, wide))
            back.append((level.unpool, every, (x, wide), (coarse, size)))
        self._residual(backbone.center, 'center', x, every)
        for line in reversed(back):
            self._linear(*line)
        self.codes, self.logits = model.head.out_features, self._room(model.head.out_features)
        self._norm(backbone.norm, 1, finest)
        self._linear(model.head, 1, (self._inner, width), (self.logits, self.codes))
        self.instructions = np.array(self._lines, np.int64)
        self.weights = np.concatenate(self._arrays)

    def _level(self, level: Level, name: str, x: int, every: int) -> tuple[int, int]:
        """One rate, without the pool to the next one and its inverse; the places of its ring and its coarse step."""
        skips, here = [], (x, level.d_model)
        for j, layer in enumerate(level.down):
            skips.append(self._keep(every, here))
            self._block(layer, f'{name}.down.{j}', level.d_model, x, every)
        shape, size = (level.d_model, level.p), level.d_model * level.p
        fine, coarse = self._slot(f'{name}.fine', shape, every=every), self._slot(f'{name}.coarse', shape)
        self._emit(loops.PUSH, every, here, (fine, size))
        self._emit(loops.SPREAD, every, (coarse, size), here)
        if not level.unet:
            self._residual(level.up, f'{name}.up', x, every)
        for j, (layer, skip) in enumerate(zip(level.up, reversed(skips), strict=False)):
            self._block(layer, f'{name}.up.{j}', level.d_model, x, every)
            self._emit(loops.ADD, every, skip, here)
        return fine, coarse

    def _residual(self, blocks: nn.ModuleList, name: str, x: int, every: int) -> None:
        """x + blocks(x)."""
        width = blocks[0].norm.normalized_shape[0]
        kept = self._keep(every, (x, width))
        for j, layer in enumerate(blocks):
            self._block(layer, f'{name}.{j}', width, x, every)
        self._emit(loops.ADD, every, kept, (x, width))

    def _block(self, block: nn.Module, name: str, width: int, x: int, every: int) -> None:
        """x += block(x), through the two working vectors."""
        here, inner = (x, width), (self._inner, width)
        self._norm(block.norm, every, x)
        if not isinstance(block, S4Block):
            wide = (self._wide, block.linear1.out_features)
            self._linear(block.linear1, every, inner, wide)
            self._emit(loops.GELU, every, wide, wide)
            self._linear(block.linear2, every, wide, inner)
            self._emit(loops.ADD, every, inner, here)
            return
        kernel = block.s4.kernels[0]
        system = _one_step(kernel)  # (H, 6 + 4r, n)
        shape = kernel.init_state(1)['x'].shape[1:]
        state = self._slot(f'{name}.x', shape, pairs=not isinstance(kernel, S4Kernel))
        weights, (_, rows, n) = self._store(block.s4.D, system), system.shape
        self._emit(loops.ADVANCE, every, inner, inner, weights, state, 2 * n, (rows - 6) // 4)
        self._emit(loops.GELU, every, inner, inner)
        wide = (self._wide, block.linear.out_features)
        self._linear(block.linear, every, inner, wide)
        self._emit(loops.GATE if block.glu else loops.ADD, every, wide, here)

    def _norm(self, norm: nn.LayerNorm, every: int, x: int) -> None:
        width = norm.normalized_shape[0]
        self._emit(loops.NORM, every, (x, width), (self._inner, width), self._store(norm.weight, norm.bias))

    def _linear(self, layer: nn.Linear, every: int, x: tuple[int, int], y: tuple[int, int]) -> None:
        self._emit(loops.LINEAR, every, x, y, self._store(layer.bias, layer.weight.T))

    def _keep(self, every: int, x: tuple[int, int]) -> tuple[int, int]:
        """A copy of x for later."""
        kept = (self._room(x[1]), x[1])
        self._emit(loops.COPY, every, x, kept)
        return kept

    def _slot(self, name: str, shape: tuple[int, ...], *, pairs: bool = False, every: int = 0) -> int:
        slot = self.slots[name] = _Slot(self.memory_size, tuple(shape), pairs, every)
        return self._room(slot.size)

    def _room(self, size: int) -> int:
        self.memory_size += size
        return self.memory_size - size

    def _store(self, *tensors: Tensor) -> int:
        place = self._weights_size
        for tensor in tensors:
            self._arrays.append(tensor.detach().float().numpy().reshape(-1))
            self._weights_size += tensor.numel()
        return place

    def _emit(self, op: int, every: int, x: tuple[int, int], y: tuple[int, int], *rest: int) -> None:
        self._lines.append((op, every, *x, *y, *rest, *[0] * (4 - len(rest))))


class _Part:
    """Some rows of the batch: the arrays that one thread works on."""

    def __init__(self, program: _Program, shift: np.ndarray) -> None:
        self._batch = len(shift)
        self._memory = np.zeros(self._batch * program.memory_size, np.float32)
        self.arrays = program.instructions, program.weights, self._memory
        self.view(program.shift, shift.shape[1])[:] = shift

    def view(self, place: int, size: int) -> np.ndarray:
        """(B, size) of the memory."""
        return self._memory[self._batch * place :][: self._batch * size].reshape(self._batch, size)


def _one_step(kernel: Kernel) -> Tensor:
    """x <- Āx + B̄u, y = Cx with Ā = diag(a) - Σ_r g_r q_rᵀ, as `loops.advance` takes it: (H, 6 + 4r, n) with r >= 1."""
    system = copy.deepcopy(kernel).double().system()
    if not isinstance(kernel, S4Kernel):
        a_re, a_im, b_re, b_im, c_re, c_im = system
        none = torch.zeros_like(a_re)
        return torch.stack([a_re, a_im, b_re, b_im, 2 * c_re[0], -2 * c_im[0], none, none, none, none], 1)
    # x' = R(2x + Bu) - x with R = F - GQᵀ, so Ā = 2F - 1 - G(2Q)ᵀ and B̄ = FB - G(QᵀB).
    f_re, f_im, G, Q, B, C = system
    n = f_re.shape[1]
    b_re, b_im = B.split(n, 1)
    pushed = torch.cat([f_re * b_re - f_im * b_im, f_re * b_im + f_im * b_re], 1)
    pushed = pushed - torch.einsum('hnr,hmr,hm->hn', G, Q, B)
    parts = [2 * f_re - 1, 2 * f_im, *pushed.split(n, 1), *C[0].split(n, 1)]
    for r in range(G.shape[2]):
        parts += [*(2 * Q[..., r]).split(n, 1), *G[..., r].split(n, 1)]
    return torch.stack(parts, 1)
