"""Diffusion of waveforms with a two-sided SaShiMi U-Net as denoiser (DiffWave-SaShiMi, arXiv 2202.09729, section 5.3).

The network is that of the released code (albertfgu/diffwave-sashimi): an S4 block and a feed-forward make one unit with
one skip, norms have one scale and one shift for all features, all other linear maps are weight-normalized, and coarse
features are not delayed.

Shape legend: B = batch, L = samples, H = d_model, W = width of a level, E = width of the condition, p = pool,
M = mel bands, F = frames of a spectrogram.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from s4nd.diffusion import Diffusion, step_features, step_network
from s4nd.kernels import KERNELS, own_keywords
from s4nd.layers import S4
from s4nd.layers.base import check_floating
from s4nd.layers.norms import make_norm
from s4nd.models.s4_block import FeedForward, S4Block, make_linear

from .backbone import Level, check_sizes, walk
from .hub import HubModel
from .keywords import model_keywords
from .sashimi import check_label
from .walks import Pools

MEL_BANDS = 80


class MelUpsampler(nn.Module):
    """Bring a mel spectrogram to the rate of samples and W features: (B, M, F) -> (B, length, W).

    Two transposed convolutions along time (factors s: 3 x 2s kernels, leaky ReLU of slope 0.4), cut to `length`, then a
    linear map. Every block has its own; a block at a coarser level is given its first samples, not all of it at a
    coarser rate (as released).
    """

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.upsample = nn.ModuleList(
            weight_norm(nn.ConvTranspose2d(1, 1, (3, 2 * s), stride=(1, s), padding=(1, s // 2))) for s in factors
        )
        self.linear = make_linear(MEL_BANDS, width, True)

    def forward(self, mel: Tensor, length: int) -> Tensor:
        x = mel[:, None]
        for conv in self.upsample:
            x = F.leaky_relu(conv(x), 0.4)
        x = x[:, 0, :, :length]
        return self.linear(F.pad(x, (0, length - x.shape[2])).transpose(1, 2))


class DenoisingBlock(nn.Module):
    """Compute y = x + S4(norm(x) + map of the condition) + map of the spectrogram, then y + FF(norm(y)): (B, L, W)."""

    def __init__(self, width: int, ff: int, dropout: float, mel: Sequence[int] | None, **options: Any) -> None:
        super().__init__()
        self.s4 = S4Block(width, bidirectional=True, norm='scalar', dropout=dropout, **options)
        self.mel = None if mel is None else MelUpsampler(width, mel)
        self.ff = FeedForward(width, ff, dropout, norm='scalar', weight_norm=True) if ff > 0 else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, mel: Tensor | None = None) -> Tensor:
        y = self.s4(x, condition=condition)
        if self.mel is not None and mel is not None:
            y = y + self.mel(mel, y.shape[1])
        return self.ff(y)


class WholeClip:
    """Run whole periods (B, L, W) with a condition (B, E) and a spectrogram, in both directions: nothing is delayed."""

    def __init__(self, condition: Tensor, mel: Tensor | None) -> None:
        self.condition, self.mel = condition, mel

    def block(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        return block(x, self.condition, self.mel)

    def coarse(self, name: str, level: Pools, x: Tensor, deeper: Callable[[Tensor, Any], Tensor]) -> Tensor:
        coarse = level.unpool(deeper(level.pool(rearrange(x, 'b (l p) w -> b l (w p)', p=level.p)), self))
        return rearrange(coarse, 'b l (w p) -> b (l p) w', p=level.p) + x


class DenoisingBackbone(nn.Module):
    """Map a sequence to another with a condition per clip: (B, L, d_model), (B, E) -> (B, L, d_model).

    Args:
        d_model, pool, expand, ff, mixer_args, glu, dropout: as `SaShiMiBackbone`. In kernel_args, n_ssm is 'd_model' by
            default: each feature has a state matrix of its own.
        n_layers: blocks, each an S4 block and a feed-forward, at each level (with `unet`, on the way down too) and at
            the center.
        unet: put blocks on the way down too, each joined to its counterpart on the way up by a skip.
        condition: E.
        mel: factors of the two upsamplings of a spectrogram, their product the samples per frame (16, 16 published);
            None: there is no spectrogram.
        length: L in training. Kernels then reach no farther than a clip (at level i, L / (p_1 … p_i) samples), as
            released; None: they reach over any clip.

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 6,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        *,
        mixer_args: Mapping[str, Any] | None = None,
        glu: bool = True,
        unet: bool = True,
        dropout: float = 0.0,
        condition: int = 512,
        mel: Sequence[int] | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model, n_layers, pool, expand, ff)
        self.period = math.prod(pool)
        if mel is not None and (len(mel) != 2 or min(mel) < 1):
            raise ValueError(f'mel must be two factors of at least 1, such as (16, 16), got {tuple(mel)}')
        if length is not None and length < self.period:
            raise ValueError(f'length must be at least the product of the pools, {self.period}, got {length}')
        widths = [d_model * expand**i for i in range(len(pool) + 1)]
        mixer = untied(mixer_args)

        def blocks(i: int) -> nn.ModuleList:
            reach = None if length is None else length // math.prod(pool[:i])
            layer = mixer if reach is None else {**mixer, 'l_max': reach}
            return nn.ModuleList(
                DenoisingBlock(widths[i], ff, dropout, mel, mixer_args=layer, glu=glu, condition=condition)
                for _ in range(n_layers)
            )

        self.d_model, self.pool = d_model, tuple(pool)
        self.levels = nn.ModuleList(
            Level(widths[i], p, expand, partial(blocks, i), unet=unet, residual=False, weight_norm=True)
            for i, p in enumerate(pool)
        )
        self.center = blocks(len(pool))
        self.norm = make_norm('scalar', d_model)

    def forward(self, x: Tensor, condition: Tensor, mel: Tensor | None = None) -> Tensor:
        """Map a clip of any length; it is padded with zeros to whole coarse steps."""
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.period))
        return self.norm(walk(self.levels, self.center, x, WholeClip(condition, mel))[:, :length])


class DiffusionSaShiMi(HubModel):
    """Predict the noise in a waveform: noisy waveform (B, L), index of the step (B,), class (B,) -> noise (B, L).

    A map 1 -> H, `DenoisingBackbone`, a map H -> H -> 1 that begins at zero. Step and class make one condition (B, E),
    which every block adds to the input of its S4 layer through a linear map of its own.

    Args:
        condition: E.
        num_classes: each clip has a class; None: no classes.
        steps, beta_min, beta_max: see `s4nd.diffusion.Diffusion`, which the model carries as `diffusion`.
        backbone: keywords of `DenoisingBackbone`, and among them those of its S4 layers and their kernels. With
            d_model=128 (23.5 M parameters) or 64 (7.7 M) and nothing else it is the released model.

    Raises ValueError for values that do not fit and for an unknown keyword.
    """

    def __init__(
        self,
        *,
        condition: int = 512,
        num_classes: int | None = None,
        steps: int = 200,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, or None for no classes, got {num_classes}')
        if condition < 1:
            raise ValueError(f'condition must be at least 1, got {condition}')
        args = model_keywords(DenoisingBackbone, backbone, owner='DiffusionSaShiMi', without=('condition',), layer=S4)
        self.diffusion = Diffusion(steps, beta_min, beta_max)
        self.num_classes, self.mel = num_classes, args['mel']
        self.enter = make_linear(1, args['d_model'], True)
        self.step_embedding = step_network(condition)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, condition)
        self.backbone = DenoisingBackbone(**args, condition=condition)
        hidden, last = make_linear(args['d_model'], args['d_model'], True), nn.Linear(args['d_model'], 1)
        self.leave = nn.Sequential(hidden, nn.ReLU(), last)
        # As in DiffWave: the untrained model predicts no noise.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, mel: Tensor | None = None) -> Tensor:
        """Predict the noise, for a vocoder given its spectrogram mel (B, 80, F).

        Raises ValueError for shapes that do not fit, and for a label as `check_label` does.
        """
        if x.dim() != 2 or t.shape != x.shape[:1]:
            raise ValueError(
                f'expected (batch, length) and one step per row, got {tuple(x.shape)} and {tuple(t.shape)}'
            )
        check_floating(x)
        check_label(label, self.num_classes, len(x))
        self._check_mel(mel, x)
        condition = self.step_embedding(step_features(t).to(self.leave[-1].weight.dtype))
        if label is not None and self.class_embedding is not None:
            condition = condition + self.class_embedding(label)
        y = self.backbone(F.relu(self.enter(x[..., None])), condition, mel)
        return self.leave(y)[..., 0]

    def _check_mel(self, mel: Tensor | None, x: Tensor) -> None:
        if (mel is None) != (self.mel is None):
            raise ValueError('this model needs a spectrogram (mel)' if mel is None else 'this model takes no mel')
        if mel is None:
            return
        samples = mel.shape[-1]
        for s in self.mel:
            samples = samples * s + s % 2
        if mel.dim() != 3 or mel.shape[:2] != (len(x), MEL_BANDS) or samples < x.shape[1]:
            raise ValueError(
                f'mel: expected ({len(x)}, {MEL_BANDS}, frames for at least {x.shape[1]} samples), '
                f'got {tuple(mel.shape)}, which makes {samples}'
            )


def untied(mixer_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keywords of S4 in which each feature has a state matrix of its own unless n_ssm is given."""
    layer = dict(mixer_args or {})
    kernel = layer.get('kernel', 's4')
    if kernel in KERNELS and 'n_ssm' in own_keywords(kernel):
        layer['kernel_args'] = {'n_ssm': 'd_model', **(layer.get('kernel_args') or {})}
    return layer
