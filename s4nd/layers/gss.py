"""GSS: a gated layer around a state space of reduced width, and its hybrid with local attention (arXiv 2206.13947).

Shape legend: B = batch, C = d_model, L = length, F = expand·C, H = d_ssm.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels import GSSKernel
from s4nd.layers.attention import LocalAttention
from s4nd.layers.base import check_dt, check_sample, check_signal, check_unit_step, without_padding
from s4nd.layers.irregular import irregular
from s4nd.layers.streaming import State, scoped, within
from s4nd.ops import run_recurrence, separable_conv


class GSS(nn.Module):
    """y = x + W_o(u ∘ W_g s), u = GELU(W_u x̂) of width F, s = DSS(v) + D ∘ v, v = norm(GELU(W_v x̂)) of width H.

    x̂ = norm(x). The long convolution, the expensive part of a state-space layer, sees H features only; gates of
    width expand·C make up for it.

    Args:
        d_model: C.
        expand: width of the gate over d_model.
        d_ssm: H, width of the state space; None is C/4 (released default: 256).
        d_state: N of its kernel, even; N/2 modes, shared by all features (the paper's 512 are d_state=1024).
        reverse: whether time runs backwards; such a layer sees the future alone and does not stream.
        dropout: on the branch, in training.

    `forward`: (B, C, L) -> (B, C, L), causal unless `reverse`, any length. `step`: one sample (B, C) and a state ->
    (B, C) and the new state; stepping through a clip from `init_state` equals the forward.

    Raises:
        ValueError: for arguments that do not fit each other, and for an input of another shape.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expand: int = 4,
        d_ssm: int | None = None,
        d_state: int = 1024,
        reverse: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_ssm = d_model // 4 if d_ssm is None else d_ssm
        if expand < 1 or d_ssm < 1:
            raise ValueError(f'expand and d_ssm must be at least 1, got expand={expand} and d_ssm={d_ssm}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.inner, self.width, self.reverse = d_model, expand * d_model, d_ssm, reverse
        self.norm = nn.LayerNorm(d_model, **dd)
        self.inputs = nn.Linear(d_model, self.inner + self.width, bias=False, **dd)  # W_u and W_v
        self.norm_ssm = nn.LayerNorm(self.width, **dd)
        self.kernel = GSSKernel(self.width, d_state=d_state, **dd)
        self.D = nn.Parameter(torch.empty(self.width, **dd))
        self.gate = nn.Linear(self.width, self.inner, bias=False, **dd)
        self.out = nn.Linear(self.inner, d_model, **dd)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.D)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        dt: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Transform x (B, C, L); with a state, go on from it and return the output and the state after x.

        dt (B, L) is the time of each sample since the one before, see `S4.forward`; in reverse, to the one after.
        padding (B, L) is true for samples that the state space takes as zero; outputs there mean nothing.
        """
        x = check_signal(x, self.d_model, 1)
        x = x.transpose(1, 2)  # (B, L, C)
        u, v = self._inputs(x)
        v = without_padding(v.transpose(1, 2), padding)  # (B, H, L)
        s, after = self._filter(v, None if state is None else state['x'], dt)
        y = self._output(x, u, s.transpose(1, 2)).transpose(1, 2)
        return y if state is None else (y, {'x': after})

    def _filter(self, v: Tensor, before: Tensor | None, dt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """DSS(v) + D ∘ v of v (B, H, L), and the state after it where there is one before."""
        if before is None and dt is None:
            taps = self.kernel(v.shape[2])
            lags, center = (taps.flip(-1), taps.shape[-1] - 1) if self.reverse else (taps, 0)
            return separable_conv(v, [lags], [center], skip=self.D), None
        if before is not None:
            self._check_causal()
        if dt is None:
            s, after = run_recurrence(self.kernel.advance, self.system(), v, before)
        else:
            check_dt(dt, v)
            before = self.kernel.init_state(len(v))['x'] if before is None else before
            turned = (v.flip(2), dt.flip(1)) if self.reverse else (v, dt)
            s, after = irregular(self.kernel, turned[0], before, turned[1])
            s = s.flip(2) if self.reverse else s
        return s + self.D.to(v.dtype)[:, None] * v, after

    def init_state(self, batch: int) -> State:
        """Make the zero state: a flat dict of tensors, batch first. Raises ValueError for a layer in reverse."""
        self._check_causal()
        return self.kernel.init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize the recurrence, once before a loop of `step` calls. Raises ValueError unless step is 1."""
        check_unit_step(step)
        return self.kernel.system()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """One sample (B, C) -> (B, C) and the new state; `state` is left as it was. Raises ValueError as `forward`."""
        check_sample(x, self.d_model)
        u, v = self._inputs(x)
        s, new = self.kernel.advance(v, state['x'], self.system() if system is None else system)
        return self._output(x, u, s[:, 0].to(v.dtype) + self.D.to(v.dtype) * v), {'x': new}

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, C) -> u (…, F) and v (…, H)."""
        u, v = F.gelu(self.inputs(self.norm(x))).split([self.inner, self.width], -1)
        return u, self.norm_ssm(v)

    def _check_causal(self) -> None:
        if self.reverse:
            raise ValueError('a GSS layer in reverse needs the whole clip and cannot stream')

    def _output(self, x: Tensor, u: Tensor, s: Tensor) -> Tensor:
        return x + self.drop(self.out(u * self.gate(s)))


class GSSHybrid(nn.Module):
    """A stack of GSS layers in which every few a Transformer block with attention inside chunks stands instead.

    Args:
        d_model: C.
        depth: number of layers.
        attention_every: of each this many layers the second is attention; at least 2.
        chunk, num_heads: of the attention.
        expand: of the gates and of the MLP after attention.
        d_ssm, d_state: as GSS.

    `forward`, `init_state`, `system` and `step` as GSS; the state of layer i is under 'layers.i.…'.

    Raises:
        ValueError: for arguments that do not fit each other, and for an input of another shape.
    """

    def __init__(
        self,
        d_model: int,
        depth: int,
        *,
        attention_every: int = 4,
        chunk: int = 512,
        num_heads: int = 8,
        expand: int = 4,
        d_ssm: int | None = None,
        d_state: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or attention_every < 2:
            raise ValueError(
                f'expected depth >= 1 and attention_every >= 2, got depth={depth} and attention_every={attention_every}'
            )
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.layers = nn.ModuleList(
            LocalAttention(d_model, num_heads=num_heads, chunk=chunk, expand=expand, **dd)
            if i % attention_every == 1
            else GSS(d_model, expand=expand, d_ssm=d_ssm, d_state=d_state, **dd)
            for i in range(depth)
        )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        dt: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Transform x (B, C, L); with a state, go on from it and return the output and the state after x.

        dt and padding as GSS; attention counts samples and has no use for dt.
        """

        def run(layer: nn.Module, x: Tensor, own: State | None) -> Any:
            return layer(x, own, padding=padding, **({'dt': dt} if isinstance(layer, GSS) else {}))

        if state is None:
            for layer in self.layers:
                x = run(layer, x, None)
            return x
        return self._through(x, state, lambda layer, x, own, i: run(layer, x, own))

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample: a flat dict of tensors, batch first."""
        state: State = {}
        for i, layer in enumerate(self.layers):
            state |= within(f'layers.{i}', layer.init_state(batch))
        return state

    def system(self, step: float = 1.0) -> list[list[Tensor]]:
        """Discretize the recurrence of each layer: compute it once before a loop of `step` calls."""
        return [layer.system(step) for layer in self.layers]

    def step(self, x: Tensor, state: State, system: list[list[Tensor]] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, C) -> (B, C) and the new state; `state` is left as it was. Raises as `forward`."""
        systems = self.system() if system is None else system
        return self._through(x, state, lambda layer, x, own, i: layer.step(x, own, systems[i]))

    def _through(self, x: Tensor, state: State, run: Callable[..., tuple[Tensor, State]]) -> tuple[Tensor, State]:
        new: State = {}
        for i, layer in enumerate(self.layers):
            x, own = run(layer, x, scoped(state, f'layers.{i}'), i)
            new |= within(f'layers.{i}', own)
        return x, new
