"""Ways to run SaShiMi's levels: over a whole clip, over a stretch from a state, and for one sample.

`audio.models.backbone.walk` is the only description of the network. A way runs the two operations that differ: a
block, and the passage through the coarser levels. `audio.models.onnx` and `audio.generation.program` add two more ways.

Shape legend: B = batch, L = samples, W = width of a level, p = pool.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers.streaming import State, scoped, within
from s4nd.models.s4_block import S4Block


class Value(Protocol):
    """What a way computes with: a tensor, or what stands for one."""

    def __add__(self, other: Any) -> Any: ...


X = TypeVar('X', bound=Value)


class Pools(Protocol):
    """What a way reads of a level: its width W, its pool p, and the two linear maps between it and the next one."""

    d_model: int
    p: int
    pool: nn.Linear
    unpool: nn.Linear


class Way(Protocol[X]):
    """One way to run the network on values of type X, which can be added. In `a + b`, `a` is not used afterwards."""

    def block(self, name: str, block: nn.Module, x: X) -> X:
        """Apply a block, whose state is under `name`. `x` may be used afterwards."""
        ...

    def coarse(self, name: str, level: Pools, x: X, deeper: Callable[[X, Any], X]) -> X:
        """Pool x, apply the coarser levels (`deeper(pooled x, way)`) and add their output to x one coarse step late."""
        ...


class Stretch:
    """Run whole periods (B, L, W): of a clip from its beginning (`old` is None), or from a state to the state `new`.

    A sample reads the coarse step before its own: the own one is known only after the last of its p samples. (The
    two-sided SaShiMi of state-spaces/s4 is shifted as well; DiffWave's is not, see `audio.models.denoiser`.)
    """

    def __init__(self, old: State | None = None) -> None:
        self.old = old
        self.new: State = {}

    def block(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        if self.old is None or not isinstance(block, S4Block):
            return block(x)
        x, state = block(x, scoped(self.old, name))
        self.new |= within(name, state)
        return x

    def coarse(self, name: str, level: Pools, x: Tensor, deeper: Callable[[Tensor, Any], Tensor]) -> Tensor:
        fine = rearrange(x, 'b (l p) w -> b l (w p)', p=level.p)
        coarse = level.unpool(deeper(level.pool(fine), self))  # (B, L/p, W·p)
        if self.old is None:
            late = F.pad(coarse, (0, 0, 1, -1))
        else:
            late = torch.cat([self.old[f'{name}.coarse'].flatten(1)[:, None], coarse[:, :-1]], 1)
            self.new[f'{name}.fine'] = fine[:, -1].unflatten(1, (level.d_model, level.p))
            self.new[f'{name}.coarse'] = coarse[:, -1].unflatten(1, (level.d_model, level.p))
        return rearrange(late, 'b l (w p) -> b (l p) w', p=level.p) + x


class Step:
    """Run one sample (B, W) from the state `old`; what changes is written to `new`.

    Args:
        old: state before the sample.
        system: discretized S4 layers by name; None: each layer discretizes itself.
        phase: number of samples before this one, modulo the period of the levels from here on.
        new: where to write; None: a new dict.
    """

    def __init__(self, old: State, system: dict[str, Any] | None, phase: int, new: State | None = None) -> None:
        self.old, self.system, self.phase = old, system, phase
        self.new: State = {} if new is None else new

    def block(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(block, S4Block):
            return block(x)
        x, state = block.step(x, scoped(self.old, name), self.system_of(name))
        self.new |= within(name, state)
        return x

    def coarse(self, name: str, level: Pools, x: Tensor, deeper: Callable[[Tensor, Any], Tensor]) -> Tensor:
        place = self.phase % level.p
        fine = self.push(name, x)
        if place == level.p - 1:
            below = Step(self.old, self.system, self.phase // level.p, self.new)
            self.new[f'{name}.coarse'] = spread(level, deeper(level.pool(fine.flatten(1)), below))
        return self.old[f'{name}.coarse'][..., place] + x

    def system_of(self, name: str) -> Any:
        """Return the discretized layer of a block."""
        return None if self.system is None else self.system[name]

    def push(self, name: str, x: Tensor) -> Tensor:
        """Append x to the samples (B, W, p) that wait for the pool, and drop the oldest."""
        fine = torch.cat([self.old[f'{name}.fine'][..., 1:], x[..., None]], -1)
        self.new[f'{name}.fine'] = fine
        return fine


def spread(level: Pools, coarse: Tensor) -> Tensor:
    """Map a coarse step (B, W·expand) to the samples (B, W, p) that read it."""
    return level.unpool(coarse).unflatten(1, (level.d_model, level.p))
