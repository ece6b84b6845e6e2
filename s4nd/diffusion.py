"""Denoising diffusion of any signal: the forward process, the objective and its reversal, for any denoiser.

Noise is added in T steps, q(x_t | x_{t-1}) = N(√(1 - β_t) x_{t-1}, β_t I), so that x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε with
ᾱ_t = Π_{s≤t} (1 - β_s) (DDPM, arXiv 2006.11239, equation 4). A denoiser predicts ε, or x_0, from x_t and t; from its
prediction the steps are undone one by one, or a few levels at a time (DDIM, arXiv 2010.02502, equation 12).

Nothing here knows what the signal is: a denoiser is a function (x_t (B, …), i (B,)) -> ε or x_0 (B, …), and what it is
conditioned on is its own affair. As in released code it is given the index i = t - 1 of the step, 0 … T - 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.ops.dispatch import wide_dtype

Denoiser = Callable[[Tensor, Tensor], Tensor]
# One generator for all rows of a batch, or one for each; None: torch's own.
Random: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
PREDICTIONS = ('noise', 'signal')
STEP_FEATURES = 128


@dataclass(frozen=True)
class Diffusion:
    """The levels t = 0 (the signal) … `steps`, with β rising linearly from `beta_min` to `beta_max`.

    The defaults are DiffWave's (arXiv 2009.09761) for unconditional sound: 200 steps, 1e-4 to .02. `predicts` says what
    the denoiser gives, and what the loss compares: 'noise' (ε) or 'signal' (x_0). Either follows from the other; the
    errors of 'noise' weigh more where little noise is left, those of 'signal' alike at every level.
    Raises ValueError for values outside 0 < beta_min <= beta_max < 1, no steps, or another prediction.
    """

    steps: int = 200
    beta_min: float = 1e-4
    beta_max: float = 0.02
    predicts: str = 'noise'

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f'steps must be at least 1, got {self.steps}')
        if not 0 < self.beta_min <= self.beta_max < 1:
            raise ValueError(f'expected 0 < beta_min <= beta_max < 1, got {self.beta_min} and {self.beta_max}')
        if self.predicts not in PREDICTIONS:
            raise ValueError(f'predicts must be one of {", ".join(PREDICTIONS)}, got {self.predicts!r}')

    @cached_property
    def alpha_bar(self) -> Tensor:
        """ᾱ at the levels 0 … steps, float64: ᾱ_0 = 1."""
        betas = torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)
        return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from the signal x (B, …), the level of each row t (B,) and noise of x's shape."""
        alpha_bar = self.alpha_bar[t.cpu()].reshape(-1, *[1] * (x.dim() - 1))
        return alpha_bar.sqrt().to(x) * x + (1 - alpha_bar).sqrt().to(x) * noise

    def loss(
        self, denoise: Denoiser, x: Tensor, random: torch.Generator | None = None, where: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the prediction, at a level drawn uniformly for each row (DDPM, equation 14).

        `random`: a CPU generator, so that the draws are the same on every device; None: torch's own.
        `where`: a mask of x's shape, the mean is taken over its True entries; None: over all.
        """
        t = torch.randint(1, self.steps + 1, (len(x),), generator=random)
        noise = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device)
        predicted = denoise(self.noised(x, t, noise), t.to(x.device) - 1).to(x.dtype)
        target = noise if self.predicts == 'noise' else x
        return F.mse_loss(predicted, target) if where is None else F.mse_loss(predicted[where], target[where])

    def denoised(self, x: Tensor, predicted: Tensor, t: int, s: int, noise: Tensor | None = None) -> Tensor:
        """From level t to a lower level s: x_t and the predicted noise -> x_s.

        With `noise`, a draw from q(x_s | x_t, x_0) at the x_0 that the prediction implies; without, the deterministic
        step of DDIM.
        """
        now, then = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        signal = (x - math.sqrt(1 - now) * predicted) / math.sqrt(now)
        spread = 0.0 if noise is None else math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        x = math.sqrt(then) * signal + math.sqrt(1 - then - spread**2) * predicted
        return x if noise is None else x + spread * noise

    def levels(self, steps: int | None = None) -> list[int]:
        """The levels that a sampler visits, falling: all of them, or `steps`, the closer the less noise is left.

        Raises ValueError for more steps than there are, or none.
        """
        steps = self.steps if steps is None else steps
        if not 1 <= steps <= self.steps:
            raise ValueError(f'the number of denoising steps must be from 1 to {self.steps}, got {steps}')
        # Quadratic, as in DDIM's appendix: the last levels decide on what is faint.
        return [max(i, math.ceil(self.steps * (i / steps) ** 2)) for i in range(steps, 0, -1)]

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoiser,
        noise: Tensor,
        *,
        steps: int | None = None,
        random: Random = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """A signal from `noise` (B, …), which stands for the highest level.

        Args:
            steps: None: every level, a random draw at each (DDPM); a number: so many, without further noise (DDIM).
            random: generator of those draws, on the device of `noise`; one for each row makes a row's draws its own.
            progress: called with the number of steps done, after each.
        """
        x = noise
        for done, (t, s) in enumerate(pairwise([*self.levels(steps), 0]), 1):
            predicted = denoise(x, torch.full((len(x),), t - 1, device=x.device)).to(x.dtype)
            if self.predicts == 'signal':
                now = float(self.alpha_bar[t])
                predicted = (x - math.sqrt(now) * predicted) / math.sqrt(1 - now)
            draw = steps is None and s > 0
            x = self.denoised(x, predicted, t, s, normal_like(x, random) if draw else None)
            if progress is not None:
                progress(done)
        return x


def normal_like(x: Tensor, random: Random) -> Tensor:
    """Normal noise of the shape, dtype and device of x (B, …)."""
    if random is None or isinstance(random, torch.Generator):
        return torch.randn(x.shape, generator=random, dtype=x.dtype, device=x.device)
    return torch.stack([torch.randn(x.shape[1:], generator=row, dtype=x.dtype, device=x.device) for row in random])


def step_network(width: int, hidden: int | None = None, features: int = STEP_FEATURES) -> nn.Sequential:
    """Return the network from `step_features` (B, features) to a condition (B, width) (DiffWave, section 3.1).

    hidden: features between its two maps; None: width.
    """
    hidden = width if hidden is None else hidden
    return nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, width), nn.SiLU())


def step_features(t: Tensor, features: int = STEP_FEATURES) -> Tensor:
    """Map indices of steps (B,) to sines, then cosines, of t · 10^(-4 i / (n - 1)), i = 0 … n - 1: (B, 2n) float64.

    These are the features of DiffWave's released code; its paper has the exponent without the minus sign.
    """
    half = features // 2
    frequencies = 10 ** (torch.arange(half, dtype=wide_dtype(t.device), device=t.device) * (-4 / (half - 1)))
    phases = t[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], -1)
