"""A classifier of raw waveforms that reads the sample rate off the number of samples of a clip.

Every mixing of samples is an S4ND along time (arXiv 2210.06583), which reads its step from the size of its input: half
as many samples of the same clip are the same sound at half the rate. With mixer 'conv1d' the same skeleton is an
ordinary ConvNet, the baseline.

Shape legend: B = batch, L = samples, C = features.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers import S4ND
from s4nd.layers.base import check_floating

from .hub import HubModel
from .keywords import layer_keywords

# Silence against a clip's mean loudness: -40 dB.
FLOOR = 0.01
MIXERS = ('s4nd', 'conv1d')


class WaveBlock(nn.Module):
    """x + GLU(W(GELU(mixer(norm(x))))), then x + a feed-forward of twice the width: (B, C, L) -> (B, C, L)."""

    def __init__(self, mixer: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.linear = nn.Linear(dim, 2 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (B, L, C)
        y = self.mixer(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.drop(F.glu(self.linear(F.gelu(y)), dim=-1))
        return (x + self.drop(self.mlp(self.norm2(x)))).transpose(1, 2)


class WaveClassifier(HubModel):
    """Classify waveforms (B, L) -> logits (B, num_classes).

    Clips are brought to the same loudness. The outputs of learned filters (1 -> dims[0]) are rectified and averaged,
    and their logarithm is taken, as for the bands of a spectrogram. Then come stages of a linear map and blocks, with
    an average pool between them; the mean over time goes into a linear layer.

    Args:
        num_classes: outputs.
        clip_samples: L in training. Another L is the same clip at another sample rate.
        mixer: 's4nd', or 'conv1d': kernels of a fixed number of samples, the baseline.
        dims: features of the filters, and of each stage.
        depths: blocks of each stage.
        pool: samples per output of each stage's average pool.
        reach: longest lag of the 's4nd' filters, in samples of the training rate.
        kernel_size: of 'conv1d', odd.
        dropout: on the output of every block, in training.
        layer: keywords of `s4nd.S4ND` for the 's4nd' layers, and of their kernels. dt_min and dt_max, by default 0.02
            and 0.5, are those of the stages: the filters' dt is 1 / d_state, which for the default init spreads their
            frequencies evenly up to a quarter of the training rate. cell is 'input' by default, so that at a rate above
            the training rate each tap still averages the kernel over one sample.

    Raises ValueError for options that do not fit each other, an unknown keyword and an input of another shape.
    """

    def __init__(
        self,
        num_classes: int,
        clip_samples: int,
        *,
        mixer: str = 's4nd',
        dims: Sequence[int] = (32, 64, 64),
        depths: Sequence[int] = (2, 2),
        pool: Sequence[int] = (40, 4),
        reach: int = 96,
        kernel_size: int = 127,
        dropout: float = 0.0,
        **layer: Any,
    ) -> None:
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f'unknown mixer {mixer!r}: expected one of {", ".join(MIXERS)}')
        if not len(depths) == len(pool) == len(dims) - 1 or not depths:
            raise ValueError(
                f'dims must hold the filters and one width a stage, depths and pool one number a stage, '
                f'got dims={tuple(dims)}, depths={tuple(depths)}, pool={tuple(pool)}'
            )
        for name, value in [('num_classes', num_classes), ('pool', min(pool)), ('kernel_size', kernel_size)]:
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, so that the kernel has a middle, got {kernel_size}')
        self.num_classes, self.clip_samples, self.pool = num_classes, clip_samples, tuple(pool)
        own = inspect.signature(WaveClassifier).parameters
        stages: dict[str, Any] = {'d_state': 64, 'dt_min': 0.02, 'dt_max': 0.5, 'cell': 'input'}
        stages |= layer_keywords(layer, owner='WaveClassifier', known=[name for name in own if name != 'layer'])
        dt = 1 / stages['d_state']
        filters = stages | {'channels': dims[0], 'skip': False, 'dt_min': dt, 'dt_max': dt, 'l_max': reach}
        self.filters = _mixer(mixer, 1, clip_samples, dims[0], kernel_size, filters)
        self.projections, self.stages = nn.ModuleList(), nn.ModuleList()
        size = clip_samples
        for i, depth in enumerate(depths):
            size = math.ceil(size / pool[i])
            self.projections.append(nn.Conv1d(dims[i], dims[i + 1], 1))
            dim = dims[i + 1]
            blocks = [WaveBlock(_mixer(mixer, dim, size, dim, kernel_size, stages), dim, dropout) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, waves: Tensor) -> Tensor:
        if waves.dim() != 2 or waves.shape[1] < 1:
            raise ValueError(f'expected waveforms (batch, length >= 1), got {tuple(waves.shape)}')
        check_floating(waves)
        loudness = waves.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()  # (a root has no gradient at 0)
        x = F.relu(self.filters((waves / loudness)[:, None]))  # (B, C, L)
        for i, (pool, projection, stage) in enumerate(zip(self.pool, self.projections, self.stages, strict=True)):
            x = F.avg_pool1d(x, pool, ceil_mode=True)
            x = stage(projection((x + FLOOR).log() if i == 0 else x))
        return self.head(self.norm(x.mean(-1)))


def _mixer(mixer: str, dim: int, grid: int, out: int, kernel_size: int, ssm: Mapping[str, Any]) -> nn.Module:
    """(B, dim, L) -> (B, out, L); each feature by itself, or from one to `out`."""
    if mixer == 's4nd':
        return S4ND(dim, (grid,), **ssm)
    return nn.Conv1d(dim, out, kernel_size, padding=kernel_size // 2, groups=dim)
