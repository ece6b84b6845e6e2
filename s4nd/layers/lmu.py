"""LMU: a Legendre memory that an encoder writes and a nonlinear recurrent cell reads (Voelker et al., NeurIPS 2019).

    u_k = E [x_k, h_{k-1}] + e + R m_{k-1},   m_k = Ā m_{k-1} + B̄ u_k,   h_k = tanh(W [m_k, x_k] + V h_{k-1} + w)

with one pair Ā, B̄ for each of several memories. The linear layer without the cell is `S4(kernel='lmu')`.
Shape legend: B = batch, D = d_model, L = length, M = memories, N = d_state, H = hidden.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.kernels.base import check_choice, check_length_and_step
from s4nd.kernels.lmu import DISCRETIZATIONS, discretize_delay
from s4nd.layers.base import check_dt, check_sample, check_signal
from s4nd.layers.streaming import State
from s4nd.ops import at_least_float32, wide


class LMU(nn.Module):
    """A recurrent layer over one axis: (B, D, L) -> (B, H, L), one sample after the other.

    Args:
        d_model: D, features in.
        hidden: H, features out, those of the cell; None is D. 0: there is no cell, and the memories come out, M·N
            features (order fastest), with input_to_hidden followed by x.
        memories: M.
        d_state: N, polynomials of a memory (`order` in the released code).
        theta: θ, the window in samples.
        train_theta: whether θ is trained, as log_theta.
        discretization: 'zoh', or 'euler' (Ā = I + A/θ, for θ well above N).
        hidden_to_memory: whether h enters u; with it there is the bias e, as released.
        memory_to_memory: whether R exists.
        input_to_hidden: whether x enters the cell.

    `forward`: also from a state. `step`: one sample (B, D) and a state; stepping equals the forward. A step of other
    than 1 counts θ in samples of the training grid.

    Raises:
        ValueError: for sizes below 1, an unknown discretization, a hidden_to_memory without a cell, and for an input of
            another shape.
    """

    def __init__(
        self,
        d_model: int,
        *,
        hidden: int | None = None,
        memories: int = 1,
        d_state: int = 64,
        theta: float = 1000.0,
        train_theta: bool = False,
        discretization: str = 'zoh',
        hidden_to_memory: bool = False,
        memory_to_memory: bool = False,
        input_to_hidden: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = d_model if hidden is None else hidden
        if min(d_model, memories, d_state) < 1 or hidden < 0:
            raise ValueError(
                f'd_model, memories and d_state must be at least 1 and hidden at least 0, got d_model={d_model}, '
                f'memories={memories}, d_state={d_state} and hidden={hidden}'
            )
        if not 0 < theta < math.inf:
            raise ValueError(f'theta must be a positive number of samples, got {theta}')
        if hidden_to_memory and not hidden:
            raise ValueError('hidden_to_memory needs a cell, got hidden=0')
        check_choice('discretization', discretization, DISCRETIZATIONS)
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.hidden, self.memories, self.d_state = d_model, hidden, memories, d_state
        self.theta, self.discretization = float(theta), discretization
        self.hidden_to_memory, self.input_to_hidden = hidden_to_memory, input_to_hidden
        self.register_parameter('log_theta', nn.Parameter(torch.empty(1, **place)) if train_theta else None)
        features = memories * d_state + (d_model if input_to_hidden else 0)
        self.d_output = hidden or features
        self.encoder = nn.Linear(
            d_model + (hidden if hidden_to_memory else 0), memories, bias=hidden_to_memory, **place
        )
        self.recall = nn.Linear(memories * d_state, memories, bias=False, **place) if memory_to_memory else None
        self.cell = nn.Linear(features, hidden, **place) if hidden else None
        self.cell_recall = nn.Linear(hidden, hidden, bias=False, **place) if hidden else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As released: maps of inputs Glorot uniform, maps of states orthogonal, biases zero, θ as given."""
        if self.log_theta is not None:
            nn.init.constant_(self.log_theta, math.log(self.theta))
        for linear in (self.encoder, self.cell):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
            if linear is not None and linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for linear in (self.recall, self.cell_recall):
            if linear is not None:
                nn.init.orthogonal_(linear.weight)

    def forward(
        self, x: Tensor, state: State | None = None, *, dt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Run over x (B, D, L); with a state, go on from it and return the output and the state after x.

        dt (B, L) is the time of each sample since the one before: u of sample k is held over dt[k].
        """
        x = check_signal(x, self.d_model, 1)
        system, outputs = self.system() if dt is None else self._systems(dt, x), []
        now = self.init_state(len(x)) if state is None else state
        for k, x_t in enumerate(x.unbind(-1)):
            y, now = self.step(x_t, now, system if dt is None else [t[:, k] for t in system])
            outputs.append(y)
        y = torch.stack(outputs, -1)
        return y if state is None else (y, now)

    def init_state(self, batch: int) -> State:
        """Make the zero state {'memory': (B, M, N), 'hidden': (B, H)}."""
        like = self.encoder.weight
        dtype = at_least_float32(like.dtype)
        return {
            'memory': torch.zeros(batch, self.memories, self.d_state, device=like.device, dtype=dtype),
            'hidden': torch.zeros(batch, self.hidden, device=like.device, dtype=dtype),
        }

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize the memory, [Ā - I (N, N), B̄ (N,)]: compute it once before a loop of `step` calls."""
        check_length_and_step(1, step)
        dtype = at_least_float32(self.encoder.weight.dtype)
        return [t.to(dtype) for t in discretize_delay(self.d_state, self._window(), step, self.discretization)]

    def _systems(self, dt: Tensor, x: Tensor) -> list[Tensor]:
        """Those of steps dt (B, L): (B, L, N, N) and (B, L, 1, N)."""
        check_dt(dt, x)
        dtype, theta = at_least_float32(self.encoder.weight.dtype), self._window()
        change, B = torch.func.vmap(lambda step: discretize_delay(self.d_state, theta, step, self.discretization))(
            wide(dt).flatten()
        )
        return [change.unflatten(0, dt.shape).to(dtype), B.unflatten(0, dt.shape)[..., None, :].to(dtype)]

    def _window(self) -> Tensor:
        """θ in samples, (1,), float64."""
        if self.log_theta is None:
            return wide(torch.full((1,), self.theta, device=self.encoder.weight.device))
        return wide(self.log_theta).exp()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, D) -> (B, H) and the new state; `state` is left as it was."""
        check_sample(x, self.d_model)
        change, B = self.system() if system is None else system
        memory, hidden = state['memory'], state['hidden']
        u = self.encoder(torch.cat([x, hidden.to(x.dtype)], -1) if self.hidden_to_memory else x)  # (B, M)
        if self.recall is not None:
            u = u + self.recall(memory.flatten(1).to(x.dtype))
        memory = memory + memory @ change.mT + u.to(memory.dtype)[..., None] * B
        y = memory.flatten(1).to(x.dtype)
        y = torch.cat([y, x], -1) if self.input_to_hidden else y
        if self.cell is not None and self.cell_recall is not None:
            y = torch.tanh(self.cell(y) + self.cell_recall(hidden.to(x.dtype)))
            hidden = y.to(hidden.dtype)
        return y, {'memory': memory, 'hidden': hidden}

    def extra_repr(self) -> str:
        return f'{self.d_model}, hidden={self.hidden}, memories={self.memories}, d_state={self.d_state}'
