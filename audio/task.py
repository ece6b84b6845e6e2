"""The task that trains an autoregressive model of audio: predict each sample's code from the ones before it."""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from audio.datasets import PluckedClips, folder_parts
from audio.quantization import Quantizer
from audio.sashimi import SaShiMi

if TYPE_CHECKING:
    from s4nd.training.config import AudioConfig, AudioData

MODEL_NAME = 'sashimi'


class AutoregressiveTask:
    """Cross-entropy of the next code; the measure is the negative log-likelihood in bits a sample.

    Args:
        parts: clips (waveforms) for 'train', 'val' and 'test'.
        quantizer: waveform <-> codes.
        sample_rate: of the clips, Hz.
        batch_size: clips a batch.
        seed: order of the training clips.
        limit: evaluate on this many clips of each part, evenly spaced; None: all.

    `metadata` is what generation needs beside the weights, as text for their file.
    """

    monitor = 'val_nll'
    maximise = False

    def __init__(
        self,
        parts: Mapping[str, Dataset],
        quantizer: Quantizer,
        sample_rate: int,
        batch_size: int,
        *,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.parts, self.quantizer, self.batch_size = dict(parts), quantizer, batch_size
        self.seed, self.limit = seed, limit
        self.metadata = {'quantizer': quantizer.to_json(), 'sample_rate': str(sample_rate)}

    def train_batches(self, epoch: int) -> DataLoader:
        """Batches of codes (batch, clip_samples), in an order fixed by the seed and the epoch."""
        clips = self.parts['train']
        if hasattr(clips, 'epoch'):
            clips.epoch = epoch
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        # A last incomplete batch is dropped, unless it is the only one.
        full = len(clips) >= self.batch_size
        return DataLoader(
            clips, self.batch_size, shuffle=True, generator=order, drop_last=full, collate_fn=self._encode
        )

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy (nats a sample) of codes (B, L)."""
        logits = model(shift_right(batch, self.quantizer.zero_code))
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.flatten())

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """{'val_nll': on validation clips (picks the best weights), 'test_nll': on test clips}, bits a sample."""
        return {'val_nll': self._bits(model, device, 'val'), 'test_nll': self._bits(model, device, 'test')}

    def _bits(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        clips, total, samples = self.parts[part], 0.0, 0
        if self.limit is not None and self.limit < len(clips):
            clips = Subset(clips, [i * len(clips) // self.limit for i in range(self.limit)])
        for batch in DataLoader(clips, self.batch_size, collate_fn=self._encode):
            total += self.loss(model, batch.to(device)).item() * batch.numel()
            samples += batch.numel()
        return total / samples / math.log(2)

    def _encode(self, waves: list[Tensor]) -> Tensor:
        return self.quantizer.encode(torch.stack(waves))


def shift_right(codes: Tensor, first: int) -> Tensor:
    """Codes (B, L) one sample later, beginning with `first`: the model's input for the target `codes`."""
    return F.pad(codes[:, :-1], (1, 0), value=first)


def build(config: 'AudioConfig') -> tuple[SaShiMi, AutoregressiveTask]:
    """Model and task of a resolved configuration. Raises ValueError for a model or option that does not exist."""
    data = config.data
    quantizer = Quantizer(data.quantizer, data.bits, data.convention)
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, config.model.args, data.bits)
    task = AutoregressiveTask(
        _parts(data, config.seed),
        quantizer,
        data.sample_rate,
        data.batch_size,
        seed=config.seed,
        limit=config.eval.limit,
    )
    return model, task


def build_model(name: str, args: Mapping[str, Any], bits: int) -> SaShiMi:
    """SaShiMi from a model name, keywords and the bit depth of its tokens. Raises ValueError for unknown ones."""
    if name != MODEL_NAME:
        raise ValueError(f"unknown audio model {name!r}: expected '{MODEL_NAME}'")
    known = sorted(set(inspect.signature(SaShiMi).parameters) - {'bits', 'device', 'dtype'})
    unknown = sorted(set(args) - set(known))
    if unknown:
        names = ', '.join(unknown)
        raise ValueError(f'model.args: {MODEL_NAME} has no option {names}: expected some of {", ".join(known)}')
    return SaShiMi(bits, **args)


def _parts(data: 'AudioData', seed: int) -> dict[str, Dataset]:
    if data.kind == 'plucked':
        sizes = {'train': data.train_count, 'val': data.test_count, 'test': data.test_count}
        return {
            part: PluckedClips(count, data.clip_samples, data.sample_rate, (seed, i))
            for i, (part, count) in enumerate(sizes.items())
        }
    if data.root is None:
        raise ValueError('data.root: a folder of audio files must be given (data.root=/path)')
    if not Path(data.root).is_dir():
        raise ValueError(f'data.root: no folder at {data.root}')
    return dict(
        folder_parts(
            data.root,
            data.clip_samples,
            data.sample_rate,
            split=data.split,
            fraction=data.val_fraction,
            normalise=data.normalise,
            seed=seed,
        )
    )
