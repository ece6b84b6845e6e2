"""SaShiMi: an autoregressive model of quantized waveforms (arXiv 2202.09729), with or without classes.

Shape legend: B = batch, L = samples, H = d_model; see backbone.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audio.backbone import SaShiMiBackbone, State, System


class SaShiMi(nn.Module):
    """Autoregressive model of quantized audio: embedding, backbone, head.

    Args:
        bits: the tokens are 0 … 2**bits - 1, in and out.
        d_model … dropout: see `SaShiMiBackbone`.
        num_classes: each clip has a class, whose learned embedding is added to every token's; None: no classes.
        ordered: embedding and head start as smooth functions of the code (`ordered_codes`), not at random.
    """

    def __init__(
        self,
        bits: int = 8,
        d_model: int = 64,
        n_layers: int = 8,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        *,
        kernel: str = 's4',
        d_state: int = 64,
        init: str | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | str | None = None,
        glu: bool = True,
        unet: bool = False,
        dropout: float = 0.0,
        num_classes: int | None = None,
        ordered: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise ValueError(f'bits must be from 1 to 16, got {bits}')
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, or None for no classes, got {num_classes}')
        self.bits, self.num_classes = bits, num_classes
        self.embedding = nn.Embedding(2**bits, d_model, device=device, dtype=dtype)
        self.class_embedding = (
            None if num_classes is None else nn.Embedding(num_classes, d_model, device=device, dtype=dtype)
        )
        self.backbone = SaShiMiBackbone(
            d_model,
            n_layers,
            pool,
            expand,
            ff,
            kernel=kernel,
            d_state=d_state,
            init=init,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            glu=glu,
            unet=unet,
            dropout=dropout,
            device=device,
            dtype=dtype,
        )
        self.head = nn.Linear(d_model, 2**bits, device=device, dtype=dtype)
        if ordered:
            order_codes(self.embedding, self.head)

    def forward(self, tokens: Tensor, label: Tensor | None = None) -> Tensor:
        """Tokens (B, L), class of each row (B,) -> logits (B, L, 2**bits) of the token after each of them.

        Raises ValueError for a label that does not fit the model; see `check_label`.
        """
        self.check_label(label, tokens.shape[0])
        return self.head(self.backbone(self.embed(tokens, label)))

    def embed(self, tokens: Tensor, label: Tensor | None = None) -> Tensor:
        """Tokens (B,) or (B, L) and labels (B,) -> what the backbone sees, (…, d_model).

        Raises ValueError for a label that is missing, unasked for or of another shape; its value is not read.
        """
        x = self.embedding(tokens)
        _check_presence(label, self.num_classes, tokens.shape[0])
        if label is None:
            return x
        return x + self.class_embedding(label if tokens.dim() == 1 else label[:, None])

    def check_label(self, label: Tensor | None, batch: int) -> None:
        """`check_label` for this model: it reads the tensor, so call it once before a loop of `step`, not in it."""
        check_label(label, self.num_classes, batch)

    def init_state(self, batch: int) -> State:
        """See `SaShiMiBackbone.init_state`."""
        return self.backbone.init_state(batch)

    def system(self) -> System:
        """See `SaShiMiBackbone.system`."""
        return self.backbone.system()

    def step(
        self,
        token: Tensor,
        state: State,
        *,
        label: Tensor | None = None,
        system: System | None = None,
        phase: int | None = None,
    ) -> tuple[Tensor, State]:
        """One token (B,), class of each row (B,) -> logits (B, 2**bits) of the next token and the new state.

        See `SaShiMiBackbone.step`; the values of `label` are not checked here.
        """
        y, state = self.backbone.step(self.embed(token, label), state, system=system, phase=phase)
        return self.head(y), state

    def prefill(self, tokens: Tensor, label: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens (B, L), L >= 1 -> logits (B, 2**bits) of the next token and the state, as `step` would give them.

        `state`: from where to go on; None: the beginning. See `SaShiMiBackbone.prefill`.
        """
        self.check_label(label, len(tokens))
        y, state = self.backbone.prefill(self.embed(tokens, label), state)
        return self.head(y[:, -1]), state


def check_label(label: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Check the classes (batch,) that a model with `num_classes` (None: without classes) is given.

    Raises ValueError for labels that are missing, unasked for, of another shape or type, or not 0 … num_classes - 1.
    """
    _check_presence(label, num_classes, batch)
    if label is None or torch.compiler.is_compiling():
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
