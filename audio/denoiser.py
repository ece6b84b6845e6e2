"""Diffusion of waveforms with a two-sided SaShiMi U-Net as denoiser (DiffWave-SaShiMi, arXiv 2202.09729, section 5.3).

Shape legend: B = batch, L = samples, H = d_model, E = width of the condition.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.backbone import SaShiMiBackbone
from audio.diffusion import Diffusion
from audio.sashimi import check_label

STEP_FEATURES = 128


class DiffusionSaShiMi(nn.Module):
    """Predicts the noise in a waveform: noisy waveform (B, L), diffusion step (B,), class (B,) -> noise (B, L).

    A map 1 -> H, the backbone (U-Net, two-sided), a map H -> H -> 1 that begins at zero. Step and class make one
    condition (B, E), which every S4 block adds to its input through a linear map of its own.

    Args:
        d_model … dropout: see `SaShiMiBackbone`.
        condition: E.
        num_classes: each clip has a class; None: no classes.
        steps, beta_min, beta_max: see `Diffusion`, which the model carries as `diffusion`.
    """

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 6,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        *,
        kernel: str = 's4',
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dropout: float = 0.0,
        condition: int = 512,
        num_classes: int | None = None,
        steps: int = 200,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, or None for no classes, got {num_classes}')
        if condition < 1:
            raise ValueError(f'condition must be at least 1, got {condition}')
        self.diffusion = Diffusion(steps, beta_min, beta_max)
        self.num_classes = num_classes
        self.enter = nn.Linear(1, d_model)
        self.step_embedding = step_network(condition)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, condition)
        self.backbone = SaShiMiBackbone(
            d_model,
            n_layers,
            pool,
            expand,
            ff,
            kernel=kernel,
            d_state=d_state,
            dt_min=dt_min,
            dt_max=dt_max,
            unet=True,
            bidirectional=True,
            dropout=dropout,
            condition=condition,
        )
        self.leave = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, 1))
        # As in DiffWave: the untrained model predicts no noise.
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Raises ValueError for shapes that do not fit, and for a label as `audio.sashimi.check_label` does."""
        if x.dim() != 2 or t.shape != x.shape[:1]:
            raise ValueError(f'expected (batch, length) and one step a row, got {tuple(x.shape)} and {tuple(t.shape)}')
        check_label(label, self.num_classes, len(x))
        condition = self.step_embedding(step_features(t).to(self.enter.weight.dtype))
        if label is not None:
            condition = condition + self.class_embedding(label)
        y = self.backbone(F.relu(self.enter(x[..., None])), condition)
        return self.leave(y)[..., 0]


def step_network(width: int) -> nn.Sequential:
    """`step_features` (B, 128) -> the condition that the blocks take (B, width) (DiffWave, section 3.1)."""
    return nn.Sequential(nn.Linear(STEP_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def step_features(t: Tensor) -> Tensor:
    """Steps (B,) -> sines and cosines of t · 10^(4 i / 63), i = 0 … 63, float32 (B, 128) (DiffWave, equation 8)."""
    half = STEP_FEATURES // 2
    frequencies = 10 ** (torch.arange(half, dtype=torch.float64, device=t.device) * 4 / (half - 1))
    phases = t[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], -1).float()


@torch.no_grad()
def sample_diffusion(
    model: DiffusionSaShiMi,
    length: int,
    *,
    batch: int = 1,
    seed: int = 0,
    label: Tensor | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw waveforms (batch, length) on the model's device; the same seed gives the same samples.

    Args:
        model: in eval mode.
        label: class of each row (batch,), for a model with classes.
        steps: None: every step of the model's schedule; a number (6, say): the short sampler (see `Diffusion.sample`).
        progress: called with the number of denoising steps done, after each.

    Raises ValueError for a length, batch, number of steps or label that cannot be used.
    """
    for name, value in [('length', length), ('batch', batch)]:
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    weight = model.enter.weight
    random = torch.Generator(weight.device).manual_seed(seed)
    noise = torch.randn(batch, length, generator=random, dtype=weight.dtype, device=weight.device)
    return model.diffusion.sample(lambda x, t: model(x, t, label), noise, steps=steps, random=random, progress=progress)
