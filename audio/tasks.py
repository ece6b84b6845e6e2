"""What is learned from sound: the next code (autoregressive), the class of a clip, the noise in it (diffusion).

Shape legend: B = batch, L = samples.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.diffusion import Diffusion
from s4nd.models.sequence import padding_of
from s4nd.options import ConfigError, named_model, option, section
from s4nd.seeds import generator
from s4nd.tasks.base import Axis, Chosen, Task
from s4nd.tasks.classification import score
from s4nd.tasks.sharing import evenly, mean_loss
from s4nd.tasks.timm_models import is_ours, make_timm_model
from s4nd.training.config import EvalConfig, RunConfig

from .data.datasets import Clip, Clips, Labeled
from .data.parts import AudioData, clip_parts
from .io import resample
from .models import DIFFUSION_NAME, MODEL_NAME, MODELS, SPECTROGRAM_NAME, build_model
from .quantization import Quantizer

Batch: TypeAlias = Tensor | tuple[Tensor, Tensor]

# In place of a code where there is no recording.
PADDING = -100


@dataclass
class AudioEval(EvalConfig):
    """Classifiers are measured at `sample_rates` after training."""

    sample_rates: list[int] = option([], 'classes: rates (Hz) to evaluate at; empty: the training rate', low=1)


@dataclass
class AudioConfig(RunConfig):
    """A run on sound."""

    task: str = option('audio', 'the kind of learning')
    data: AudioData = section(AudioData)
    eval: AudioEval = section(AudioEval)


class AudioTask(Task):
    """Learn from clips of sound; `from_config` chooses the kind by the name of the model.

    A batch is a tensor (B, L), or that and the labels (B,) where the clips have classes.

    Args:
        config: resolved.
        parts: clips for 'train', 'val' and 'test'.
    """

    Config = AudioConfig
    config: AudioConfig
    examples = 'clips'

    def __init__(self, config: AudioConfig, parts: Mapping[str, Clips]) -> None:
        super().__init__(config)
        self.parts = dict(parts)
        self.classes = self.parts['train'].classes
        self.train_count = len(self.parts['train'])

    @classmethod
    def from_config(cls, config: RunConfig) -> 'AudioTask':
        if not isinstance(config, AudioConfig):
            raise TypeError(f'expected an AudioConfig, got {type(config).__name__}')
        kinds = {MODEL_NAME: AutoregressiveTask, DIFFUSION_NAME: DiffusionTask}
        name = config.model.name
        _check_name(name)
        kind = kinds.get(name, ClassificationTask)
        return kind(config, clip_parts(config.data, config.seed))

    @classmethod
    def words_from(cls, metadata: Mapping[str, str]) -> list[str]:
        return [f'data.sample_rate={metadata["sample_rate"]}'] if 'sample_rate' in metadata else []

    def build_model(self) -> nn.Module:
        # The data must not decide about the weights.
        torch.manual_seed(self.config.seed)
        return super().build_model()

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        return build_model(self.config.model.name, args, self.config.data.bits)

    def completed_args(self) -> dict[str, Any]:
        """Add the number of classes."""
        args, found = self.config.model.args, len(self.classes) or None
        if args.get('num_classes', found) != found:
            raise ConfigError(
                f'model.args.num_classes is {args["num_classes"]}, but the data has {found or "no"} classes'
                f'{"" if found else " (data.labels names where they are written)"}'
            )
        return dict(args) if found is None else {**args, 'num_classes': found}

    def misfit(self) -> str:
        count = self.model_args.get('num_classes') or 0
        return (
            '' if count == len(self.classes) else f'has a model of {count} classes, the data have {len(self.classes)}'
        )

    def train_batches(self, epoch: int) -> Chosen:
        clips, size = self.parts['train'], self.config.data.batch_size
        clips.epoch = epoch
        order = torch.randperm(len(clips), generator=generator(self.config.seed, epoch)).split(size)
        # A last incomplete batch is dropped, unless it is the only one.
        full = order if len(order) == 1 or len(order[-1]) == size else order[:-1]
        pairs = Labeled(clips)
        return Chosen(full, lambda numbers: self._collate([pairs[number] for number in numbers.tolist()]))

    def eval_batches(self, clips: Clips) -> Chosen:
        """Return batches to evaluate on: all clips in order, or `eval.limit` of them, evenly spaced."""
        pairs = Labeled(clips)
        return Chosen(
            evenly(len(clips), self.config.eval.limit).split(self.config.data.batch_size),
            lambda chosen: self._collate([pairs[number] for number in chosen.tolist()]),
            even=False,
        )

    def prepare(self, waves: Tensor, recorded: Tensor | None = None) -> Tensor:
        """Make what the model learns from of waveforms (B, L), of which `recorded` (B,) samples are no padding."""
        return waves

    def _collate(self, clips: list[Clip]) -> Batch:
        waves = self.prepare(
            torch.stack([clip.wave for clip in clips]), torch.tensor([clip.recorded for clip in clips])
        )
        return (waves, torch.tensor([clip.label for clip in clips])) if self.classes else waves

    @property
    def metadata(self) -> dict[str, str]:
        stored = {**super().metadata, 'sample_rate': str(self.config.data.sample_rate)}
        return {**stored, 'classes': json.dumps(self.classes)} if self.classes else stored

    @property
    def skipped(self) -> list[str]:
        return [f'{path}: {reason}' for path, reason in self.parts['train'].skipped.items()]


class GenerativeTask(AudioTask):
    """A task that is measured by its own loss, on the validation and the test clips."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: Batch, random: torch.Generator | None = None) -> Tensor:
        """Compute the loss; `random`: where what it draws comes from, None is torch's own generator."""

    def mean_loss(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        """Average the loss over what `count` counts; what is drawn is the same at every call, in any process."""
        return mean_loss(
            self.eval_batches(self.parts[part]), lambda batch, random: self.loss(model, batch, random), self.count,
            device, self.config.seed, f'evaluation on {part}',
        )  # fmt: skip

    def count(self, batch: Batch) -> int:
        """Count what the loss of a batch averages over, such as its clips."""
        return len(batch if isinstance(batch, Tensor) else batch[0])


class AutoregressiveTask(GenerativeTask):
    """Predict the next code, given the class if there is one; measured by cross-entropy in bits per sample.

    Samples after the end of a recording are PADDING in place of a code, and the loss leaves them out.
    """

    monitor = 'val_nll'
    loss_unit = 'bits'
    loss_scale = 1 / math.log(2)

    def unit(self, metric: str) -> str:
        return 'bits' if metric.endswith('_nll') else super().unit(metric)

    def __init__(self, config: AudioConfig, parts: Mapping[str, Clips]) -> None:
        super().__init__(config, parts)
        self.quantizer = Quantizer(config.data.quantizer, config.data.bits, config.data.convention)

    @property
    def metadata(self) -> dict[str, str]:
        return {**super().metadata, 'quantizer': self.quantizer.to_json()}

    def prepare(self, waves: Tensor, recorded: Tensor | None = None) -> Tensor:
        codes = self.quantizer.encode(waves)
        return codes if recorded is None else codes.masked_fill(padding_of(recorded, *codes.shape), PADDING)

    def loss(self, model: Callable[..., Any], batch: Batch, random: torch.Generator | None = None) -> Tensor:
        """Compute the mean cross-entropy (nats per sample) of codes (B, L)."""
        codes, given = (batch, {}) if isinstance(batch, Tensor) else (batch[0], {'label': batch[1]})
        silence = self.quantizer.zero_code
        logits = model(shift_right(codes.masked_fill(codes == PADDING, silence), silence), **given)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), ignore_index=PADDING)

    def count(self, batch: Batch) -> int:
        return int(((batch if isinstance(batch, Tensor) else batch[0]) != PADDING).sum())

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """Return bits per sample: 'val_nll' on validation clips (picks the best weights), 'test_nll' on test clips."""
        return {'val_nll': self.nll(model, device, 'val'), 'test_nll': self.nll(model, device, 'test')}

    def nll(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        """Return bits per sample on the clips of a part."""
        return self.mean_loss(model, device, part) / math.log(2)


class DiffusionTask(GenerativeTask):
    """Predict the noise in a clip, given the class if there is one; the loss is the mean squared error."""

    monitor = 'val_loss'

    def __init__(self, config: AudioConfig, parts: Mapping[str, Clips]) -> None:
        super().__init__(config, parts)
        mel = config.model.args.get('mel')
        if mel is not None:
            raise ConfigError(f'model.args.mel={mel}: training gives a model no spectrograms, expected null')

    @property
    def diffusion(self) -> Diffusion:
        """The process that the model undoes."""
        return Diffusion(**{k: v for k, v in self.model_args.items() if k in ('steps', 'beta_min', 'beta_max')})

    def loss(self, model: Callable[..., Any], batch: Batch, random: torch.Generator | None = None) -> Tensor:
        """Compute `Diffusion.loss` of waveforms (B, L)."""
        waves, label = (batch, None) if isinstance(batch, Tensor) else batch
        return self.diffusion.loss(lambda x, t: model(x, t, label), waves, random)

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """Return {'val_loss': on validation clips (picks the best weights), 'test_loss': on test clips}."""
        return {f'{part}_loss': self.mean_loss(model, device, part) for part in ('val', 'test')}


class ClassificationTask(AudioTask):
    """Tell the classes of clips apart; measured by accuracy (%) and cross-entropy, at several sample rates.

    The model is one of this package, or one of timm's that takes sequences (B, 1, L), such as s4nd_ccnn_mini.
    """

    maximize = True
    loss_unit = 'nats'

    def __init__(self, config: AudioConfig, parts: Mapping[str, Clips]) -> None:
        super().__init__(config, parts)
        if not self.classes:
            labels = config.data.labels
            raise ConfigError(f'data.labels: a classifier needs classes, expected folder or name, got {labels}')
        self.monitor = f'accuracy@{config.data.sample_rate}'
        self.channel = config.model.name not in MODELS

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        if self.channel:
            return make_timm_model(self.config.model.name, args)
        return super().make_model(args)

    def completed_args(self) -> dict[str, Any]:
        """Add the number of classes, and what the model asks about the clips."""
        args, data = super().completed_args(), self.config.data
        if self.channel:
            return {'in_chans': 1, 'img_size': [data.clip_samples], **args}
        known: dict[str, Any] = {'clip_samples': data.clip_samples}
        if self.config.model.name == SPECTROGRAM_NAME:
            known['sample_rate'] = data.sample_rate
        return {**known, **args}

    @property
    def axes(self) -> dict[str, Axis]:
        trained = self.config.data.sample_rate
        rates = sorted(set(self.config.eval.sample_rates or [trained]))
        return {'sample_rate': Axis('Hz', str(trained), tuple(str(rate) for rate in rates))}

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Compute the mean cross-entropy of waveforms (B, L) and labels (B,)."""
        waves, labels = batch
        return F.cross_entropy(self.predict(model, waves), labels)

    def predict(self, model: Callable[..., Any], inputs: Tensor) -> Tensor:
        return model(inputs[:, None] if self.channel else inputs).float()

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """Return accuracy and cross-entropy at the training rate, on the validation clips."""
        return self._score(model, device, self.parts['val'], self.config.data.sample_rate)

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device | str, points: Sequence[str]) -> dict[str, float]:
        """Return them on the test clips at every point, a sample rate (Hz): the same seconds in other samples."""
        results: dict[str, float] = {}
        for point in points:
            results |= self._score(model, device, self._test_at(int(point)), int(point))
        return results

    def resample(self, inputs: Tensor) -> Tensor:
        """Bring waveforms (B, L) or (B, 1, L) to the training rate by band-limited interpolation."""
        samples = self.config.data.clip_samples
        common = math.gcd(inputs.shape[-1], samples)
        return resample(inputs, inputs.shape[-1] // common, samples // common)[..., :samples]

    def example(self, point: str, count: int) -> Tensor:
        return torch.randn(count, self._samples_at(int(point)))

    def _samples_at(self, rate: int) -> int:
        return round(self.config.data.clip_samples * rate / self.config.data.sample_rate)

    def _test_at(self, rate: int) -> Clips:
        if rate == self.config.data.sample_rate:
            return self.parts['test']
        data = replace(self.config.data, sample_rate=rate, clip_samples=self._samples_at(rate))
        return clip_parts(data, self.config.seed)['test']

    def _score(self, model: nn.Module, device: torch.device | str, clips: Clips, rate: int) -> dict[str, float]:
        def scores(waves: Tensor) -> Tensor:
            return self.predict(model, waves.to(device))

        accuracy, entropy = score(scores, self.eval_batches(clips), device, f'evaluation at {rate} Hz')
        return {f'accuracy@{rate}': accuracy, f'cross_entropy@{rate}': entropy}


def shift_right(codes: Tensor, first: int) -> Tensor:
    """Delay codes (B, L) by one sample, beginning with `first`: the model's input for the target `codes`."""
    return F.pad(codes[:, :-1], (1, 0), value=first)


def build(config: AudioConfig) -> tuple[nn.Module, AudioTask]:
    """Build model and task of a resolved configuration; completes `config.model.args` by what follows from the data."""
    task = AudioTask.from_config(config)
    return task.build_model(), task


def _check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a model of this package or of s4nd."""
    if not is_ours(name):
        named_model(MODELS, name, 'model of sound')
