"""GSS: a gated layer around a state space of reduced width, and its hybrid with local attention (arXiv 2206.13947).

Shape legend: B = batch, C = d_model, L = length, F = expand·C, H = C/reduce.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels.gss import GSSKernel
from s4nd.layers.attention import LocalAttention, State
from s4nd.layers.checks import check_clip, check_sample
from s4nd.ops import separable_conv


class GSS(nn.Module):
    """y = x + W_o(u ∘ W_g s), u = GELU(W_u x̂) of width F, s = DSS(v) + D ∘ v, v = norm(GELU(W_v x̂)) of width H.

    x̂ = norm(x). The long convolution, the expensive part of a state-space layer, sees C/reduce features only; gates of
    width expand·C make up for it.

    Args:
        d_model: C, a multiple of `reduce`.
        expand: width of the gate over d_model.
        reduce: d_model over the width of the state space.
        d_state: N of its kernel, even; N/2 modes, shared by all features (the paper's 512 are d_state=1024).

    `forward`: (B, C, L) -> (B, C, L), causal, any length. `step`: one sample (B, C) and a state -> (B, C) and the new
    state; stepping through a clip from `init_state` equals the forward.

    Raises:
        ValueError: for arguments that do not fit each other, and for an input of another shape.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expand: int = 4,
        reduce: int = 4,
        d_state: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if expand < 1:
            raise ValueError(f'expand must be at least 1, got {expand}')
        if reduce < 1 or d_model % reduce:
            raise ValueError(f'reduce must divide d_model, got reduce={reduce} and d_model={d_model}')
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.inner, self.width = d_model, expand * d_model, d_model // reduce
        self.norm = nn.LayerNorm(d_model, **place)
        self.inputs = nn.Linear(d_model, self.inner + self.width, bias=False, **place)  # W_u and W_v
        self.norm_ssm = nn.LayerNorm(self.width, **place)
        self.kernel = GSSKernel(self.width, d_state=d_state, **place)
        self.D = nn.Parameter(torch.empty(self.width, **place))
        self.gate = nn.Linear(self.width, self.inner, bias=False, **place)
        self.out = nn.Linear(self.inner, d_model, **place)
        nn.init.normal_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        check_clip(x, self.d_model)
        x = x.transpose(1, 2)  # (B, L, C)
        u, v = self._inputs(x)
        s = separable_conv(v.transpose(1, 2), [self.kernel(x.shape[1])], [0], skip=self.D)  # (B, H, L)
        return self._output(x, u, s.transpose(1, 2)).transpose(1, 2)

    def init_state(self, batch: int) -> State:
        """The zero state: a flat dict of tensors, batch first."""
        return self.kernel.init_state(batch)

    def system(self) -> list[Tensor]:
        """The discretized recurrence: compute it once before a loop of `step` calls."""
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

    def _output(self, x: Tensor, u: Tensor, s: Tensor) -> Tensor:
        return x + self.out(u * self.gate(s))


class GSSHybrid(nn.Module):
    """A stack of GSS layers in which every few a Transformer block with attention inside chunks stands instead.

    Args:
        d_model: C.
        depth: number of layers.
        attention_every: of each this many layers the second is attention; at least 2.
        chunk, num_heads: of the attention.
        expand: of the gates and of the MLP after attention.
        reduce, d_state: as GSS.

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
        reduce: int = 4,
        d_state: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or attention_every < 2:
            raise ValueError(
                f'expected depth >= 1 and attention_every >= 2, got depth={depth} and attention_every={attention_every}'
            )
        place = {'device': device, 'dtype': dtype}
        self.layers = nn.ModuleList(
            LocalAttention(d_model, num_heads=num_heads, chunk=chunk, expand=expand, **place)
            if i % attention_every == 1
            else GSS(d_model, expand=expand, reduce=reduce, d_state=d_state, **place)
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def init_state(self, batch: int) -> State:
        """The state before the first sample: a flat dict of tensors, batch first."""
        states = (layer.init_state(batch) for layer in self.layers)
        return {f'layers.{i}.{key}': value for i, state in enumerate(states) for key, value in state.items()}

    def system(self) -> list[list[Tensor]]:
        """The discretized recurrence of each layer: compute it once before a loop of `step` calls."""
        return [layer.system() for layer in self.layers]

    def step(self, x: Tensor, state: State, system: list[list[Tensor]] | None = None) -> tuple[Tensor, State]:
        """One sample (B, C) -> (B, C) and the new state; `state` is left as it was. Raises ValueError as `forward`."""
        new: State = {}
        for i, layer in enumerate(self.layers):
            prefix = f'layers.{i}.'
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            x, own = layer.step(x, own, None if system is None else system[i])
            new |= {prefix + key: value for key, value in own.items()}
        return x, new
