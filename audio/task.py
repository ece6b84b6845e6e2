"""What is learned from sound: the next code (autoregressive), the class of a clip, the noise in it (diffusion)."""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from audio.classifier import WaveClassifier
from audio.datasets import clip_parts
from audio.denoiser import DiffusionSaShiMi
from audio.diffusion import Diffusion
from audio.quantization import Quantizer
from audio.sashimi import SaShiMi
from audio.spectrogram import SpectrogramClassifier

if TYPE_CHECKING:
    from s4nd.training.config import AudioConfig, AudioData

MODEL_NAME = 'sashimi'
DIFFUSION_NAME = 'sashimi_diffusion'
CLASSIFIER_NAME = 'audio_classifier'
SPECTROGRAM_NAME = 'spectrogram_classifier'
CLASSIFIERS = (CLASSIFIER_NAME, SPECTROGRAM_NAME)
MODELS: dict[str, type[nn.Module]] = {
    MODEL_NAME: SaShiMi,
    DIFFUSION_NAME: DiffusionSaShiMi,
    CLASSIFIER_NAME: WaveClassifier,
    SPECTROGRAM_NAME: SpectrogramClassifier,
}


class ClipTask:
    """What the tasks share: batches of clips, with their classes where they have any.

    Args:
        parts: clips (waveforms) for 'train', 'val' and 'test'.
        sample_rate: of the clips, Hz.
        batch_size: clips a batch.
        seed: order of the training clips.
        limit: evaluate on this many clips of each part, evenly spaced; None: all.

    A batch is a tensor (B, L), or that and the labels (B,) where the clips have classes. `metadata` is what the use of
    the model needs beside the weights, as text for their file.
    """

    def __init__(
        self,
        parts: Mapping[str, Dataset],
        sample_rate: int,
        batch_size: int,
        *,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.parts, self.batch_size, self.seed, self.limit = dict(parts), batch_size, seed, limit
        self.classes = self.parts['train'].classes
        self.skipped = [f'{path}: {reason}' for path, reason in self.parts['train'].skipped.items()]
        self.metadata = {'sample_rate': str(sample_rate)}
        if self.classes:
            self.metadata['classes'] = json.dumps(self.classes)

    def train_batches(self, epoch: int) -> DataLoader:
        """Batches of training clips, in an order fixed by the seed and the epoch."""
        clips = self.parts['train']
        if hasattr(clips, 'epoch'):
            clips.epoch = epoch
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        # A last incomplete batch is dropped, unless it is the only one.
        full = len(clips) >= self.batch_size
        return DataLoader(
            _Labelled(clips), self.batch_size, shuffle=True, generator=order, drop_last=full, collate_fn=self._collate
        )

    def batches(self, clips: Dataset, device: torch.device | str) -> Iterator[Any]:
        """Batches to evaluate on: all clips in order, or `limit` of them, evenly spaced."""
        pairs = _Labelled(clips)
        if self.limit is not None and self.limit < len(clips):
            pairs = Subset(pairs, [i * len(clips) // self.limit for i in range(self.limit)])
        for batch in DataLoader(pairs, self.batch_size, collate_fn=self._collate):
            yield batch.to(device) if isinstance(batch, Tensor) else tuple(part.to(device) for part in batch)

    def prepare(self, waves: Tensor) -> Tensor:
        """Waveforms (B, L) -> what the model learns from."""
        return waves

    def _collate(self, pairs: list[tuple[Tensor, int | None]]) -> Tensor | tuple[Tensor, Tensor]:
        waves = self.prepare(torch.stack([wave for wave, _ in pairs]))
        return (waves, torch.tensor([label for _, label in pairs])) if self.classes else waves


class AutoregressiveTask(ClipTask):
    """Cross-entropy of the next code, given the class if there is one; measured in bits a sample.

    Args:
        quantizer: waveform <-> codes.
        The rest: see `ClipTask`.
    """

    monitor = 'val_nll'
    maximize = False

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
        super().__init__(parts, sample_rate, batch_size, seed=seed, limit=limit)
        self.quantizer = quantizer
        self.metadata['quantizer'] = quantizer.to_json()

    def loss(self, model: nn.Module, batch: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy (nats a sample) of codes (B, L)."""
        codes, *label = (batch,) if isinstance(batch, Tensor) else batch
        logits = model(shift_right(codes, self.quantizer.zero_code), *label)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """{'val_nll': on validation clips (picks the best weights), 'test_nll': on test clips}, bits a sample."""
        return {'val_nll': self.nll(model, device, 'val'), 'test_nll': self.nll(model, device, 'test')}

    def nll(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        """Bits a sample on the clips of a part."""
        total, clips = 0.0, 0
        for batch in self.batches(self.parts[part], device):
            count = _clips_in(batch)
            total += self.loss(model, batch).item() * count
            clips += count
        return total / clips / math.log(2)

    def prepare(self, waves: Tensor) -> Tensor:
        return self.quantizer.encode(waves)


class ClassificationTask(ClipTask):
    """Cross-entropy of a clip's class; measured by the share of clips classified rightly (%).

    Args:
        test_at: sample rate (Hz) -> the test clips at that rate: the same seconds, so another number of samples.
        channel: the model takes a channel axis, (B, 1, L).
        The rest: see `ClipTask`.
    """

    maximize = True

    def __init__(
        self,
        parts: Mapping[str, Dataset],
        test_at: Callable[[int], Dataset],
        sample_rate: int,
        batch_size: int,
        *,
        channel: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(parts, sample_rate, batch_size, seed=seed, limit=limit)
        self.test_at, self.sample_rate, self.channel = test_at, sample_rate, channel
        self.monitor = f'accuracy@{sample_rate}'

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of waveforms (B, L) and labels (B,)."""
        waves, labels = batch
        return F.cross_entropy(self._logits(model, waves), labels)

    def _logits(self, model: nn.Module, waves: Tensor) -> Tensor:
        return model(waves[:, None] if self.channel else waves).float()

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """Accuracy and cross-entropy at the training rate, on the validation clips."""
        return self._score(model, device, self.parts['val'], self.sample_rate)

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device | str, rates: Sequence[int]) -> dict[str, float]:
        """On the test clips, at every sample rate (Hz)."""
        results: dict[str, float] = {}
        for rate in rates:
            clips = self.parts['test'] if rate == self.sample_rate else self.test_at(rate)
            results |= self._score(model, device, clips, rate)
        return results

    def _score(self, model: nn.Module, device: torch.device | str, clips: Dataset, rate: int) -> dict[str, float]:
        right, entropy, count = 0, 0.0, 0
        for waves, labels in self.batches(clips, device):
            logits = self._logits(model, waves)
            right += int((logits.argmax(1) == labels).sum())
            entropy += float(F.cross_entropy(logits, labels, reduction='sum'))
            count += len(labels)
        return {f'accuracy@{rate}': round(100 * right / count, 4), f'cross_entropy@{rate}': entropy / count}


class DiffusionTask(ClipTask):
    """Mean squared error of the predicted noise, given the class if there is one.

    Args:
        diffusion: the process that the model undoes.
        The rest: see `ClipTask`.
    """

    monitor = 'val_loss'
    maximize = False

    def __init__(
        self,
        parts: Mapping[str, Dataset],
        diffusion: Diffusion,
        sample_rate: int,
        batch_size: int,
        *,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(parts, sample_rate, batch_size, seed=seed, limit=limit)
        self.diffusion = diffusion

    def loss(
        self, model: nn.Module, batch: Tensor | tuple[Tensor, Tensor], random: torch.Generator | None = None
    ) -> Tensor:
        """`Diffusion.loss` of waveforms (B, L)."""
        waves, *label = (batch,) if isinstance(batch, Tensor) else batch
        return self.diffusion.loss(lambda x, t: model(x, t, *label), waves, random)

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """{'val_loss': on validation clips (picks the best weights), 'test_loss': on test clips}.

        The levels and the noise are the same at every call.
        """
        return {f'{part}_loss': self._mean_loss(model, device, part) for part in ('val', 'test')}

    def _mean_loss(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        random, total, clips = torch.Generator().manual_seed(self.seed), 0.0, 0
        for batch in self.batches(self.parts[part], device):
            count = _clips_in(batch)
            total += self.loss(model, batch, random).item() * count
            clips += count
        return total / clips


class _Labelled(Dataset):
    """(waveform, label) of each clip; the label is None where the clips have no classes."""

    def __init__(self, clips: Dataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self.clips[index], None if self.clips.labels is None else self.clips.labels[index]


def shift_right(codes: Tensor, first: int) -> Tensor:
    """Codes (B, L) one sample later, beginning with `first`: the model's input for the target `codes`."""
    return F.pad(codes[:, :-1], (1, 0), value=first)


def _clips_in(batch: Tensor | tuple[Tensor, Tensor]) -> int:
    return len(batch) if isinstance(batch, Tensor) else len(batch[0])


def build(config: 'AudioConfig', make: Callable[..., nn.Module] | None = None) -> tuple[nn.Module, ClipTask]:
    """Model and task of a resolved configuration; completes `config.model.args` by what follows from the data.

    `make` builds a classifier of sequences (B, 1, L) from its keywords, where `config.model.name` is no model of this
    package.

    Raises ValueError for a model or option that does not exist, or that the data does not fit.
    """
    data, name = config.data, config.model.name
    if make is None:
        _model_class(name)
    parts = clip_parts(data, config.seed)
    config.model.args = _completed(config.model.args, name, data, parts['train'].classes)
    torch.manual_seed(config.seed)
    model = build_model(name, config.model.args, data.bits) if make is None else make(config.model.args)
    common = {'seed': config.seed, 'limit': config.eval.limit}
    if _classifies(name):

        def test_at(rate: int) -> Dataset:
            samples = round(data.clip_samples * rate / data.sample_rate)
            return clip_parts(replace(data, sample_rate=rate, clip_samples=samples), config.seed)['test']

        channel = make is not None
        return model, ClassificationTask(parts, test_at, data.sample_rate, data.batch_size, channel=channel, **common)
    if name == DIFFUSION_NAME:
        return model, DiffusionTask(parts, model.diffusion, data.sample_rate, data.batch_size, **common)
    quantizer = Quantizer(data.quantizer, data.bits, data.convention)
    return model, AutoregressiveTask(parts, quantizer, data.sample_rate, data.batch_size, **common)


def build_model(name: str, args: Mapping[str, Any], bits: int = 8) -> nn.Module:
    """A model from its name and keywords; `bits` is the depth of a SaShiMi's tokens.

    Raises ValueError for an unknown name or keyword, or a missing one.
    """
    cls = _model_class(name)
    known = set(inspect.signature(cls).parameters) - {'bits', 'device', 'dtype'}
    unknown = sorted(set(args) - known)
    if unknown:
        names = ', '.join(unknown)
        raise ValueError(f'model.args: {name} has no option {names}: expected some of {", ".join(sorted(known))}')
    return cls(bits, **args) if cls is SaShiMi else cls(**args)


def _model_class(name: str) -> type[nn.Module]:
    if name not in MODELS:
        raise ValueError(f'unknown audio model {name!r}: expected one of {", ".join(map(repr, MODELS))}')
    return MODELS[name]


def _classifies(name: str) -> bool:
    return name in CLASSIFIERS or name not in MODELS  # one that was handed in


def _completed(args: Mapping[str, Any], name: str, data: 'AudioData', classes: Sequence[str]) -> dict[str, Any]:
    """`args` with the number of classes and, for a classifier, the clips' samples (and rate, or channels)."""
    if _classifies(name) and not classes:
        raise ValueError(f'data.labels: a classifier needs classes, expected folder or name, got {data.labels}')
    found = len(classes) or None
    if args.get('num_classes', found) != found:
        raise ValueError(
            f'model.args.num_classes is {args["num_classes"]}, but the data has {found or "no"} classes'
            f'{"" if found else " (data.labels names where they are written)"}'
        )
    args = dict(args) if found is None else {**args, 'num_classes': found}
    if name not in MODELS:
        return {'in_chans': 1, 'img_size': [data.clip_samples], **args}
    if name in CLASSIFIERS:
        args = {'clip_samples': data.clip_samples, **args}
    return {'sample_rate': data.sample_rate, **args} if name == SPECTROGRAM_NAME else args
