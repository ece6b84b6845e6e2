"""SaShiMi: an autoregressive (or two-sided) S4 model of waveforms at several rates (arXiv 2202.09729).

A sequence is pooled down level by level, modelled at the coarsest rate, and brought back up; each level's blocks run
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

State = dict[str, Tensor]
System = dict[str, list[Tensor]]


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


class S4Block(nn.Module):
    """x + W(GELU(S4(norm(x)))), W with or without a gated linear unit."""

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
        # centred=False: the published two-sided layer, whose backward kernel begins at lag -1.
        if options.bidirectional:
            self.s4 = S4ND(d_model, spatial_dims=1, centred=False, **ssm, **place)
        else:
            self.s4 = S4(d_model, **ssm, **place)
        self.glu = options.glu
        self.linear = nn.Linear(d_model, 2 * d_model if self.glu else d_model, **place)
        self.drop = nn.Dropout(options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self._output(self.s4(self.norm(x).transpose(1, 2)).transpose(1, 2))  # (B, L, W)

    def init_state(self, batch: int) -> State:
        return self.s4.init_state(batch)

    def system(self) -> list[Tensor]:
        return self.s4.system()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None) -> tuple[Tensor, State]:
        """One sample (B, W) -> (B, W) and the new state."""
        y, state = self.s4.step(self.norm(x), state, system)
        return x + self._output(y), state

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

    def descend(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, L, W) -> coarse (B, L/p, W·expand) and what `ascend` adds back, finest last."""
        skips = [x]
        for block in self.down:
            skips.append(block(skips[-1]))
        return self.pool(rearrange(skips[-1], 'b (l p) w -> b l (w p)', p=self.p)), skips

    def ascend(self, coarse: Tensor, skips: list[Tensor]) -> Tensor:
        """Coarse (B, L/p, W·expand) -> (B, L, W)."""
        # The coarse step of samples jp … jp+p-1 is known only once the last of them is. (The published two-sided model
        # is shifted as well.)
        x = F.pad(self.unpool(coarse), (0, 0, 1, -1))
        x = rearrange(x, 'b l (w p) -> b (l p) w', p=self.p) + skips[-1]
        if not self.unet:
            return x + _through(self.up, x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(x) + skip
        return x


class SaShiMiBackbone(nn.Module):
    """Continuous sequence to continuous sequence, (B, L, d_model) -> (B, L, d_model), any L >= 1.

    Args:
        d_model: H, width at the finest rate.
        n_layers: pairs of S4 block and feed-forward at each level (with `unet`, on the way down too) and at the centre.
        pool: pooling factor of each level, finest first.
        expand: width of a level over that of the one above it.
        ff: width of the feed-forward over its level's; 0 leaves it out.
        kernel, d_state, init, dt_min, dt_max: see `s4nd.S4`; the same at every level.
        n_ssm: distinct (A, B) in each S4 layer; None is one (tied), 'd_model' one for each feature of its level.
        glu: gated output of the S4 blocks.
        unet: blocks on the way down too, each joined to its mirror image by a skip.
        bidirectional: two-sided S4 layers (every output sees the whole clip); such a model cannot `step`.
        dropout: on the output of every block, in training.

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
        options = S4Options(kernel, d_state, init, dt_min, dt_max, n_ssm, glu, bidirectional, dropout)
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.pool, self.bidirectional = d_model, pool, bidirectional
        widths = [d_model * expand**i for i in range(len(pool) + 1)]
        self.levels = nn.ModuleList(
            Level(w, p, expand, n_layers, ff, unet, options, **place) for w, p in zip(widths, pool, strict=False)
        )
        self.centre = _blocks(widths[-1], n_layers, ff, options, **place)
        self.norm = nn.LayerNorm(d_model, **place)

    @property
    def period(self) -> int:
        """Samples to one step of the coarsest level."""
        period = 1
        for p in self.pool:
            period *= p
        return period

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model). Raises ValueError for another shape or L = 0."""
        if x.dim() != 3 or x.shape[-1] != self.d_model or x.shape[1] < 1:
            raise ValueError(f'expected (batch, length >= 1, {self.d_model}), got {tuple(x.shape)}')
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.period))
        skips = []
        for level in self.levels:
            x, skip = level.descend(x)
            skips.append(skip)
        x = x + _through(self.centre, x)
        for level, skip in zip(reversed(self.levels), reversed(skips), strict=True):
            x = level.ascend(x, skip)
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
        """The discretised S4 layers by name: compute it once for many calls of `step` with the same parameters."""
        self._check_causal()
        return {name: module.system() for name, module in self.named_modules() if isinstance(module, S4Block)}

    def step(
        self, x: Tensor, state: State, *, system: System | None = None, phase: int | None = None
    ) -> tuple[Tensor, State]:
        """One sample (B, d_model) -> (B, d_model) and the new state; `state` itself is left as it was.

        Args:
            x: the sample.
            state: from `init_state` or the call before.
            system: what `system()` returned; None discretises anew, which costs more than the step itself.
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
            y = x
            for j, block in enumerate(self.centre):
                y = _step_block(block, f'centre.{j}', y, old, new, system)
            return x + y
        level = self.levels[i]
        skips = [x]
        for j, block in enumerate(level.down):
            skips.append(_step_block(block, f'levels.{i}.down.{j}', skips[-1], old, new, system))
        place = phase % level.p
        fine = torch.cat([old[f'levels.{i}.fine'][..., 1:], skips[-1][..., None]], -1)  # (B, W, p)
        new[f'levels.{i}.fine'] = fine
        y = x = old[f'levels.{i}.coarse'][..., place] + skips[-1]
        for j, block in enumerate(level.up):
            y = _step_block(block, f'levels.{i}.up.{j}', y, old, new, system)
            if level.unet:
                y = y + skips[-2 - j]
        if place == level.p - 1:
            coarse = self._step_from(i + 1, level.pool(fine.flatten(1)), phase // level.p, old, new, system)
            new[f'levels.{i}.coarse'] = level.unpool(coarse).unflatten(1, (level.d_model, level.p))
        return y if level.unet else x + y

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional model sees the whole clip at once and cannot step: use forward')


class SaShiMi(nn.Module):
    """Autoregressive model of quantised audio: embedding, backbone, head.

    Args:
        bits: the tokens are 0 … 2**bits - 1, in and out.
        d_model … dropout: see `SaShiMiBackbone`.
    """

    def __init__(
        self,
        bits: int = 8,
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
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise ValueError(f'bits must be from 1 to 16, got {bits}')
        self.bits = bits
        self.embedding = nn.Embedding(2**bits, d_model, device=device, dtype=dtype)
        self.backbone = SaShiMiBackbone(
            d_model,
            n_layers,
            pool,
            expand,
            ff,
            kernel=kernel,
            d_state=d_state,
            init=init,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            glu=glu,
            unet=unet,
            dropout=dropout,
            device=device,
            dtype=dtype,
        )
        self.head = nn.Linear(d_model, 2**bits, device=device, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> logits (B, L, 2**bits) of the token after each of them."""
        return self.head(self.backbone(self.embedding(tokens)))

    def init_state(self, batch: int) -> State:
        """See `SaShiMiBackbone.init_state`."""
        return self.backbone.init_state(batch)

    def system(self) -> System:
        """See `SaShiMiBackbone.system`."""
        return self.backbone.system()

    def step(
        self, token: Tensor, state: State, *, system: System | None = None, phase: int | None = None
    ) -> tuple[Tensor, State]:
        """One token (B,) -> logits (B, 2**bits) of the next and the new state; see `SaShiMiBackbone.step`."""
        y, state = self.backbone.step(self.embedding(token), state, system=system, phase=phase)
        return self.head(y), state


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


def _through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _step_block(block: nn.Module, name: str, x: Tensor, old: State, new: State, system: System | None) -> Tensor:
    """Step one block, reading its state from `old` and writing it to `new` under its name."""
    if not isinstance(block, S4Block):
        return block(x)
    prefix = f'{name}.'
    state = {key[len(prefix) :]: value for key, value in old.items() if key.startswith(prefix)}
    y, state = block.step(x, state, None if system is None else system[name])
    for key, value in state.items():
        new[prefix + key] = value
    return y


def _common_phase(phase: Tensor) -> int:
    if (phase != phase[0]).any():
        raise ValueError(f'all rows of a batch must be at the same phase, got {phase.tolist()}')
    return int(phase[0])
