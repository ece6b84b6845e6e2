"""The tasks of the side-by-side comparison: what is learned, at which resolutions it is measured, with which model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from small_models import LineModel, Variant, plane_model, wave_model
from torch import Tensor, nn
from torch.nn import functional as F

from audio.data.parts import AudioData, clip_parts
from audio.tasks import AudioConfig, ClassificationTask
from s4nd.data import Splits, load_images
from s4nd.data.images.options import ImageData
from s4nd.seeds import generator
from s4nd.tasks import Chosen, Task
from s4nd.tasks.images import ImageConfig, ImageEval, ImageTask
from s4nd.training.config import ModelConfig, RunConfig

PIXELS, SIDE = 14, 16  # pixels per side, of the line and of the plane
RATE, SECONDS = 4000, 0.5
SAMPLES, DELAY, CYCLES = 4096, 1000, 32
TEST_IMAGES = 1000


@dataclass(frozen=True)
class Setting:
    """A task of the comparison.

    Attributes:
        title: in tables.
        data: the option that says where the data lie; empty: none is needed.
        updates, batch: of the training.
        shape: of one input.
        resolutions: the points at half, the same and twice the resolution of training.
        model: variant -> model.
        task: (data folder, batch, seed) -> the task.
    """

    title: str
    data: str
    updates: int
    batch: int
    shape: tuple[int, ...]
    resolutions: Sequence[str]
    model: Callable[[Variant], nn.Module]
    task: Callable[[str, int, int], Task]


class DelayTask(Task):
    """Say what the signal was `DELAY` samples ago: noise below `CYCLES` cycles in the whole, of unit variance.

    A signal is a sum of waves in continuous time, so it can be sampled as densely as one likes. What came before its
    beginning is not asked. The score is the share of the variance that is explained, in percent.
    """

    Config = RunConfig
    monitor = f'accuracy@{SAMPLES}'
    maximize = True
    batch_size = 0

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__(RunConfig(seed=seed))
        self.batch_size = batch_size

    @classmethod
    def from_config(cls, config: RunConfig) -> 'DelayTask':
        return cls(1, config.seed)

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        return LineModel(SAMPLES, None, 1, **args)

    def train_batches(self, epoch: int) -> Chosen:
        """Fifty batches of coefficients (B, CYCLES, 2)."""
        waves = self._draw(50, epoch)
        return Chosen(torch.arange(len(waves)).unbind(), lambda number: waves[number])

    def _draw(self, count: int, epoch: int) -> list[Tensor]:
        random = generator(self.config.seed, epoch)
        return list(torch.randn(count, self.batch_size, CYCLES, 2, generator=random))

    def signals(self, waves: Tensor, size: int) -> Tensor:
        """Coefficients (B, CYCLES, 2) -> signals (B, size)."""
        spectrum = torch.zeros(len(waves), size // 2 + 1, dtype=torch.complex64, device=waves.device)
        spectrum[:, 1 : CYCLES + 1] = torch.view_as_complex(waves) * size / (4 * CYCLES) ** 0.5
        return torch.fft.irfft(spectrum, size)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return self._error(model, batch, SAMPLES)

    def _error(self, model: nn.Module, waves: Tensor, size: int) -> Tensor:
        x, late = self.signals(waves, size), DELAY * size // SAMPLES
        return F.mse_loss(model(x)[:, late:], x[:, :-late])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        return self.evaluate_at(model, device, [str(SAMPLES)])

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """On sixteen batches that no epoch of training reaches, at every number of samples."""
        batches = [waves.to(device) for waves in self._draw(16, 1_000_002)]
        return {
            f'accuracy@{size}': 100
            * (1 - torch.stack([self._error(model, w, int(size)) for w in batches]).mean().item())
            for size in points
        }


@cache
def _images(root: str) -> Splits:
    return load_images(ImageData(kind='fashion_mnist', root=root))


def image_task(size: int, root: str, batch_size: int, seed: int) -> ImageTask:
    """Fashion-MNIST at `size` × `size`, `TEST_IMAGES` to evaluate on."""
    data = ImageData(kind='fashion_mnist', root=root, size=size, batch_size=batch_size)
    return ImageTask(ImageConfig(seed=seed, data=data, eval=ImageEval(limit=TEST_IMAGES)), _images(root))


def digits_task(root: str, batch_size: int, seed: int) -> ClassificationTask:
    """Spoken digits, `SECONDS` of each at `RATE`."""
    data = AudioData(
        kind='digits', root=root, sample_rate=RATE, clip_samples=round(RATE * SECONDS), normalize='peak', labels='name',
        batch_size=batch_size,
    )  # fmt: skip
    # The name of a model of this package: it is given waveforms (B, L).
    config = AudioConfig(seed=seed, model=ModelConfig('audio_classifier'), data=data)
    return ClassificationTask(config, clip_parts(data, seed))


def _images_setting(
    title: str, side: int, resolutions: Sequence[str], model: Callable[[Variant], nn.Module]
) -> Setting:
    return Setting(
        title,
        'fashion',
        updates=200,
        batch=16,
        shape=(1, side, side),
        resolutions=resolutions,
        model=model,
        task=partial(image_task, side),
    )


def _thrice(size: int) -> list[str]:
    return [str(size // 2), str(size), str(2 * size)]


SETTINGS: dict[str, Setting] = {
    'pixels': _images_setting(
        f'pixels: Fashion-MNIST, {PIXELS} × {PIXELS} as a line of {PIXELS * PIXELS} pixels',
        PIXELS,
        (f'{PIXELS}x{PIXELS // 2}', str(PIXELS), f'{PIXELS}x{2 * PIXELS}'),
        lambda variant: LineModel(PIXELS * PIXELS, 10, 4, variant),
    ),
    'digits': Setting(
        f'digits: spoken digits, waveforms of {round(RATE * SECONDS)} samples at {RATE // 1000} kHz',
        'digits',
        updates=200,
        batch=8,
        shape=(round(RATE * SECONDS),),
        resolutions=_thrice(RATE),
        model=lambda variant: wave_model(round(RATE * SECONDS), 10, variant),
        task=digits_task,
    ),
    'delay': Setting(
        f'delay: repeat a signal of {SAMPLES} samples {DELAY} samples later',
        '',
        updates=150,
        batch=1,
        shape=(SAMPLES,),
        resolutions=_thrice(SAMPLES),
        model=lambda variant: LineModel(SAMPLES, None, 1, variant),
        task=lambda _, batch, seed: DelayTask(batch, seed),
    ),
    'images': _images_setting(
        f'images: Fashion-MNIST at {SIDE} × {SIDE} pixels',
        SIDE,
        _thrice(SIDE),
        lambda variant: plane_model(SIDE, 1, 10, variant),
    ),
}
