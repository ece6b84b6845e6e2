"""Liquid-S4: input-dependent terms on top of a causal state-space kernel (arXiv 2209.12951).

The paper's recurrence lets the input act on the transition too, x_k = (Ā + B̄ u_k) x_{k-1} + B̄ u_k, y_k = C x_k, where
B̄ u_k multiplies the state entry by entry. Unrolled, the output is linear in products of inputs u_i u_j … at different
times, because each step after i either moves the state by Ā or multiplies it by an input. The layer keeps the products
of neighbors, v_k^(p) = u_k u_{k-1} … u_{k-p+1} with p up to `degree` factors: p inputs make B̄^p (entry by entry) of
the state zero, and Ā moves it from there, so that they have the weight C Āˡ B̄^p in the output l samples on.

    y_k = Σ_l C Āˡ B̄ u_{k-l} + Σ_{p=2}^{degree} Σ_l κ_p[l] v_{k-l}^(p) + D u_k,    κ_p[l] = C Āˡ B̄^p
    'kb' (kernel × B): all of κ_p        'pb' (powers of B): κ_p[0] = C B̄^p alone, as if Ā were 0 after a product

'kb' is the recurrence without the products that skip samples: every coefficient it keeps is that of the recurrence. All
is causal. Powers are those of the numbers a kernel's state is made of: its complex modes, or real entries where it has
no modes. (The published code turns the products round in time, so that outputs depend on the future, takes
u_k u_{k-1}² u_{k-2} for degree 3, and multiplies by sums over B̄ in place of its powers. None of that is kept.)
Shape legend: B = batch, H = d_model, L = length, p = degree; … = the state of a feature.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.layers.base import check_sample, check_signal
from s4nd.layers.s4 import S4
from s4nd.layers.streaming import State
from s4nd.ops import separable_conv

MODES = ('kb', 'pb')


class LiquidS4(S4):
    """S4 with products of neighboring inputs; no parameters beyond those of S4.

    Args:
        d_model: H, number of features.
        degree: p, most factors of a product, at least 2.
        mode: 'kb' (products are filtered by the kernel, and last as long as it) or 'pb' (they act at once; cheaper, and
            in the paper the better one).
        The rest: as S4; any kernel that has a recurrence.

    `forward`: (B, H, L) -> (B, H, L), causal. `step`: one sample (B, H) and a state -> (B, H) and the new state;
    stepping through a clip from `init_state` equals the forward. The output is a polynomial of the input: normalize it.
    Which samples are neighbors depends on the sampling, so the step cannot change.

    Raises:
        ValueError: for a degree below 2, an unknown mode, a system at another step, and as S4.
    """

    def __init__(
        self,
        d_model: int,
        kernel: str = 's4',
        *,
        degree: int = 2,
        mode: str = 'pb',
        d_state: int = 64,
        init: str | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        skip: bool = True,
        kernel_args: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if degree < 2:
            raise ValueError(f'degree must be at least 2 (1 is S4 itself), got {degree}')
        if mode not in MODES:
            raise ValueError(f"unknown mode '{mode}': expected one of {', '.join(MODES)}")
        super().__init__(
            d_model, None, kernel, d_state=d_state, init=init, dt_min=dt_min, dt_max=dt_max, bandlimit=bandlimit,
            skip=skip, kernel_args=kernel_args, device=device, dtype=dtype,
        )  # fmt: skip
        self.degree, self.mode = degree, mode

    def forward(
        self, x: Tensor, state: State | None = None, step: float | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """See `S4.forward`."""
        x = check_signal(x, self.d_model, 1)
        _check_step(1.0 if step is None else step)
        u = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Inputs before the clip: those of the state, or zeros.
        before = None if state is None else state['past'].flip(1).transpose(1, 2).to(u.dtype)
        products = _products(u, before, self.degree)  # (B, p - 1, H, L)
        if state is not None:
            return self._continued(x, u, products, state)
        y = super().forward(u, step=1.0)
        taps = self._liquid_taps(1 if self.mode == 'pb' else x.shape[2])
        if self.mode == 'pb':
            products = products * taps[..., 0, None].to(u.dtype)
        else:
            products = separable_conv(products.flatten(1, 2), [taps.flatten(0, 1)[None]], [0], self.method)
            products = products.unflatten(1, (self.degree - 1, self.d_model))
        return (y + products.sum(1)).to(x.dtype)

    def init_state(self, batch: int) -> State:
        """Make the zero state: {'x': the kernel's state, 'past': (B, p - 1, H), the last inputs, latest first}."""
        state = super().init_state(batch)
        return {**state, 'past': state['x'].new_zeros(batch, self.degree - 1, self.d_model)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """That of the kernel, then C B̄^q (p - 1, H) and B̄^q (p - 1, H, …) for q = 2 … p.

        Raises:
            ValueError: unless step is 1.
        """
        _check_step(step)
        return [*super().system(), self._liquid_taps(1)[..., 0], torch.stack(self._impulses())]

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was. See `S4.step`."""
        check_sample(x, self.d_model)
        *linear, gains, impulses = self.system() if system is None else system
        past = state['past']
        u = x.to(past.dtype)
        y, new = super().step(u, {'x': state['x']}, linear)
        products = u[:, None] * past.cumprod(1)  # (B, p - 1, H)
        y = y + (gains * products).sum(1)
        after = new['x']
        if self.mode == 'kb':
            after = after + (impulses * products.reshape(*products.shape, *[1] * (after.dim() - 2))).sum(1)
        return y.to(x.dtype), {'x': after, 'past': torch.cat([u[:, None], past[:, :-1]], 1)}

    def _continued(self, x: Tensor, u: Tensor, products: Tensor, state: State) -> tuple[Tensor, State]:
        """The forward from a state: what products leave in it is pushed sample by sample, the rest by chunks."""
        *linear, gains, impulses = self.system()
        last = torch.cat([state['past'].flip(1).transpose(1, 2), u.to(state['past'].dtype)], 2)
        past = last[..., last.shape[2] - self.degree + 1 :].flip(2).transpose(1, 2)
        if self.mode == 'pb':
            y, new = super().forward(u, {'x': state['x']})
            return (y + (gains[..., None] * products).sum(1)).to(x.dtype), {**new, 'past': past}
        outputs, inner = [], state
        for t in range(u.shape[2]):
            y_t, inner = self.step(u[..., t], inner, [*linear, gains, impulses])
            outputs.append(y_t)
        return torch.stack(outputs, -1).to(x.dtype), inner

    def _liquid_taps(self, length: int) -> Tensor:
        """κ_2 … κ_p, (p - 1, H, length), from memory in evaluation."""
        return self.remembered('liquid', length, self.kernels, lambda: self._compute_taps(length))

    def _compute_taps(self, length: int) -> Tensor:
        return torch.stack([self.kernels[0].response(impulse, length)[0] for impulse in self._impulses()])

    def _impulses(self) -> list[Tensor]:
        """B̄^q (H, …) for q = 2 … p; B̄ is what an impulse makes of the zero state."""
        kernel = self.kernels[0]
        zero = kernel.init_state(1)['x']
        _, B = kernel.advance(zero.new_ones(1, self.d_model), zero, kernel.system())
        return [kernel.power(B[0], q) for q in range(2, self.degree + 1)]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, degree={self.degree}, mode={self.mode!r}'


def _check_step(step: float) -> None:
    if step != 1.0:
        raise ValueError(f'neighboring samples are neighbors at one step only: expected 1, got {step}')


def _products(u: Tensor, before: Tensor | None, degree: int) -> Tensor:
    """u_k u_{k-1}, u_k u_{k-1} u_{k-2} … up to `degree` factors: (B, H, L) -> (B, p - 1, H, L).

    before: the p - 1 inputs (B, H, p - 1) before the first, oldest first; None: zeros.
    """
    length = u.shape[2]
    whole = F.pad(u, (degree - 1, 0)) if before is None else torch.cat([before, u], 2)
    product, found = u, []
    for lag in range(1, degree):
        product = product * whole[..., degree - 1 - lag :][..., :length]
        found.append(product)
    return torch.stack(found, 1)
