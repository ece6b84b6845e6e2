"""From a checkpoint to sound: an autoregressive model sample by sample, a diffusion model clip by clip."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s4nd.options import nearest
from s4nd.training.checkpoint import find_weights, load_weights, read_metadata, stored_args

from ..io import read_audio
from ..models import DIFFUSION_NAME, MODEL_NAME, build_model
from ..models.denoiser import DiffusionSaShiMi
from ..models.sashimi import SaShiMi
from ..quantization import Quantizer
from .sampling import Sampling, sample_diffusion, stream_codes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Generator:
    """A trained model with what turns its output into sound.

    Attributes:
        model: in eval mode.
        quantizer: of a SaShiMi's codes; a diffusion model has none.
        sample_rate: Hz.
        classes: names of the classes, if there are any.
    """

    model: SaShiMi | DiffusionSaShiMi
    quantizer: Quantizer | None
    sample_rate: int
    classes: tuple[str, ...] = ()


def load_generator(checkpoint: str | Path, device: torch.device | str = 'cpu') -> Generator:
    """Load a weights file, the best (else the last) weights of a run's folder, or a folder of `save_pretrained`.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for weights of a model that does not generate or that lack what generation needs.
    """
    folder = Path(checkpoint)
    if (folder / 'README.md').is_file() and (folder / 'config.json').is_file():
        return _from_hub_folder(folder, device)
    path = find_weights(checkpoint)
    metadata = read_metadata(path)
    name = metadata.get('model', 'an unnamed model')
    if name not in (MODEL_NAME, DIFFUSION_NAME):
        raise ValueError(f'{path} holds the weights of {name}, expected {MODEL_NAME} or {DIFFUSION_NAME}')
    needed = ('args', 'sample_rate', 'quantizer') if name == MODEL_NAME else ('args', 'sample_rate')
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise ValueError(f'{path}: its metadata lacks {", ".join(missing)}')
    quantizer = Quantizer.from_json(metadata['quantizer']) if name == MODEL_NAME else None
    bits = () if quantizer is None else (quantizer.bits,)
    model: Any = build_model(name, stored_args(path, metadata), *bits)
    load_weights(path, model, name)
    classes = tuple(json.loads(metadata.get('classes', '[]')))
    model.describe_sound(int(metadata['sample_rate']), metadata.get('quantizer'), classes)
    return Generator(model.to(device).eval(), quantizer, int(metadata['sample_rate']), classes)


def _from_hub_folder(folder: Path, device: torch.device | str) -> Generator:
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    sound = config.get('sound') or {}
    cls = SaShiMi if 'bits' in config else DiffusionSaShiMi
    missing = [
        key for key in (('sample_rate', 'quantizer') if cls is SaShiMi else ('sample_rate',)) if not sound.get(key)
    ]
    if missing:
        raise ValueError(f'{folder}: its config.json lacks {", ".join(missing)}')
    quantizer = Quantizer.from_json(sound['quantizer']) if cls is SaShiMi else None
    model = cls.from_pretrained(folder).to(device).eval()
    return Generator(model, quantizer, int(sound['sample_rate']), tuple(sound.get('classes', ())))


def generate(
    model: Generator | str | Path,
    sampling: Sampling | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Tensor:
    """Generate waveforms (B, samples), float32 on the CPU, at the model's sample rate.

    Args:
        model: what `load_generator` gives, or a checkpoint for it.
        sampling: what to generate and how.
        progress: called with the samples (or denoising steps) done so far and their total.
        options: attributes of `Sampling`, in place of it or to change some of it: `generate('out/piano', seconds=2)`.

    Raises:
        ValueError: for what does not fit the model or is out of range.
    """
    known = [field.name for field in fields(Sampling)]
    for name in options:
        if name not in known:
            raise ValueError(f"generate has no option '{name}'{nearest(name, known)}")
    sampling = Sampling(**options) if sampling is None else replace(sampling, **options)
    source = model if isinstance(model, Generator) else load_generator(model)
    return torch.cat(list(stream(source, sampling, progress)), 1)


def stream(source: Generator, sampling: Sampling, progress: Progress | None = None) -> Iterator[Tensor]:
    """Generate as `generate` does, block by block (B, n) as they are ready: first the prompt, if there is one."""
    check_fits(source, sampling)
    model, length = source.model, sampling.samples(source.sample_rate)
    resolved = replace(
        sampling, seconds=None, length=length, label=class_numbers(source, sampling.label, sampling.batch)
    )
    if isinstance(model, DiffusionSaShiMi):
        total = model.diffusion.steps if sampling.steps is None else sampling.steps
        report = None if progress is None else lambda done: progress(done, total)
        yield sample_diffusion(model, resolved, report).float().cpu()
        return
    quantizer = source.quantizer
    if quantizer is None:
        raise ValueError('a SaShiMi needs the quantizer of its codes, got None')
    if sampling.prompt is not None:
        codes = prompt_codes(sampling.prompt, quantizer, sampling.batch, source.sample_rate)
        resolved = replace(resolved, prompt=codes)
        yield quantizer.decode(codes)
    done = 0
    for block in stream_codes(model, quantizer.zero_code, resolved):
        done += block.shape[1]
        if progress is not None:
            progress(done, length)
        yield quantizer.decode(block.cpu())


def check_fits(source: Generator, sampling: Sampling) -> None:
    """Raise ValueError for options that this kind of model does not have."""
    if source.quantizer is not None:
        if sampling.steps is not None:
            raise ValueError(f'steps={sampling.steps} is for diffusion models: this model draws one code per sample')
        if sampling.mel is not None:
            raise ValueError('mel is for vocoders: this model draws one code per sample')
        return
    given = {
        'prompt': sampling.prompt is not None,
        'temperature': sampling.temperature != 1,
        'top_p': sampling.top_p != 1,
    }
    for name in given:
        if given[name]:
            raise ValueError(f'{name} is for autoregressive models: a diffusion model does not take it')


def class_numbers(source: Generator, label: int | str | Sequence[int | str] | None, batch: int) -> Tensor | None:
    """Look up classes by name or number -> numbers (B,), or None where there is no label.

    Raises:
        ValueError: for an unknown class, a number of labels that is neither 1 nor `batch`, a label for a model without
            classes, and no label for one with them.
    """
    count, known = source.model.num_classes, ', '.join(source.classes)
    if count is None:
        if label is not None:
            raise ValueError(f'this model was trained without classes: it takes no label, got {label!r}')
        return None
    known = known or f'0 to {count - 1}'
    if label is None:
        raise ValueError(f'this model has {count} classes: give the label of what to generate ({known})')
    numbers = []
    for name in [label] if isinstance(label, int | str) else list(label):
        number = source.classes.index(str(name)) if str(name) in source.classes else name
        if not str(number).isdecimal() or int(number) >= count:
            raise ValueError(f'unknown class {name!r}: expected one of {known}')
        numbers.append(int(number))
    if len(numbers) not in (1, batch):
        raise ValueError(f'expected one label, or one for each of {batch} clips, got {len(numbers)}')
    weight = next(source.model.parameters())
    return torch.tensor(numbers, device=weight.device).expand(batch)


def prompt_codes(prompt: Tensor | str | Path, quantizer: Quantizer, batch: int, sample_rate: int) -> Tensor:
    """Encode a waveform (T,) or (B, T), or a sound file -> codes (B, T). Raises ValueError for another shape."""
    wave = prompt if isinstance(prompt, Tensor) else read_audio(prompt, sample_rate=sample_rate)[0]
    if wave.numel() == 0 or wave.dim() not in (1, 2) or (wave.dim() == 2 and len(wave) not in (1, batch)):
        raise ValueError(f'a prompt is (samples,) or ({batch}, samples), at least one, got {tuple(wave.shape)}')
    return quantizer.encode(wave.expand(batch, -1)).cpu()
