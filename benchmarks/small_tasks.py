"""The tasks of the side-by-side comparison: what is learned, at which resolutions it is measured, with which model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from small_models import LineModel, Variant, plane_model, wave_model
from torch import Tensor, nn
from torch.nn import functional as F

from audio.datasets import FolderClips, folder_parts
from audio.task import ClassificationTask
from s4nd.data import ImageTask, Splits, load_images
from s4nd.training.config import EvalConfig, ImageConfig, ImageData
from s4nd.training.loop import Task

PIXELS, SIDE = 14, 16  # pixels a side, of the line and of the plane
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
        resolutions: half, the same and twice that of training, as the task's `evaluate_at` takes them.
        model: variant -> model.
        task: (data folder, batch, seed) -> the task.
    """

    title: str
    data: str
    updates: int
    batch: int
    shape: tuple[int, ...]
    resolutions: Sequence[Any]
    model: Callable[[Variant], nn.Module]
    task: Callable[[str, int, int], Task]


class DelayTask:
    """Say what the signal was `DELAY` samples ago: noise below `CYCLES` cycles in the whole, of unit variance.

    A signal is a sum of waves in continuous time, so it can be sampled as densely as one likes. What came before its
    beginning is not asked. The score is the share of the variance that is explained, in percent.
    """

    monitor = f'accuracy@{SAMPLES}'
    maximize = True
    metadata: dict[str, str] = {}

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed

    def train_batches(self, epoch: int) -> list[Tensor]:
        """Fifty batches of coefficients (B, CYCLES, 2)."""
        return self._draw(50, epoch)

    def _draw(self, count: int, epoch: int) -> list[Tensor]:
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
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
        return self.evaluate_at(model, device, [SAMPLES])

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, sizes: Sequence[int]) -> dict[str, float]:
        """On sixteen batches that no epoch of training reaches, at every number of samples."""
        batches = [waves.to(device) for waves in self._draw(16, 1_000_002)]
        return {
            f'accuracy@{size}': 100 * (1 - torch.stack([self._error(model, w, size) for w in batches]).mean().item())
            for size in sizes
        }


@cache
def _images(root: str) -> Splits:
    return load_images(ImageData(kind='fashion_mnist', root=root))


def image_task(size: int, root: str, batch_size: int, seed: int) -> ImageTask:
    """Fashion-MNIST at `size` × `size`, `TEST_IMAGES` to evaluate on."""
    data = ImageData(kind='fashion_mnist', root=root, size=size, batch_size=batch_size)
    return ImageTask(ImageConfig(seed=seed, data=data, eval=EvalConfig(limit=TEST_IMAGES)), _images(root))


def digits_task(root: str, batch_size: int, seed: int) -> ClassificationTask:
    """Spoken digits, `SECONDS` of each at `RATE`."""

    def parts(rate: int) -> dict[str, FolderClips]:
        samples = round(rate * SECONDS)
        return folder_parts(root, samples, rate, split='digits', normalize='peak', labels='name', seed=seed)

    return ClassificationTask(parts(RATE), lambda rate: parts(rate)['test'], RATE, batch_size, seed=seed)


def _images_setting(
    title: str, side: int, resolutions: Sequence[Any], model: Callable[[Variant], nn.Module]
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


SETTINGS: dict[str, Setting] = {
    'pixels': _images_setting(
        f'pixels: Fashion-MNIST, {PIXELS} × {PIXELS} as a line of {PIXELS * PIXELS} pixels',
        PIXELS,
        ((PIXELS, PIXELS // 2), PIXELS, (PIXELS, 2 * PIXELS)),
        lambda variant: LineModel(PIXELS * PIXELS, 10, 4, variant),
    ),
    'digits': Setting(
        f'digits: spoken digits, waveforms of {round(RATE * SECONDS)} samples at {RATE // 1000} kHz',
        'digits',
        updates=200,
        batch=8,
        shape=(round(RATE * SECONDS),),
        resolutions=(RATE // 2, RATE, 2 * RATE),
        model=lambda variant: wave_model(round(RATE * SECONDS), 10, variant),
        task=digits_task,
    ),
    'delay': Setting(
        f'delay: repeat a signal of {SAMPLES} samples {DELAY} samples later',
        '',
        updates=150,
        batch=1,
        shape=(SAMPLES,),
        resolutions=(SAMPLES // 2, SAMPLES, 2 * SAMPLES),
        model=lambda variant: LineModel(SAMPLES, None, 1, variant),
        task=lambda _, batch, seed: DelayTask(batch, seed),
    ),
    'images': _images_setting(
        f'images: Fashion-MNIST at {SIDE} × {SIDE} pixels',
        SIDE,
        (SIDE // 2, SIDE, 2 * SIDE),
        lambda variant: plane_model(SIDE, 1, 10, variant),
    ),
}
