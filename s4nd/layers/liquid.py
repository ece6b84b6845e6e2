"""Liquid-S4: input-dependent terms on top of a causal state-space kernel (arXiv 2209.12951).

The paper's recurrence lets the input act on the transition too, x_k = (Ā + B̄ u_k) x_{k-1} + B̄ u_k, y_k = C x_k, where
B̄ u_k multiplies the state entry by entry. Unrolled, the output is linear in products of inputs u_i u_j … at different
times, because each step after i either moves the state by Ā or multiplies it by an input. Four layers follow:

    'exact'     the recurrence itself
    'allcombs'  its part with products of up to `degree` inputs, whatever samples lie between them:
                x^(1)_k = Ā x^(1)_{k-1} + B̄ u_k,  x^(q)_k = Ā x^(q)_{k-1} + B̄ u_k x^(q-1)_{k-1},  y = C Σ_q x^(q)
    'kb'        neighbors alone, v_k^(p) = u_k u_{k-1} … u_{k-p+1} with p up to `degree` factors: p inputs make B̄^p
                (entry by entry) of the state zero, and Ā moves it from there,
                y_k = Σ_l C Āˡ B̄ u_{k-l} + Σ_{p=2}^{degree} Σ_l κ_p[l] v_{k-l}^(p) + D u_k,    κ_p[l] = C Āˡ B̄^p
    'pb'        as 'kb', with κ_p[0] = C B̄^p alone, as if Ā were 0 after a product

Every coefficient that 'allcombs' and 'kb' keep is that of the recurrence. All is causal. Products are those of the
numbers a kernel's state is made of: its complex modes, or real entries where it has no modes.

The released code computes none of these. It reverses the product signal in time and adds it unreversed, so that outputs
depend on the future; it takes the sum of B̄ over the modes for its powers; 'kb' there multiplies spectra of different
lengths; its default, allcombs, lists the products of the last few samples in lexicographic order, without their times;
and all of it reads copies of the parameters made at construction, not the trained ones.
Shape legend: B = batch, H = d_model, L = length, p = degree, n = modes; … = the state of a feature.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.kernels.diagonal import DiagonalKernel
from s4nd.layers.base import check_dt, check_sample, check_signal
from s4nd.layers.s4 import S4
from s4nd.layers.streaming import State
from s4nd.ops import diagonal_scan, separable_conv, varying_scan

MODES = ('kb', 'pb', 'allcombs', 'exact')


class LiquidS4(S4):
    """S4 with products of inputs; no parameters beyond those of S4.

    Args:
        d_model: H, number of features.
        degree: p, most factors of a product, at least 2; 'exact' has no limit.
        mode: 'kb' (products of neighbors are filtered by the kernel, and last as long as it), 'pb' (they act at once;
            cheaper, and in the paper the better one), 'allcombs' or 'exact', see above. The last two are scans where
            the kernel is diagonal ('s4d', 'dss-exp'), else they take one sample after the other.
        The rest: as S4; any kernel that has a recurrence.

    `forward`: (B, H, L) -> (B, H, L), causal. `step`: one sample (B, H) and a state -> (B, H) and the new state;
    stepping through a clip from `init_state` equals the forward. The output is a polynomial of the input: normalize it.
    Products depend on the sampling, so the step cannot change.

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
        self.exact = True  # products of many samples have a wide range

    def forward(  # type: ignore[override]
        self, x: Tensor, state: State | None = None, step: float | None = None, *, dt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Filter x (B, H, L) as `S4.forward` does; only the modes 'allcombs' and 'exact' take dt.

        Raises:
            ValueError: as `S4.forward`, for a step other than 1, and for dt in another mode.
        """
        x = check_signal(x, self.d_model, 1)
        _check_step(1.0 if step is None else step)
        if dt is not None:
            check_dt(dt, x)
        u = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.mode in ('allcombs', 'exact'):
            y, after = self._run(u, self.init_state(len(x)) if state is None else state, dt)
            return y.to(x.dtype) if state is None else (y.to(x.dtype), after)
        if dt is not None:
            raise ValueError(f"mode '{self.mode}' has one step: expected dt=None, or mode 'allcombs' or 'exact'")
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
            products = separable_conv(products.flatten(1, 2), [taps.flatten(0, 1)[None]], [0], self.method, exact=True)
            products = products.unflatten(1, (self.degree - 1, self.d_model))
        return (y + products.sum(1)).to(x.dtype)

    def init_state(self, batch: int) -> State:
        """Make the zero state: {'x': the kernel's state} and, of the modes with neighbors, 'past' (B, p - 1, H), the
        last inputs, latest first; of 'allcombs', 'terms' (B, p - 1, H, …), the states of degrees 2 … p."""
        state = super().init_state(batch)
        if self.mode == 'exact':
            return state
        if self.mode == 'allcombs':
            x = state['x']
            return {**state, 'terms': x.new_zeros(batch, self.degree - 1, *x.shape[1:])}
        return {**state, 'past': state['x'].new_zeros(batch, self.degree - 1, self.d_model)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """That of the kernel, then C B̄^q (p - 1, H) and B̄^q (p - 1, H, …) for q = 2 … p, or with 'allcombs' and 'exact'
        B̄ (H, …) alone.

        Raises:
            ValueError: unless step is 1.
        """
        _check_step(step)
        if self.mode in ('allcombs', 'exact'):
            return [*super().system(), self._impulses(1)[0]]
        return [*super().system(), self._liquid_taps(1)[..., 0], torch.stack(self._impulses(self.degree)[1:])]

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was. See `S4.step`."""
        check_sample(x, self.d_model)
        if self.mode in ('allcombs', 'exact'):
            u = x.to(state['x'].dtype)
            y, after = self._advance(u, state, self.system() if system is None else system)
            return self._add_skip(y, u).to(x.dtype), after
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
        return torch.stack(
            [self.kernels[0].response(impulse, length)[0] for impulse in self._impulses(self.degree)[1:]]
        )

    def _impulses(self, degree: int) -> list[Tensor]:
        """B̄^q (H, …) for q = 1 … degree; B̄ is what an impulse makes of the zero state."""
        kernel = self.kernels[0]
        zero = kernel.init_state(1)['x']
        _, B = kernel.advance(zero.new_ones(1, self.d_model), zero, kernel.system())
        powers = [B[0]]
        for _ in range(1, degree):
            powers.append(kernel.product(powers[-1], B[0]))
        return powers

    def _run(self, u: Tensor, state: State, dt: Tensor | None = None) -> tuple[Tensor, State]:
        """'allcombs' or 'exact' over u (B, H, L) from a state."""
        kernel = self.kernels[0]
        if isinstance(kernel, DiagonalKernel):
            return self._scan(u, state, self.system(), dt)
        system, outputs = self.system(), []
        varying = [] if dt is None else self._systems(dt, state['x'].dtype)
        for k, u_t in enumerate(u.unbind(-1)):
            y, state = self.step(u_t, state, [t[:, k] for t in varying] if varying else system)
            outputs.append(y)
        return torch.stack(outputs, -1), state

    def _systems(self, dt: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """What `system` gives for these modes, at steps dt (B, L)."""
        kernel = self.kernels[0]
        systems = [t.to(dtype) for t in kernel.systems(dt)]
        zero = kernel.init_state(dt.numel())['x'].to(dtype)
        _, B = kernel.advance(zero.new_ones(dt.numel(), self.d_model), zero, [t.flatten(0, 1) for t in systems])
        return [*systems, B.unflatten(0, dt.shape)]

    def _scan(self, u: Tensor, state: State, system: list[Tensor], dt: Tensor | None = None) -> tuple[Tensor, State]:
        """The same for diagonal kernels, by associative scans over the states of all features."""
        *linear, B = system
        kernel, batch, length = self.kernels[0], u.shape[0], u.shape[2]
        A = torch.stack(linear[:2], -1)  # (H, n, 2), or with dt as drive
        if dt is not None and isinstance(kernel, DiagonalKernel):
            A, B = (t.to(B.dtype) for t in kernel.gains(dt))
        drive = u.to(B.dtype).transpose(1, 2)[..., None, None] * B  # (B, L, H, n, 2)
        flat = (batch, length, drive.shape[2] * drive.shape[3], 2)

        def states(factor: Tensor, terms: Tensor, before: Tensor) -> Tensor:
            """x_k = factor_k x_{k-1} + terms_k; the factor of all samples alike is (H, n, 2)."""
            varies = factor.dim() > 3
            first = terms[:, :1] + kernel.product(factor[:, :1] if varies else factor, before[:, None])
            terms = torch.cat([first, terms[:, 1:]], 1).reshape(flat)
            if varies:
                return varying_scan(factor.reshape(flat), terms).reshape(drive.shape)
            return diagonal_scan(factor[..., 0].flatten(), factor[..., 1].flatten(), terms).reshape(drive.shape)

        if self.mode == 'exact':
            x = total = states(A + drive, drive, state['x'])
            after = {'x': x[:, -1]}
        else:
            x = total = states(A, drive, state['x'])
            last, terms = state['x'], []
            after = {'x': x[:, -1]}
            for before in state['terms'].unbind(1):
                shifted = torch.cat([last[:, None], x[:, :-1]], 1)
                x, last = states(A, kernel.product(drive, shifted), before), before
                total = total + x
                terms.append(x[:, -1])
            after['terms'] = torch.stack(terms, 1)
        y = kernel.observe(total.flatten(0, 1), linear).reshape(batch, length, self.d_model).transpose(1, 2)
        return self._add_skip(y.to(u.dtype), u), after

    def _advance(self, u: Tensor, state: State, system: list[Tensor]) -> tuple[Tensor, State]:
        """One sample of 'allcombs' or 'exact': u (B, H) -> y (B, H), new state."""
        *linear, B = system
        kernel, x = self.kernels[0], state['x']
        _, new = kernel.advance(u, x, linear)
        drive = u.reshape(*u.shape, *[1] * (x.dim() - 2)) * B
        if self.mode == 'exact':
            new = new + kernel.product(drive, x)
            return kernel.observe(new, linear)[:, 0], {'x': new}
        total, last, terms = new, x, []
        for before in state['terms'].unbind(1):
            _, moved = kernel.advance(torch.zeros_like(u), before, linear)
            terms.append(moved + kernel.product(drive, last))
            total, last = total + terms[-1], before
        return kernel.observe(total, linear)[:, 0], {'x': new, 'terms': torch.stack(terms, 1)}

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, degree={self.degree}, mode={self.mode!r}'


def _check_step(step: float) -> None:
    if step != 1.0:
        raise ValueError(f'products of samples are those of one step only: expected 1, got {step}')


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
