"""A classifier of sounds by their picture: log-mel spectrogram, then a small image network of timm.

The metrics of generated speech (`audio.evaluation.metrics`) are computed from it: its last features give the FID, its
probabilities the rest.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.layers.base import check_floating

from .hub import HubModel


class SpectrogramClassifier(HubModel):
    """Waveforms (B, clip_samples) -> logits (B, num_classes).

    The picture has `n_mels` bands and a frame every 16 ms, each frame over 64 ms. In training each batch is shifted in
    time by up to 0.1 s, which is all the augmentation there is.

    Args:
        num_classes: outputs.
        clip_samples, sample_rate: of the waveforms; sample_rate in Hz.
        backbone: a timm model.
        n_mels: bands, up to half the sample rate.
        dropout: before the last linear layer, in training.

    Raises ValueError for an unknown backbone or waveforms of another length.
    """

    net: Any  # a timm model, with forward_features and forward_head

    def __init__(
        self,
        num_classes: int,
        clip_samples: int,
        sample_rate: int,
        *,
        backbone: str = 'test_resnet',
        n_mels: int = 64,
        dropout: float = 0.2,
    ) -> None:
        # Nothing else in this package needs timm, and few users of it need torchaudio.
        import timm
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        if not timm.is_model(backbone):
            raise ValueError(f'backbone: timm has no model {backbone!r}')
        self.num_classes, self.clip_samples, self.shift = num_classes, clip_samples, sample_rate // 10
        hop = max(1, round(0.016 * sample_rate))
        self.mel = MelSpectrogram(sample_rate, n_fft=4 * hop, hop_length=hop, n_mels=n_mels, pad_mode='constant')
        self.net = timm.create_model(backbone, in_chans=1, num_classes=num_classes, drop_rate=dropout)

    def forward(self, waves: Tensor) -> Tensor:
        return self.net(self.picture(waves))

    def picture(self, waves: Tensor) -> Tensor:
        """(B, L) -> log-mel picture (B, 1, n_mels, frames), each clip with mean 0 and variance 1."""
        if waves.dim() != 2 or waves.shape[1] != self.clip_samples:
            raise ValueError(f'expected waveforms (batch, {self.clip_samples}), got {tuple(waves.shape)}')
        check_floating(waves)
        if len(waves) == 0:  # FFTs take no empty batch
            return self.picture(waves.new_zeros(1, self.clip_samples))[:0]
        if self.training:
            move = int(torch.randint(-self.shift, self.shift + 1, ()))
            waves = F.pad(waves, (max(move, 0), max(-move, 0)))
            waves = waves[:, : self.clip_samples] if move > 0 else waves[:, -self.clip_samples :]
        mel = (self.mel(waves) + 1e-5).log()
        mean, std = mel.mean((1, 2), keepdim=True), mel.std((1, 2), keepdim=True)
        return ((mel - mean) / (std + 1e-3))[:, None]

    def features(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> the input of the last linear layer (B, num_features) and the probabilities (B, num_classes)."""
        found = self.net.forward_features(self.picture(waves))
        pooled = self.net.forward_head(found, pre_logits=True)
        return pooled, self.net.forward_head(found).softmax(-1)
