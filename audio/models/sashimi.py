"""SaShiMi: an autoregressive model of quantized waveforms (arXiv 2202.09729), with or without classes.

Shape legend: B = batch, L = samples, H = d_model; see `audio.models.backbone`.
"""

import math
from typing import Any, overload

import torch
from torch import Tensor, nn

from s4nd.layers import S4
from s4nd.layers.streaming import State

from .backbone import SaShiMiBackbone, System
from .hub import HubModel
from .keywords import model_keywords


class SaShiMi(HubModel):
    """Predict the next code of quantized audio: embedding, backbone, head; codes (B, L) -> logits (B, L, 2**bits).

    Args:
        bits: the codes are 0 … 2**bits - 1, in and out.
        num_classes: each clip has a class, whose learned embedding is added to every code's; None: no classes.
        ordered: start embedding and head as smooth functions of the code (`ordered_codes`) instead of at random.
        backbone: keywords of `SaShiMiBackbone`, and among them those of its S4 layers and their kernels
            (d_model=64, pool=(4, 4), kernel='s4d', n_ssm=2, …).

    The model streams as its backbone does: `model(codes, state)` and `step` equal `model(codes)` of the whole.

    Raises ValueError for values that do not fit and for an unknown keyword.
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        num_classes: int | None = None,
        ordered: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise ValueError(f'bits must be from 1 to 16, got {bits}')
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, or None for no classes, got {num_classes}')
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        args = model_keywords(SaShiMiBackbone, backbone, owner='SaShiMi', without=('bidirectional',), layer=S4)
        self.bits, self.num_classes = bits, num_classes
        self.embedding = nn.Embedding(2**bits, args['d_model'], **place)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, args['d_model'], **place)
        self.backbone = SaShiMiBackbone(**args, **place)
        self.head = nn.Linear(args['d_model'], 2**bits, **place)
        if ordered:
            order_codes(self.embedding, self.head)

    @overload
    def forward(self, codes: Tensor, state: None = None, *, label: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, codes: Tensor, state: State, *, label: Tensor | None = None) -> tuple[Tensor, State]: ...
    def forward(
        self, codes: Tensor, state: State | None = None, *, label: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map codes (B, L), class of each row (B,) -> logits (B, L, 2**bits) of the code after each of them.

        With the state before these codes, the state after them is returned too; see `SaShiMiBackbone.forward`.
        Raises ValueError for a label that does not fit the model; see `check_label`.
        """
        self.check_label(label, codes.shape[0])
        x = self.embed(codes, label)
        if state is None:
            return self.head(self.backbone(x))
        y, state = self.backbone(x, state)
        return self.head(y), state

    def embed(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """Map codes (B,) or (B, L) and labels (B,) to what the backbone sees, (…, d_model).

        Raises ValueError for a label that is missing, unasked for or of another shape; its value is not read.
        """
        x = self.embedding(codes)
        _check_presence(label, self.num_classes, codes.shape[0])
        if label is None or self.class_embedding is None:
            return x
        return x + self.class_embedding(label if codes.dim() == 1 else label[:, None])

    def check_label(self, label: Tensor | None, batch: int) -> None:
        """Apply `check_label` for this model: it reads the tensor, so call it once before a loop of `step`."""
        check_label(label, self.num_classes, batch)

    def init_state(self, batch: int) -> State:
        """Return the state before the first sample; see `SaShiMiBackbone`."""
        return self.backbone.init_state(batch)

    def system(self, step: float = 1.0) -> System:
        """Return the discretized S4 layers; see `SaShiMiBackbone.system`."""
        return self.backbone.system(step)

    def step(
        self,
        code: Tensor,
        state: State,
        system: System | None = None,
        *,
        label: Tensor | None = None,
        phase: int | None = None,
    ) -> tuple[Tensor, State]:
        """Map one code (B,), class of each row (B,) -> logits (B, 2**bits) of the next code and the new state.

        See `SaShiMiBackbone.step`; the values of `label` are not checked here.
        """
        y, state = self.backbone.step(self.embed(code, label), state, system, phase=phase)
        return self.head(y), state


def check_label(label: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Check the classes (batch,) that a model with `num_classes` (None: without classes) is given.

    Raises ValueError for labels that are missing, unasked for, of another shape or type, or not 0 … num_classes - 1.
    """
    _check_presence(label, num_classes, batch)
    if label is None or num_classes is None or torch.compiler.is_compiling():
        return
    if not 0 <= int(label.min()) <= int(label.max()) < num_classes:
        raise ValueError(f'labels must be from 0 to {num_classes - 1}, got {label.tolist()}')


def _check_presence(label: Tensor | None, num_classes: int | None, batch: int) -> None:
    if num_classes is None and label is not None:
        raise ValueError('this model was built without classes: it takes no label')
    if num_classes is not None and label is None:
        raise ValueError(f'this model has {num_classes} classes: a label is needed for each of {batch} clips')
    if label is not None and (label.is_floating_point() or label.shape != (batch,)):
        raise ValueError(f'labels must be whole numbers ({batch},), got {tuple(label.shape)} {label.dtype}')


def ordered_codes(n_codes: int, width: int) -> Tensor:
    """Smooth features of the codes 0 … n_codes - 1, (n_codes, width), each with mean square 1.

    Sines and cosines of half a turn to 24 turns (fewer for less than 8 bits) over the range of the codes. Neighboring
    codes look alike, so that what is learned about one serves the others; a random embedding must find out first that
    codes are ordered.
    """
    most = max(1.0, min(24.0, 3 * n_codes / 32))
    turns = torch.logspace(-1, math.log2(most), -(-width // 2), base=2)
    angles = 2 * math.pi * turns * (torch.arange(n_codes)[:, None] + 0.5) / n_codes
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1)[:, :width]


@torch.no_grad()
def order_codes(embedding: nn.Embedding, head: nn.Linear) -> None:
    """Start an embedding of codes and a head that predicts them from `ordered_codes`; the head's bias from zero."""
    embedding.weight.copy_(ordered_codes(*embedding.weight.shape))
    head.weight.copy_(ordered_codes(*head.weight.shape) / math.sqrt(head.in_features))
    head.bias.zero_()
