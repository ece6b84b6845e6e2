"""The backbone of SaShiMi: an S4 model of sequences at several rates (arXiv 2202.09729).

A sequence is pooled down level by level, modeled at the coarsest rate, and brought back up; each level's blocks run
after its up-pool (with `unet`, on the way down as well). Coarse features return one coarse step late, so that a sample
depends on no later one, and the same network runs one sample at a time: `step` equals `forward`.

Shape legend: B = batch, L = samples, H = d_model, W = width of a level (H · expand^level), p = pool.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers.streaming import State, within
from s4nd.models.s4_block import FeedForward, S4Block, make_linear

from .walks import Step, Stretch, Way, X

System = dict[str, Any]

# Samples of a stretch that are held in memory at once.
_SEGMENT = 65536


class Level(nn.Module):
    """One rate: the pool to the next coarser rate, its inverse, and the blocks before (unet only) and after them.

    residual: whether a skip leads around the blocks after the up-pool; where there is a U-Net, each has its own.
    """

    def __init__(
        self,
        d_model: int,
        p: int,
        expand: int,
        blocks: Callable[[], nn.ModuleList],
        *,
        unet: bool = False,
        residual: bool = True,
        weight_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.p, self.unet, self.residual = d_model, p, unet, residual
        self.down = blocks() if unet else nn.ModuleList()
        self.pool = make_linear(d_model * p, d_model * expand, weight_norm, **place)
        self.unpool = make_linear(d_model * expand, d_model * p, weight_norm, **place)
        self.up = blocks()


def walk(levels: nn.ModuleList, center: nn.ModuleList, x: X, way: Way[X], i: int = 0) -> X:
    """Run level i and the coarser ones on x; every way to run such a network goes through here."""
    if i == len(levels):
        return x + _through(center, 'center', x, way)
    level, name = cast(Level, levels[i]), f'levels.{i}'
    skips = [x]
    for j, block in enumerate(level.down):
        skips.append(way.block(f'{name}.down.{j}', block, skips[-1]))
    x = way.coarse(name, level, skips[-1], lambda below, way: walk(levels, center, below, way, i + 1))
    if not level.unet:
        y = _through(level.up, f'{name}.up', x, way)
        return x + y if level.residual else y
    for j, (block, skip) in enumerate(zip(level.up, reversed(skips[:-1]), strict=True)):
        x = way.block(f'{name}.up.{j}', block, x) + skip
    return x


class SaShiMiBackbone(nn.Module):
    """Map a continuous sequence to another, (B, L, d_model) -> (B, L, d_model), for any L >= 1.

    Args:
        d_model: H, width at the finest rate.
        n_layers: pairs of S4 block and feed-forward at each level (with `unet`, on the way down too) and at the center.
        pool: pooling factor of each level, finest first.
        expand: width of a level over that of the one above it.
        ff: width of the feed-forward over that of its level; 0 leaves it out.
        mixer_args: keywords of `s4nd.S4` (kernel, d_state, init, dt_min, …), the same at every level. In kernel_args,
            n_ssm='d_model' gives each feature its own state matrix.
        glu: use a gated output in the S4 blocks.
        unet: put blocks on the way down too, each joined to its counterpart on the way up by a skip.
        bidirectional: use two-sided S4 layers (every output sees the whole clip); such a model does not stream.
        dropout: on the output of every block, in training.
        norm: of the blocks: 'layer' (the published standalone model), or 'scalar' (published trained models).
        weight_norm: whether the linear maps of the pools are a direction and a length per row (published trained models
            without `unet`).

    The model streams (`s4nd.layers.streaming`): `model(x, state)` of stretches of any lengths, and `step` of samples,
    equal `model(x)` of the whole. The S4 state matrices have negative real parts for all parameters, so stepping is
    stable. The state counts samples in 'phase' (B,), modulo `period`; 'levels.i.fine' holds the samples that wait for
    the pool of level i and 'levels.i.coarse' the samples that its last coarse step was spread to, both (B, W, p).

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 8,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        *,
        mixer_args: Mapping[str, Any] | None = None,
        glu: bool = True,
        unet: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        norm: str = 'layer',
        weight_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model, n_layers, pool, expand, ff)
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.pool, self.bidirectional = d_model, tuple(pool), bidirectional
        widths = [d_model * expand**i for i in range(len(self.pool) + 1)]

        def blocks(width: int) -> nn.ModuleList:
            found = nn.ModuleList()
            for _ in range(n_layers):
                found.append(
                    S4Block(
                        width, mixer_args=mixer_args, glu=glu, bidirectional=bidirectional, dropout=dropout, norm=norm,
                        **place,
                    )
                )  # fmt: skip
                if ff > 0:
                    found.append(FeedForward(width, ff, dropout, norm=norm, **place))
            return found

        self.levels = nn.ModuleList(
            Level(width, p, expand, partial(blocks, width), unet=unet, weight_norm=weight_norm, **place)
            for width, p in zip(widths, self.pool, strict=False)
        )
        self.center = blocks(widths[-1])
        self.norm = nn.LayerNorm(d_model, **place)

    @property
    def period(self) -> int:
        """Samples to one step of the coarsest level."""
        return math.prod(self.pool)

    def walk(self, x: X, way: Way[X]) -> X:
        """Run all levels on x in one of the ways of `audio.models.walks`."""
        return walk(self.levels, self.center, x, way)

    @overload
    def forward(self, x: Tensor, state: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]: ...
    def forward(self, x: Tensor, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """Map a clip (B, L, d_model), or a stretch from a state to output and state.

        With a state, whole periods are convolved, a segment at a time so that memory does not grow with L, and the
        samples before and after them are stepped; `state` itself is not changed.

        Raises:
            ValueError: for another shape, L = 0, and with a state for a two-sided model or rows at different phases.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model or x.shape[1] < 1:
            raise ValueError(f'expected (batch, length >= 1, {self.d_model}), got {tuple(x.shape)}')
        if state is not None:
            return self._continue(x, state)
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.period))
        return self.norm(self.walk(x, Stretch())[:, :length])

    def _continue(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map a stretch (B, L, d_model) and the state before it -> (B, L, d_model) and the state after it."""
        self._check_causal()
        phase, length = common_phase(state['phase']), x.shape[1]
        lead = min(-phase % self.period, length)
        rest = (length - lead) % self.period
        system = self.system() if lead + rest else None
        outputs: list[Tensor] = []

        def stepped(part: Tensor, state: State) -> State:
            for sample in part.unbind(1):
                y, state = self.step(sample, state, system)
                outputs.append(y[:, None])
            return state

        head, body, tail = x.split([lead, length - lead - rest, rest], 1)
        state = stepped(head, state)
        segment = max(1, _SEGMENT // self.period) * self.period
        for part in body.split(segment, 1) if body.shape[1] else ():
            way = Stretch(state)
            outputs.append(self.norm(self.walk(part, way)))
            state = state | way.new
        state = stepped(tail, state)
        return torch.cat(outputs, 1), state

    def init_state(self, batch: int) -> State:
        """Return the state before the first sample: a flat dict of tensors, batch first."""
        self._check_causal()
        weight = self.norm.weight
        state = {'phase': torch.zeros(batch, dtype=torch.int64, device=weight.device)}
        for i, level in enumerate(cast(Iterable[Level], self.levels)):
            for name in ('fine', 'coarse'):
                state[f'levels.{i}.{name}'] = weight.new_zeros(batch, level.d_model, level.p)
        for name, block in self._layers():
            state |= within(name, block.init_state(batch))
        return state

    def system(self, step: float = 1.0) -> System:
        """Return the discretized S4 layers by name: compute it once for many calls of `step`."""
        self._check_causal()
        return {name: block.system(step) for name, block in self._layers()}

    def step(
        self, x: Tensor, state: State, system: System | None = None, *, phase: int | None = None
    ) -> tuple[Tensor, State]:
        """Map one sample (B, d_model) -> (B, d_model) and return the new state; `state` itself is not changed.

        Args:
            x: the sample.
            state: from `init_state`, `forward` or the call before.
            system: what `system()` returned; None discretizes anew, which costs more than the step itself.
            phase: number of samples seen so far modulo `period`, for a caller that counts: saves reading a tensor.

        Raises:
            ValueError: for a two-sided model, another shape, or batch rows that are at different phases.
        """
        self._check_causal()
        if x.dim() != 2 or x.shape[-1] != self.d_model:
            raise ValueError(f'expected (batch, {self.d_model}), got {tuple(x.shape)}')
        way = Step(state, system, common_phase(state['phase']) if phase is None else phase)
        y = self.norm(self.walk(x, way))
        return y, state | way.new | {'phase': (state['phase'] + 1) % self.period}

    def _layers(self) -> Iterable[tuple[str, S4Block]]:
        return ((name, module) for name, module in self.named_modules() if isinstance(module, S4Block))

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional model sees the whole clip at once and cannot step: use forward')


def common_phase(phase: Tensor) -> int:
    """Return the phase that all rows (B,) share. Raises ValueError where they differ."""
    if (phase != phase[0]).any():
        raise ValueError(f'all rows of a batch must be at the same phase, got {phase.tolist()}')
    return int(phase[0])


def _through(blocks: nn.ModuleList, name: str, x: X, way: Way[X]) -> X:
    for j, block in enumerate(blocks):
        x = way.block(f'{name}.{j}', block, x)
    return x


def check_sizes(d_model: int, n_layers: int, pool: Sequence[int], expand: int, ff: int) -> None:
    """Raise ValueError for sizes of a network of levels that are too small."""
    for name, value in [('d_model', d_model), ('n_layers', n_layers), ('expand', expand)]:
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if ff < 0:
        raise ValueError(f'ff must be at least 0, got {ff}')
    if any(p < 1 for p in pool):
        raise ValueError(f'pool factors must be at least 1, got {tuple(pool)}')
