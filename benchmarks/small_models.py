"""The small models of the side-by-side comparison: one on a line, one on a plane, the kernel the only difference.

Shape legend: B = batch, C = features, L = samples, H, W = height and width.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from audio.models.classifier import WaveBlock, WaveClassifier
from s4nd import S4ND
from s4nd.kernels import KERNELS

D_STATE = 32
LINE_WIDTH, LINE_BLOCKS = 32, 3
PLANE_WIDTH, PLANE_BLOCKS = 40, 2


@dataclass(frozen=True)
class Variant:
    """A kernel as it enters the comparison.

    Attributes:
        kernel, init, options: of `S4ND` (options: its kernel_args).
        frozen: parameters of the kernel that stay as they were initialized.
    """

    kernel: str
    init: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def layer(self) -> dict[str, Any]:
        """Keywords of `S4ND`; modes beyond the Nyquist limit of the training grid are masked where a kernel can."""
        limited = 'bandlimit' in inspect.signature(KERNELS[self.kernel]).parameters
        return {
            'kernel': self.kernel,
            'init': self.init,
            'd_state': D_STATE,
            'bandlimit': 1.0 if limited else None,
            'kernel_args': self.options,
        }

    def freeze(self, model: nn.Module) -> nn.Module:
        """`model` with the frozen parameters of its kernels taken out of training."""
        for module in model.modules():
            if isinstance(module, KERNELS[self.kernel]):
                for name in self.frozen:
                    getattr(module, name).requires_grad_(False)
        return model


VARIANTS: dict[str, Variant] = {
    's4d-lin': Variant('s4d', 'lin'),
    's4d-inv': Variant('s4d', 'inv'),
    's4d-legs': Variant('s4d', 'legs'),
    's4d-real': Variant('s4d', 'real'),
    's4d-random': Variant('s4d', 'random'),
    's4d-lin-bilinear': Variant('s4d', 'lin', {'discretization': 'bilinear'}),
    's4d-lin-fixed-b': Variant('s4d', 'lin', frozen=('B',)),
    's4-legs': Variant('s4', 'legs'),
    's4-fout': Variant('s4', 'fout'),
    's4-legt': Variant('s4', 'legt'),
    's4-legs-fixed-b': Variant('s4', 'legs', frozen=('B',)),
    'nplr': Variant('nplr'),
    'dss-exp': Variant('dss-exp'),
    'dss-softmax': Variant('dss-softmax'),
    'lmu': Variant('lmu'),
    'lssl': Variant('lssl'),
    'ema': Variant('ema'),
    'sgconv': Variant('sgconv'),
    'ckconv': Variant('ckconv'),
}


class LineModel(nn.Module):
    """(B, L), or anything that flattens to it -> (B, outputs), or (B, L) where `outputs` is None: one per sample.

    A linear map to features, blocks that mix along the line causally with an average pool between them, a norm, the
    mean over the line, a linear map.

    Args:
        length: L in training.
        outputs: classes; None: a value per sample.
        pool: samples that become one after each block but the last.
        variant: the kernel.
    """

    def __init__(self, length: int, outputs: int | None, pool: int, variant: Variant) -> None:
        super().__init__()
        self.outputs, self.pool = outputs, pool
        self.stem = nn.Conv1d(1, LINE_WIDTH, 1)
        sizes = [-(-length // pool**i) for i in range(LINE_BLOCKS)]
        self.blocks = nn.ModuleList(
            WaveBlock(
                S4ND(LINE_WIDTH, (size,), bidirectional=False, dt_min=1e-3, dt_max=0.1, **variant.layer()),
                LINE_WIDTH,
                dropout=0.0,
            )
            for size in sizes
        )
        self.norm = nn.LayerNorm(LINE_WIDTH)
        self.head = nn.Linear(LINE_WIDTH, outputs or 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)[:, None])  # (B, C, L)
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else F.avg_pool1d(x, self.pool, ceil_mode=True))
        x = self.norm(x.transpose(1, 2))  # (B, L, C)
        return self.head(x)[..., 0] if self.outputs is None else self.head(x.mean(1))


def plane_model(side: int, in_chans: int, outputs: int, variant: Variant) -> nn.Module:
    """Images (B, in_chans, H, W) -> (B, outputs): the isotropic S4ND model, made smaller."""
    return timm.create_model(
        's4nd_isotropic_mini',
        in_chans=in_chans,
        num_classes=outputs,
        img_size=side,
        dim=PLANE_WIDTH,
        depths=(PLANE_BLOCKS,),
        **variant.layer(),
    )


def wave_model(samples: int, outputs: int, variant: Variant) -> nn.Module:
    """Waveforms (B, L) -> (B, outputs): `LineModel` behind a bank of filters, which are made of the kernel as well."""
    dims, depths = (LINE_WIDTH, LINE_WIDTH), (LINE_BLOCKS,)
    return WaveClassifier(outputs, samples, dims=dims, depths=depths, pool=(20,), **variant.layer())
