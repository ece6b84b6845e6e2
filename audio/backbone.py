"""The backbone of SaShiMi: an S4 model of sequences at several rates (arXiv 2202.09729).

A sequence is pooled down level by level, modeled at the coarsest rate, and brought back up; each level's blocks run
after its up-pool (with `unet`, on the way down as well). Coarse features return one coarse step late, so that a sample
depends on no later one, and the same network runs one sample at a time: `step` equals `forward`.

Shape legend: B = batch, L = samples, H = d_model, W = width of a level (H · expand^level), p = pool.
The residual stream is (B, L, W), so that norms, linears and pools serve `forward` and `step` alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers import S4, S4ND
from s4nd.ops.recurrence import run_recurrence

State = dict[str, Tensor]
System = dict[str, list[Tensor]]

# Samples of a prompt that `prefill` holds in memory at once.
_SEGMENT = 65536


@dataclass(frozen=True)
class S4Options:
    """What the S4 layers of all levels share; see `SaShiMiBackbone` for the meaning of each."""

    kernel: str = 's4'
    d_state: int = 64
    init: str | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    n_ssm: int | str | None = None
    glu: bool = True
    bidirectional: bool = False
    dropout: float = 0.0
    condition: int | None = None


class S4Block(nn.Module):
    """x + W(GELU(S4(norm(x)))), W with or without a gated linear unit; a condition is added to the input of S4."""

    def __init__(
        self,
        d_model: int,
        options: S4Options,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place = {'device': device, 'dtype': dtype}
        ssm = {
            'kernel': options.kernel,
            'd_state': options.d_state,
            'init': options.init,
            'dt_min': options.dt_min,
            'dt_max': options.dt_max,
            'n_ssm': d_model if options.n_ssm == 'd_model' else options.n_ssm,
        }
        self.norm = nn.LayerNorm(d_model, **place)
        # centered=False: the published two-sided layer, whose backward kernel begins at lag -1.
        if options.bidirectional:
            self.s4 = S4ND(d_model, spatial_dims=1, centered=False, **ssm, **place)
        else:
            self.s4 = S4(d_model, **ssm, **place)
        self.condition = None if options.condition is None else nn.Linear(options.condition, d_model, **place)
        self.glu = options.glu
        self.linear = nn.Linear(d_model, 2 * d_model if self.glu else d_model, **place)
        self.drop = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = self.norm(x)  # (B, L, W)
        if condition is not None:
            y = y + self.condition(condition)[:, None]
        return x + self._output(self.s4(y.transpose(1, 2)).transpose(1, 2))

    def init_state(self, batch: int) -> State:
        return self.s4.init_state(batch)

    def system(self) -> list[Tensor]:
        return self.s4.system()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None) -> tuple[Tensor, State]:
        """One sample (B, W) -> (B, W) and the new state."""
        y, state = self.s4.step(self.norm(x), state, system)
        return x + self._output(y), state

    def run(self, x: Tensor, state: State, system: list[Tensor]) -> tuple[Tensor, State]:
        """A stretch (B, L, W) from any state -> (B, L, W) and the state after it."""
        u = self.norm(x).transpose(1, 2)
        y, after = run_recurrence(self.s4.kernels[0].advance, system, u, state['x'])
        y = y + self.s4.D[0].to(y.dtype)[:, None] * u
        return x + self._output(y.transpose(1, 2)), {'x': after}

    def _output(self, y: Tensor) -> Tensor:
        y = self.linear(F.gelu(y))
        return self.drop(F.glu(y, dim=-1) if self.glu else y)


class FeedForward(nn.Module):
    """x + W2(GELU(W1(norm(x)))), position by position: (…, W) -> (…, W)."""

    def __init__(
        self,
        d_model: int,
        ff: int,
        dropout: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(d_model, **place)
        self.linear1 = nn.Linear(d_model, ff * d_model, **place)
        self.linear2 = nn.Linear(ff * d_model, d_model, **place)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.linear2(F.gelu(self.linear1(self.norm(x)))))


class Level(nn.Module):
    """One rate: the pool to the next coarser rate, its inverse, and the blocks before (unet only) and after them."""

    def __init__(
        self,
        d_model: int,
        p: int,
        expand: int,
        n_layers: int,
        ff: int,
        unet: bool,
        options: S4Options,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.p, self.unet = d_model, p, unet
        self.down = _blocks(d_model, n_layers if unet else 0, ff, options, **place)
        self.pool = nn.Linear(d_model * p, d_model * expand, **place)
        self.unpool = nn.Linear(d_model * expand, d_model * p, **place)
        self.up = _blocks(d_model, n_layers, ff, options, **place)

    def descend(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """(B, L, W) -> coarse (B, L/p, W·expand) and what `ascend` adds back, finest last."""
        skips = [x]
        for block in self.down:
            skips.append(_apply(block, skips[-1], condition))
        return self.pool(rearrange(skips[-1], 'b (l p) w -> b l (w p)', p=self.p)), skips

    def ascend(self, coarse: Tensor, skips: list[Tensor], condition: Tensor | None) -> Tensor:
        """Coarse (B, L/p, W·expand) -> (B, L, W)."""
        # The coarse step of samples jp … jp+p-1 is known only once the last of them is. (The published two-sided model
        # is shifted as well.)
        x = F.pad(self.unpool(coarse), (0, 0, 1, -1))
        x = rearrange(x, 'b l (w p) -> b (l p) w', p=self.p) + skips[-1]
        if not self.unet:
            return x + _through(self.up, x, condition)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = _apply(block, x, condition) + skip
        return x


class SaShiMiBackbone(nn.Module):
    """Continuous sequence to continuous sequence, (B, L, d_model) -> (B, L, d_model), any L >= 1.

    Args:
        d_model: H, width at the finest rate.
        n_layers: pairs of S4 block and feed-forward at each level (with `unet`, on the way down too) and at the center.
        pool: pooling factor of each level, finest first.
        expand: width of a level over that of the one above it.
        ff: width of the feed-forward over its level's; 0 leaves it out.
        kernel, d_state, init, dt_min, dt_max: see `s4nd.S4`; the same at every level.
        n_ssm: distinct (A, B) in each S4 layer; None is one (tied), 'd_model' one for each feature of its level.
        glu: gated output of the S4 blocks.
        unet: blocks on the way down too, each joined to its mirror image by a skip.
        bidirectional: two-sided S4 layers (every output sees the whole clip); such a model cannot `step`.
        dropout: on the output of every block, in training.
        condition: width of a vector for each clip that `forward` is then given, and that every S4 block adds to its
            input through a linear map; None: there is none. Only for a two-sided model.

    The S4 state matrices have negative real parts whatever the parameters are, so stepping is stable.
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
        kernel: str = 's4',
        d_state: int = 64,
        init: str | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | str | None = None,
        glu: bool = True,
        unet: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        condition: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        pool = tuple(pool)
        for name, value in [('d_model', d_model), ('n_layers', n_layers), ('expand', expand)]:
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if ff < 0:
            raise ValueError(f'ff must be at least 0, got {ff}')
        if any(p < 1 for p in pool):
            raise ValueError(f'pool factors must be at least 1, got {pool}')
        if isinstance(n_ssm, str) and n_ssm != 'd_model':
            raise ValueError(f"n_ssm must be a whole number, None or 'd_model', got {n_ssm!r}")
        if condition is not None and not (bidirectional and condition >= 1):
            raise ValueError(f'condition must be at least 1, and the model bidirectional, got {condition}')
        options = S4Options(kernel, d_state, init, dt_min, dt_max, n_ssm, glu, bidirectional, dropout, condition)
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.pool, self.bidirectional, self.condition = d_model, pool, bidirectional, condition
        widths = [d_model * expand**i for i in range(len(pool) + 1)]
        self.levels = nn.ModuleList(
            Level(w, p, expand, n_layers, ff, unet, options, **place) for w, p in zip(widths, pool, strict=False)
        )
        self.center = _blocks(widths[-1], n_layers, ff, options, **place)
        self.norm = nn.LayerNorm(d_model, **place)

    @property
    def period(self) -> int:
        """Samples to one step of the coarsest level."""
        period = 1
        for p in self.pool:
            period *= p
        return period

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, L, d_model), condition (B, E) -> (B, L, d_model). Raises ValueError for another shape or L = 0."""
        if x.dim() != 3 or x.shape[-1] != self.d_model or x.shape[1] < 1:
            raise ValueError(f'expected (batch, length >= 1, {self.d_model}), got {tuple(x.shape)}')
        expected = None if self.condition is None else (x.shape[0], self.condition)
        given = None if condition is None else tuple(condition.shape)
        if given != expected:
            raise ValueError(f'expected a condition of shape {expected}, got {given}')
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.period))
        skips = []
        for level in self.levels:
            x, skip = level.descend(x, condition)
            skips.append(skip)
        x = x + _through(self.center, x, condition)
        for level, skip in zip(reversed(self.levels), reversed(skips), strict=True):
            x = level.ascend(x, skip, condition)
        return self.norm(x[:, :length])

    def init_state(self, batch: int) -> State:
        """State before the first sample: a flat dict of tensors, batch first.

        'phase' (B,) counts samples modulo `period`; 'levels.i.fine' holds the samples that wait for level i's pool and
        'levels.i.coarse' the samples that its last coarse step was spread to, both (B, W, p); the rest belongs to the
        S4 layers, under their names.
        """
        self._check_causal()
        weight = self.norm.weight
        state = {'phase': torch.zeros(batch, dtype=torch.int64, device=weight.device)}
        for i, level in enumerate(self.levels):
            for name in ('fine', 'coarse'):
                state[f'levels.{i}.{name}'] = weight.new_zeros(batch, level.d_model, level.p)
        for name, module in self.named_modules():
            if isinstance(module, S4Block):
                state |= {f'{name}.{key}': value for key, value in module.init_state(batch).items()}
        return state

    def system(self) -> System:
        """The discretized S4 layers by name: compute it once for many calls of `step` with the same parameters."""
        self._check_causal()
        return {name: module.system() for name, module in self.named_modules() if isinstance(module, S4Block)}

    def step(
        self, x: Tensor, state: State, *, system: System | None = None, phase: int | None = None
    ) -> tuple[Tensor, State]:
        """One sample (B, d_model) -> (B, d_model) and the new state; `state` itself is left as it was.

        Args:
            x: the sample.
            state: from `init_state` or the call before.
            system: what `system()` returned; None discretizes anew, which costs more than the step itself.
            phase: number of samples seen so far modulo `period`, for a caller that counts: saves reading a tensor.

        Raises ValueError for a two-sided model, another shape, or batch rows that are at different phases.
        """
        self._check_causal()
        if x.dim() != 2 or x.shape[-1] != self.d_model:
            raise ValueError(f'expected (batch, {self.d_model}), got {tuple(x.shape)}')
        if phase is None:
            phase = _common_phase(state['phase'])
        new = dict(state)
        new['phase'] = (state['phase'] + 1) % self.period
        return self.norm(self._step_from(0, x, phase, state, new, system)), new

    def _step_from(self, i: int, x: Tensor, phase: int, old: State, new: State, system: System | None) -> Tensor:
        """One step of level i and, where that completes a coarse step, of the levels below it."""
        if i == len(self.levels):
            return self.step_center(x, old, new, system)
        level = self.levels[i]
        place = phase % level.p
        y, fine = self.step_level(i, x, place, old, new, system)
        if place == level.p - 1:
            coarse = self._step_from(i + 1, level.pool(fine.flatten(1)), phase // level.p, old, new, system)
            new[f'levels.{i}.coarse'] = level.unpool(coarse).unflatten(1, (level.d_model, level.p))
        return y

    def step_level(
        self, i: int, x: Tensor, place: int, old: State, new: State, system: System | None
    ) -> tuple[Tensor, Tensor]:
        """Level i alone: (B, W) -> (B, W) and the samples (B, W, p) that its pool reads, whole where place = p - 1."""
        level = self.levels[i]
        skips = [x]
        for j, block in enumerate(level.down):
            skips.append(_step_block(block, f'levels.{i}.down.{j}', skips[-1], old, new, system))
        fine = torch.cat([old[f'levels.{i}.fine'][..., 1:], skips[-1][..., None]], -1)  # (B, W, p)
        new[f'levels.{i}.fine'] = fine
        y = x = old[f'levels.{i}.coarse'][..., place] + skips[-1]
        for j, block in enumerate(level.up):
            y = _step_block(block, f'levels.{i}.up.{j}', y, old, new, system)
            if level.unet:
                y = y + skips[-2 - j]
        return (y if level.unet else x + y), fine

    def prefill(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A stretch (B, L, d_model), L >= 1, from `state` (None: the first) -> (B, L, d_model) and the state after it.

        What L calls of `step` give, at about the cost of `forward`: whole periods are convolved, a segment at a time so
        that memory does not grow with L; the samples before and after them are stepped. Raises ValueError as `step` and
        `forward` do.
        """
        self._check_causal()
        if x.dim() != 3 or x.shape[-1] != self.d_model or x.shape[1] < 1:
            raise ValueError(f'expected (batch, length >= 1, {self.d_model}), got {tuple(x.shape)}')
        state = self.init_state(len(x)) if state is None else state
        system, outputs = self.system(), []
        phase = _common_phase(state['phase'])
        lead = min(-phase % self.period, x.shape[1])
        rest = (x.shape[1] - lead) % self.period
        for t in range(lead):
            y, state = self.step(x[:, t], state, system=system, phase=phase + t)
            outputs.append(y[:, None])
        segment = max(1, _SEGMENT // self.period) * self.period
        for part in x[:, lead : x.shape[1] - rest].split(segment, 1) if x.shape[1] - rest > lead else ():
            state = dict(state)
            outputs.append(self.norm(self._run_from(0, part, dict(state), state, system)))
        for t in range(rest):
            y, state = self.step(x[:, t - rest], state, system=system, phase=t)
            outputs.append(y[:, None])
        return torch.cat(outputs, 1), state

    def _run_from(self, i: int, x: Tensor, old: State, new: State, system: System) -> Tensor:
        """Whole periods of level i and of the levels below it, (B, L, W) -> (B, L, W); the phase stays 0."""
        if i == len(self.levels):
            return self.step_center(x, old, new, system)
        level, name = self.levels[i], f'levels.{i}'
        skips = [x]
        for j, block in enumerate(level.down):
            skips.append(_step_block(block, f'{name}.down.{j}', skips[-1], old, new, system))
        fine = rearrange(skips[-1], 'b (l p) w -> b l (w p)', p=level.p)
        coarse = level.unpool(self._run_from(i + 1, level.pool(fine), old, new, system))
        new[f'{name}.fine'], new[f'{name}.coarse'] = (
            last.unflatten(1, (level.d_model, level.p)) for last in (fine[:, -1], coarse[:, -1])
        )
        late = torch.cat([old[f'{name}.coarse'].flatten(1)[:, None], coarse[:, :-1]], 1)
        y = x = rearrange(late, 'b l (w p) -> b (l p) w', p=level.p) + skips[-1]
        for j, block in enumerate(level.up):
            y = _step_block(block, f'{name}.up.{j}', y, old, new, system)
            if level.unet:
                y = y + skips[-2 - j]
        return y if level.unet else x + y

    def step_center(self, x: Tensor, old: State, new: State, system: System | None) -> Tensor:
        """The blocks at the coarsest rate: (B, W) -> (B, W), or a stretch (B, L, W) -> (B, L, W)."""
        y = x
        for j, block in enumerate(self.center):
            y = _step_block(block, f'center.{j}', y, old, new, system)
        return x + y

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional model sees the whole clip at once and cannot step: use forward')


def _blocks(
    d_model: int,
    n_layers: int,
    ff: int,
    options: S4Options,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.ModuleList:
    place = {'device': device, 'dtype': dtype}
    blocks = nn.ModuleList()
    for _ in range(n_layers):
        blocks.append(S4Block(d_model, options, **place))
        if ff > 0:
            blocks.append(FeedForward(d_model, ff, options.dropout, **place))
    return blocks


def _apply(block: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    return block(x, condition) if isinstance(block, S4Block) else block(x)


def _through(blocks: nn.ModuleList, x: Tensor, condition: Tensor | None) -> Tensor:
    for block in blocks:
        x = _apply(block, x, condition)
    return x


def _step_block(block: nn.Module, name: str, x: Tensor, old: State, new: State, system: System | None) -> Tensor:
    """Step one block (or run it over a stretch), its state read from `old` and written to `new` under its name."""
    if not isinstance(block, S4Block):
        return block(x)
    prefix = f'{name}.'
    state = {key[len(prefix) :]: value for key, value in old.items() if key.startswith(prefix)}
    advance = block.step if x.dim() == 2 else block.run
    y, state = advance(x, state, None if system is None else system[name])
    for key, value in state.items():
        new[prefix + key] = value
    return y


def _common_phase(phase: Tensor) -> int:
    if (phase != phase[0]).any():
        raise ValueError(f'all rows of a batch must be at the same phase, got {phase.tolist()}')
    return int(phase[0])
