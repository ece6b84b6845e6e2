"""A SaShiMi as a list of instructions over flat arrays, which `audio.generation.loops` runs.

The instructions come from `SaShiMiBackbone.walk`: a value is the place of a vector in the loop's memory, and every
operation on it emits an instruction.

Shape legend: B = batch, H = features of a level, n = half the state of a feature, r = rank.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from s4nd.kernels import DSSExpKernel, RecurrentKernel, S4DKernel, S4Kernel
from s4nd.layers.norms import ScalarNorm
from s4nd.models.s4_block import FeedForward, S4Block

from ..models.sashimi import SaShiMi
from ..models.walks import Pools
from . import loops

Place = tuple[int, int]  # of a vector: where it begins in the memory, and its width


@dataclass(frozen=True)
class Slot:
    """A tensor of the model's state: its place in the loop's memory, its shape per row, and how the two differ."""

    place: int
    shape: tuple[int, ...]
    pairs: bool = False  # (…, n, 2) there, (…, 2, n) here
    every: int = 0  # not 0: a shift register there, a ring here, moved once in so many samples

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def inward(self, value: Tensor, count: int) -> Tensor:
        """Lay out the model's tensor (B, …) for the loop, after `count` samples."""
        value = value.transpose(-1, -2) if self.pairs else value
        return value.roll(count // self.every, -1) if self.every else value

    def outward(self, value: Tensor, count: int) -> Tensor:
        """Lay out the loop's values (B, size) for the model, after `count` samples."""
        if self.pairs:
            return value.reshape(len(value), *self.shape[:-2], 2, -1).transpose(-1, -2).contiguous()
        value = value.reshape(len(value), *self.shape)
        return value.roll(-(count // self.every), -1) if self.every else value


class Vector:
    """A vector in the memory of a program, computed once in `every` samples."""

    def __init__(self, program: 'Program', width: int, every: int) -> None:
        self.program, self.every = program, every
        self.at: Place = (program.room(width), width)

    def __add__(self, other: 'Vector') -> 'Vector':
        """Emit self += other: the left operand is not used afterwards (`audio.models.walks.Way`)."""
        self.program.emit(loops.ADD, self.every, other.at, self.at)
        return self


class Program:
    """A model as `loops.step` takes it: `instructions`, `weights`, and where in the memory things are.

    It is a way to run the backbone (`audio.models.walks.Way`).
    """

    def __init__(self, model: SaShiMi) -> None:
        self.slots: dict[str, Slot] = {}
        self.memory_size = self._weights_size = 0
        self._lines: list[tuple[int, ...]] = []
        self._arrays: list[np.ndarray] = []
        backbone = model.backbone
        hidden = max(layer.out_features for layer in backbone.modules() if isinstance(layer, nn.Linear))
        # Two working vectors, which every block uses.
        self._inner, self._wide = self.room(hidden), self.room(hidden)
        x = Vector(self, backbone.d_model, every=1)
        self.shift = self.room(backbone.d_model)
        self.emit(loops.EMBED, 1, (self.shift, backbone.d_model), x.at, self._store(model.embedding.weight))
        y = backbone.walk(x, self)
        self.codes, self.logits = model.head.out_features, self.room(model.head.out_features)
        self._linear(model.head, 1, self._norm(backbone.norm, y), (self.logits, self.codes))
        self.instructions = np.array(_without_copies(self._lines), np.int64)
        self.weights = np.concatenate(self._arrays)

    def block(self, name: str, block: nn.Module, x: Vector) -> Vector:
        if not isinstance(block, FeedForward | S4Block):
            raise TypeError(f'no instructions for {type(block).__name__}: expected an S4Block or FeedForward')
        inner = self._norm(block.norm, x)
        y = self._copy(x)
        if isinstance(block, FeedForward):
            wide = (self._wide, block.linear1.out_features)
            self._linear(block.linear1, x.every, inner, wide)
            self.emit(loops.GELU, x.every, wide, wide)
            self._linear(block.linear2, x.every, wide, inner)
            self.emit(loops.ADD, x.every, inner, y.at)
        else:
            self._s4(name, block, inner, y)
        return y

    def _s4(self, name: str, block: S4Block, inner: Place, y: Vector) -> None:
        """Add W(GELU(S4(inner))) to y."""
        kernel, every = cast(RecurrentKernel, block.s4.kernels[0]), y.every
        system = one_step(kernel)  # (H, 6 + 4r, n)
        shape = kernel.init_state(1)['x'].shape[1:]
        state = self._slot(f'{name}.x', shape, pairs=not isinstance(kernel, S4Kernel))
        weights, (_, rows, n) = self._store(cast(Tensor, block.s4.D), system), system.shape
        self.emit(loops.ADVANCE, every, inner, inner, weights, state, 2 * n, (rows - 6) // 4)
        self.emit(loops.GELU, every, inner, inner)
        wide = (self._wide, block.linear.out_features)
        self._linear(block.linear, every, inner, wide)
        self.emit(loops.GATE if block.glu else loops.ADD, every, wide, y.at)

    def coarse(self, name: str, level: Pools, x: Vector, deeper: Callable[[Vector, Any], Vector]) -> Vector:
        shape, size = (level.d_model, level.p), level.d_model * level.p
        fine = (self._slot(f'{name}.fine', shape, every=x.every), size)
        coarse = (self._slot(f'{name}.coarse', shape), size)
        self.emit(loops.PUSH, x.every, x.at, fine)
        # The last coarse step is read before the next one replaces it.
        y = self._copy(x)
        self.emit(loops.SPREAD, x.every, coarse, y.at)
        below = Vector(self, level.pool.out_features, x.every * level.p)
        self._linear(level.pool, below.every, fine, below.at)
        done = deeper(below, self)
        self._linear(level.unpool, done.every, done.at, coarse)
        return y

    def emit(self, op: int, every: int, x: Place, y: Place, *rest: int) -> None:
        """Append an instruction; see `audio.generation.loops`."""
        self._lines.append((op, every, *x, *y, *rest, *[0] * (4 - len(rest))))

    def room(self, size: int) -> int:
        """Reserve `size` values per row of the memory and return their place."""
        self.memory_size += size
        return self.memory_size - size

    def _copy(self, x: Vector) -> Vector:
        y = Vector(self, x.at[1], x.every)
        self.emit(loops.COPY, x.every, x.at, y.at)
        return y

    def _norm(self, norm: nn.LayerNorm | ScalarNorm, x: Vector) -> Place:
        inner = (self._inner, x.at[1])
        if isinstance(norm, ScalarNorm):
            self.emit(loops.SCALAR_NORM, x.every, x.at, inner, self._store(norm.m, norm.s))
        else:
            self.emit(loops.NORM, x.every, x.at, inner, self._store(norm.weight, norm.bias))
        return inner

    def _linear(self, layer: nn.Linear, every: int, x: Place, y: Place) -> None:
        self.emit(loops.LINEAR, every, x, y, self._store(layer.bias, layer.weight.T))

    def _slot(self, name: str, shape: tuple[int, ...], *, pairs: bool = False, every: int = 0) -> int:
        slot = self.slots[name] = Slot(self.memory_size, tuple(shape), pairs, every)
        return self.room(slot.size)

    def _store(self, *tensors: Tensor) -> int:
        place = self._weights_size
        for tensor in tensors:
            self._arrays.append(tensor.detach().float().numpy().reshape(-1))
            self._weights_size += tensor.numel()
        return place


def _without_copies(lines: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Drop each copy of a vector that is not used afterwards: the copy's later uses are renamed to it."""
    kept: list[tuple[int, ...]] = []
    name: dict[int, int] = {}  # place of a dropped copy -> place that stands for it
    for k, (op, every, x, m, y, n, *rest) in enumerate(lines):
        if op == loops.COPY and not any(x in (line[2], line[4]) for line in lines[k + 1 :]):
            name[y] = name.get(x, x)
        else:
            kept.append((op, every, name.get(x, x), m, name.get(y, y), n, *rest))
    return kept


def fits(kernel: nn.Module) -> bool:
    """Whether the loop has instructions for this kernel."""
    return isinstance(kernel, S4Kernel | S4DKernel | DSSExpKernel)


def one_step(kernel: RecurrentKernel) -> Tensor:
    """Discretize to x <- Āx + B̄u, y = Cx with Ā = diag(a) - Σ_r g_r q_rᵀ: (H, 6 + 4r, n) for `loops.advance`."""
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
