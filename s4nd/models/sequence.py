"""A model of sequences: an encoder, blocks of any of our layers, and a head per step or per clip.

Sequences are (batch, length, features) in and out.
Shape legend: B = batch, L = length, D = d_input, H = d_model.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s4nd.layers.attention import LocalAttention
from s4nd.layers.base import without_padding
from s4nd.layers.mega import NormalizedFeedForward
from s4nd.layers.named import make_block
from s4nd.layers.norms import make_norm, normalized
from s4nd.layers.streaming import State, scoped, within
from s4nd.ops import observed
from s4nd.options import nearest

__all__ = ['Pool', 'SequenceModel', 'padding_of']

HEADS = ('step', 'last', 'mean')


class SequenceModel(nn.Module):
    """Map sequences (B, L, D), or tokens (B, L), to outputs per step (B, L, d_output) or per clip (B, d_output).

    Args:
        d_input: D, features of a sample; with `tokens`, how many different tokens there are.
        d_output: features of an output, such as classes.
        layer: a name, see `s4nd.layers.named.make_layer`; or blocks that are built, each (B, H, L) -> (B, H, L).
        d_model: H.
        n_layers: blocks at each rate.
        tokens: whether samples are whole numbers 0 … d_input - 1.
        head: 'step': an output per sample. 'last': one from the last sample. 'mean': one from the mean of all samples.
        pool: factors by which the length shrinks, one between each rate and the next.
        expand: factor by which a pool widens the features.
        ff: hidden features of a feed-forward after each block, in multiples of H; 0: there is none.
        norm: of the blocks, and of what the head sees where norms stand before the layers; None: there is none.
        block: further keywords of `s4nd.layers.named.make_block`: layer_args, bidirectional, glu, prenorm, dropout and
            tie_dropout.

    The model streams by the contract of layers/streaming.py where its layers do and there is no pool. From a state,
    'mean' is the mean of all samples since `init_state`.

    Raises:
        ValueError: for arguments that do not fit each other, and in the forward for inputs that do not.
    """

    def __init__(
        self,
        d_input: int,
        d_output: int,
        layer: str | Iterable[nn.Module] = 's4',
        *,
        d_model: int = 128,
        n_layers: int = 4,
        tokens: bool = False,
        head: str = 'step',
        pool: Sequence[int] = (),
        expand: int = 1,
        ff: int = 0,
        norm: str | None = 'layer',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        _check_model(d_input, d_output, n_layers, head, pool, expand, ff)
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_input, self.tokens, self.head = d_input, tokens, head
        self.encoder = nn.Embedding(d_input, d_model, **place) if tokens else nn.Linear(d_input, d_model, **place)
        width, layers = d_model, [] if isinstance(layer, str) else list(layer)
        if isinstance(layer, str):
            _check_block(block)
            layers = _make_rate(layer, width, n_layers, ff, norm=norm, **block, **place)
            for factor in pool:
                layers.append(Pool(width, factor, expand * width, **place))
                width *= expand
                layers += _make_rate(layer, width, n_layers, ff, norm=norm, **block, **place)
        elif block or pool or ff:
            raise ValueError(f'blocks that are built take no further keywords, got {sorted(block)}, {pool=} and {ff=}')
        self.layers = nn.ModuleList(layers)
        end = norm if block.get('prenorm', True) else None
        self.norm = nn.Identity() if end is None else make_norm(end, width, **place)
        self.decoder = nn.Linear(width, d_output, **place)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> Any:
        """Map x (B, L, D) or (B, L); with a state, go on from it and return the output and the state after x.

        Args:
            x: samples.
            state: from `init_state` or an earlier call; None: there is nothing before x, and no state is returned.
            lengths: (B,), samples of each clip; what comes after them is padding, which no output and no gradient
                depends on. Outputs per step are zero there.
            dt: (B, L), time of each sample since the one before, in units of a regular step.

        Raises:
            ValueError: for an input of another shape or kind, lengths outside 1 … L, and lengths beside a state.
        """
        if state is not None:
            return self._continue(x, state, lengths, dt)
        features, padding = self._features(x, lengths, dt)
        return self._decode(features, padding)

    def features(self, x: Tensor, lengths: Tensor | None = None, dt: Tensor | None = None) -> Tensor:
        """Compute what the head sees of each sample, (B, L, H); with pools H and L are those of the last rate."""
        return self._features(x, lengths, dt)[0]

    def _features(self, x: Tensor, lengths: Tensor | None, dt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self._check_input(x)
        padding = None if lengths is None else padding_of(lengths, len(x), x.shape[1])
        if padding is not None:
            x = x.masked_fill(padding if self.tokens else padding[..., None], 0)
        if dt is not None and padding is not None:
            dt = dt.masked_fill(padding, 1.0)
        clip = Clip(self.encoder(x).transpose(1, 2), padding, dt)
        for layer in self.layers:
            clip = layer.clip(clip) if isinstance(layer, Pool) else clip.through(layer)
        return normalized(self.norm, clip.x.transpose(1, 2), clip.padding), clip.padding

    def _decode(self, y: Tensor, padding: Tensor | None) -> Tensor:
        """Features (B, L, H) to outputs."""
        if padding is None:
            return self.decoder(y.mean(1) if self.head == 'mean' else y[:, -1] if self.head == 'last' else y)
        if self.head == 'step':
            return self.decoder(y).masked_fill(padding[..., None], 0.0)
        count = (~padding).sum(1)
        if self.head == 'last':
            return self.decoder(y.gather(1, (count - 1)[:, None, None].expand(-1, 1, y.shape[2]))[:, 0])
        return self.decoder(y.masked_fill(padding[..., None], 0.0).sum(1) / count[:, None])

    def _continue(self, x: Tensor, state: State, lengths: Tensor | None, dt: Tensor | None) -> tuple[Tensor, State]:
        if lengths is not None:
            raise ValueError('streams have no padding: expected lengths=None where a state is given')
        self._check_streams()
        self._check_input(x)
        clip, new = Clip(self.encoder(x).transpose(1, 2), None, dt), State()
        for i, layer in enumerate(self.layers):
            if not hasattr(layer, 'init_state'):
                clip = clip.through(layer)
                continue
            clip, own = clip.onward(layer, scoped(state, f'layers.{i}'))
            new |= within(f'layers.{i}', own)
        y = self.norm(clip.x.transpose(1, 2))
        if self.head == 'mean':
            return self._mean(y.sum(1), y.shape[1], state, new)
        return self._decode(y, None), new

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample: a flat dict of tensors, batch first."""
        self._check_streams()
        state: State = {}
        for i, layer in enumerate(self.layers):
            if hasattr(layer, 'init_state'):
                state |= within(f'layers.{i}', layer.init_state(batch))
        if self.head == 'mean':
            weight = self.decoder.weight
            state |= {'sum': weight.new_zeros(batch, weight.shape[1]), 'count': weight.new_zeros(batch)}
        return state

    def system(self, step: float = 1.0) -> list[Any]:
        """Discretize all layers: compute it once before a loop of `step` calls."""
        self._check_streams()
        return [layer.system(step) if hasattr(layer, 'system') else None for layer in self.layers]

    def step(self, x: Tensor, state: State, system: list[Any] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, D) or token (B,) -> (B, d_output) and the new state; `state` is left as it was."""
        self._check_streams()
        self._check_input(x[:, None])
        y, new = self.encoder(x), State()
        for i, layer in enumerate(self.layers):
            if not hasattr(layer, 'step'):
                y = layer(y)
                continue
            y, own = layer.step(y, scoped(state, f'layers.{i}'), None if system is None else system[i])
            new |= within(f'layers.{i}', own)
        y = self.norm(y)
        return self._mean(y, 1, state, new) if self.head == 'mean' else (self.decoder(y), new)

    def _mean(self, added: Tensor, samples: int, state: State, new: State) -> tuple[Tensor, State]:
        """The output of all samples so far, and their sum and number in the state."""
        total, count = state['sum'] + added, state['count'] + samples
        return self.decoder(total / count[:, None]), new | {'sum': total, 'count': count}

    def _check_input(self, x: Tensor) -> None:
        if self.tokens:
            if x.dim() != 2 or x.is_floating_point() or x.shape[1] < 1:
                raise ValueError(f'expected whole numbers (batch, length), got {x.dtype} of shape {list(x.shape)}')
        elif x.dim() != 3 or x.shape[2] != self.d_input or x.shape[1] < 1:
            raise ValueError(f'expected (batch, length, {self.d_input}), got shape {list(x.shape)}')

    def _check_streams(self) -> None:
        if any(isinstance(layer, Pool) for layer in self.layers):
            raise ValueError('a model with pools needs whole clips and cannot stream: expected pool=()')


def _make_rate(layer: str, width: int, n_layers: int, ff: int, *, norm: str | None, **block: Any) -> list[nn.Module]:
    """The blocks of one rate, each followed by its feed-forward."""
    layers: list[nn.Module] = []
    of_block = ('prenorm', 'dropout', 'device', 'dtype')
    shared = {name: block[name] for name in of_block if name in block}
    for _ in range(n_layers):
        layers.append(make_block(width, layer, norm=norm, **block))
        if ff:
            layers.append(NormalizedFeedForward(width, ff * width, norm=norm or 'layer', **shared))
    return layers


class Clip(NamedTuple):
    """What passes from layer to layer: x (B, H, L), and padding and dt (B, L) where there are any."""

    x: Tensor
    padding: Tensor | None
    dt: Tensor | None

    def through(self, layer: nn.Module) -> 'Clip':
        """Apply a layer, which is given what there is."""
        return self._replace(x=layer(self.x, **self._options(layer)))

    def onward(self, layer: nn.Module, state: State) -> tuple['Clip', State]:
        """Apply a layer from a state, and return the state after the clip too."""
        x, state = layer(self.x, state, **self._options(layer))
        return self._replace(x=x), state

    def _options(self, layer: nn.Module) -> dict[str, Tensor]:
        if self.dt is not None and isinstance(layer, LocalAttention):
            raise ValueError('attention counts samples and knows no time: expected dt=None')
        dt = None if isinstance(layer, NormalizedFeedForward) else self.dt
        return {name: value for name, value in (('padding', self.padding), ('dt', dt)) if value is not None}


class Pool(nn.Module):
    """Average each `factor` samples, those that are no padding, and map their features: (B, H, L) -> (B, out, ⌈L/p⌉).

    Args:
        d_model: H.
        factor: p.
        out: features.
    """

    def __init__(
        self,
        d_model: int,
        factor: int,
        out: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(d_model, out, device=device, dtype=dtype)

    def clip(self, clip: Clip) -> Clip:
        """Pool a clip; the step to a coarse sample, in coarse steps, is the mean of those to its fine ones."""
        batch, _, length = clip.x.shape
        padding = clip.padding
        if padding is None:
            padding = torch.zeros(batch, length, dtype=torch.bool, device=clip.x.device)
        gap = -length % self.factor
        real = (~nn.functional.pad(padding, (0, gap), value=True)).unflatten(1, (-1, self.factor))
        x = nn.functional.pad(without_padding(clip.x, padding), (0, gap)).unflatten(2, (-1, self.factor)).sum(3)
        count = real.sum(2).clamp(min=1)
        x = x / count[:, None]
        x = self.linear(x.transpose(1, 2)).transpose(1, 2)
        dt = clip.dt
        if dt is not None:
            dt = nn.functional.pad(dt, (0, gap)).unflatten(1, (-1, self.factor))
            dt = (dt.masked_fill(~real, 0.0).sum(2) / count).masked_fill(~real.any(2), 1.0)
        return Clip(x, None if clip.padding is None else ~real.any(2), dt)


def padding_of(lengths: Tensor, batch: int, length: int) -> Tensor:
    """True where a sample is padding, (B, L), for clips of `lengths` (B,) samples each.

    Raises:
        ValueError: unless lengths are whole numbers (B,) from 1 to `length`.
    """
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f'lengths must be whole numbers ({batch},), got {lengths.dtype} of shape {list(lengths.shape)}'
        )
    if not observed() and lengths.numel() and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ValueError(f'lengths must be from 1 to {length}, the samples of a clip, got {lengths.tolist()}')
    return torch.arange(length, device=lengths.device) >= lengths[:, None]


def _check_block(block: Mapping[str, Any]) -> None:
    known = sorted(set(inspect.signature(make_block).parameters) - {'d_model', 'layer', 'norm', 'device', 'dtype'})
    for name in block:
        if name not in known:
            raise ValueError(f"SequenceModel takes no '{name}'{nearest(name, known)}")


def _check_model(
    d_input: int, d_output: int, n_layers: int, head: str, pool: Sequence[int], expand: int, ff: int
) -> None:
    sizes = {
        'd_input': d_input,
        'd_output': d_output,
        'n_layers': n_layers,
        'expand': expand,
        'pool': min(pool, default=1),
    }
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if ff < 0:
        raise ValueError(f'ff must be at least 0, got {ff}')
    if head not in HEADS:
        raise ValueError(f"unknown head '{head}': expected one of {', '.join(HEADS)}")
    if pool and head == 'step':
        raise ValueError(f"a model with pools has no output per step: expected head 'last' or 'mean' with pool={pool}")
