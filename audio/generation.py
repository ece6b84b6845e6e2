"""Generating audio from a trained model: an autoregressive one sample by sample, a diffusion model clip by clip.

Randomness is the same on every path: row r of a batch has its own stream of uniform numbers, seeded by (seed, r), and a
sample is the code at which the distribution function passes the next of them. So row r of a seed is the same clip in a
batch of any size, by any method and however the work is cut, up to float rounding of the logits.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from audio.backbone import State
from audio.denoiser import sample_diffusion
from audio.io import read_audio
from audio.quantization import Quantizer
from audio.sashimi import SaShiMi
from audio.task import DIFFUSION_NAME, MODEL_NAME, build_model
from s4nd.training.checkpoint import find_weights, load_weights, read_metadata

if TYPE_CHECKING:
    from audio.engine import Engine

METHODS = ('auto', 'compiled', 'eager')


@dataclass(frozen=True)
class Generator:
    """A trained model with what turns its output into sound: sample_rate in Hz, names of the classes if it has any.

    A SaShiMi needs the quantizer of its codes; a diffusion model has none.
    """

    model: nn.Module
    quantizer: Quantizer | None
    sample_rate: int
    classes: tuple[str, ...] = ()


def load_generator(checkpoint: str | Path, device: torch.device | str = 'cpu') -> Generator:
    """Load a weights file, or the best (else the last) weights of a run's folder.

    Raises FileNotFoundError where there is none, ValueError for weights of a model that does not generate or that lack
    what generation needs.
    """
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
    model = build_model(name, json.loads(metadata['args']), *bits)
    load_weights(path, model, name)
    classes = tuple(json.loads(metadata.get('classes', '[]')))
    return Generator(model.to(device).eval(), quantizer, int(metadata['sample_rate']), classes)


def generate(
    model: Generator | str | Path,
    *,
    seconds: float | None = None,
    length: int | None = None,
    batch: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    label: int | str | Sequence[int | str] | None = None,
    prompt: Tensor | str | Path | None = None,
    steps: int | None = None,
    method: str = 'auto',
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Generate waveforms (batch, samples), float32 on the CPU, at the model's sample rate.

    Args:
        model: what `load_generator` gives, or a checkpoint for it.
        seconds, length: how much to generate, in seconds or in samples: one of the two.
        batch: number of clips.
        seed: the same seed gives the same clips.
        temperature, top_p: see `draw`.
        label: class by number or name, for all clips or one for each.
        prompt: a waveform (T,) or (batch, T) at the model's rate, or a sound file (resampled), that the clips begin
            with and go on from. A SaShiMi's context has no end, so any length will do.
        steps: denoising steps of a diffusion model; None: all of its schedule.
        method: 'compiled' (needs numba and a CPU), 'eager' (any device), or 'auto': the first if possible.
        progress: called with the samples (or denoising steps) done so far and their total.

    Raises ValueError for what does not fit the model or is out of range.
    """
    source = model if isinstance(model, Generator) else load_generator(model)
    if (seconds is None) == (length is None):
        raise ValueError(f'give either seconds or length, got seconds={seconds} and length={length}')
    if length is None:
        length = samples_in(seconds, source.sample_rate)
    if isinstance(prompt, str | Path):
        prompt, _ = read_audio(prompt, sample_rate=source.sample_rate)
    blocks = stream(
        source,
        length,
        batch=batch,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        label=label,
        prompt=prompt,
        steps=steps,
        method=method,
        progress=progress,
    )
    return torch.cat(list(blocks), 1)


def stream(
    source: Generator,
    length: int,
    *,
    batch: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    label: int | str | Sequence[int | str] | None = None,
    prompt: Tensor | None = None,
    steps: int | None = None,
    method: str = 'auto',
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """As `generate`, block by block (batch, n) as they are ready: first the prompt, if there is one."""
    labels = class_numbers(source, label, batch)
    check_fits(source, prompt is not None, temperature, top_p, steps)
    if source.quantizer is None:
        total = source.model.diffusion.steps if steps is None else steps
        report = None if progress is None else lambda done: progress(done, total)
        yield (
            sample_diffusion(source.model, length, batch=batch, seed=seed, label=labels, steps=steps, progress=report)
            .float()
            .cpu()
        )
        return
    codes = None if prompt is None else prompt_codes(prompt, source.quantizer, batch)
    blocks = stream_codes(
        source.model,
        length,
        source.quantizer.zero_code,
        batch=batch,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        label=labels,
        prompt=codes,
        method=method,
    )
    if codes is not None:
        yield source.quantizer.decode(codes)
    done = 0
    for block in blocks:
        done += block.shape[1]
        if progress is not None:
            progress(done, length)
        yield source.quantizer.decode(block.cpu())


def sample_codes(
    model: SaShiMi,
    length: int,
    first: int,
    *,
    batch: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    label: Tensor | None = None,
    prompt: Tensor | None = None,
    method: str = 'auto',
) -> Tensor:
    """All of `stream_codes` at once: (batch, length)."""
    blocks = stream_codes(
        model,
        length,
        first,
        batch=batch,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        label=label,
        prompt=prompt,
        method=method,
    )
    return torch.cat(list(blocks), 1)


@torch.no_grad()
def stream_codes(
    model: SaShiMi,
    length: int,
    first: int,
    *,
    batch: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    label: Tensor | None = None,
    prompt: Tensor | None = None,
    method: str = 'auto',
) -> Iterator[Tensor]:
    """Draw codes (batch, n) int64, n samples at a time, `length` in all; blocks of about a quarter of a second's work.

    Args:
        model: in eval mode.
        length: samples to draw.
        first: code put before the first sample, as in training (silence).
        seed, temperature, top_p: see the top of this file and `draw`.
        label: class of each row (batch,), for a model with classes.
        prompt: codes (batch, T) that come before; they are taken in by convolution, not one by one.
        method: see `generate`.

    Raises ValueError for values outside these ranges.
    """
    check_sampling(length, temperature, top_p, batch, seed)
    model.check_label(label, batch)
    device = model.head.weight.device
    token = torch.full((batch, 1), first, device=device)
    state = None
    if prompt is not None:
        seen = torch.cat([token, prompt.to(device)], 1)
        _, state = model.prefill(seen[:, :-1], label)
        token = seen[:, -1:]
    sampler = _sampler(model, batch, label, state, method)
    random = [np.random.default_rng((seed, row)) for row in range(batch)]
    done, size = 0, 16
    while done < length:
        size = min(size, length - done)
        start = time.perf_counter()
        # 24 bits, so that no product with a sum of probabilities rounds up to that sum.
        uniforms = np.stack([rng.random(size, np.float32) for rng in random]).astype(np.float64)
        token = sampler.sample(token[:, -1], uniforms, temperature, top_p)
        done += size
        took = time.perf_counter() - start
        yield token
        size = max(1, min(2 * size, int(size * 0.25 / took)))


class EagerLoop:
    """The plain loop over `model.step`, on any device: the same calls as `audio.engine.Engine`."""

    def __init__(
        self, model: SaShiMi, batch: int = 1, *, label: Tensor | None = None, state: State | None = None
    ) -> None:
        self._model, self._label, self._system = model, label, model.system()
        self._state = model.init_state(batch) if state is None else state
        self._count = int(self._state['phase'][0])

    @torch.no_grad()
    def sample(self, first: Tensor, uniforms: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """Draw codes (B, n) after the codes `first` (B,), one for each of uniforms (B, n): see `draw`."""
        code, codes, period = first, [], self._model.backbone.period
        for uniform in torch.from_numpy(uniforms).to(first.device).unbind(1):
            logits, self._state = self._model.step(
                code, self._state, label=self._label, system=self._system, phase=self._count % period
            )
            code = draw(logits, uniform, temperature, top_p)
            codes.append(code)
            self._count += 1
        return torch.stack(codes, 1)


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """One code for each row of logits (B, n) and number uniform (B,) in [0, 1), of at most 32 bits -> (B,).

    Of softmax(logits / temperature) the likeliest codes that together hold `top_p` stay (the one that crosses it too;
    of equals, the lower code); the code drawn is the one where the distribution function passes `uniform`. In float64.
    """
    share = torch.softmax(logits.double() / temperature, -1)
    if top_p < 1:
        ordered, index = share.sort(dim=-1, descending=True, stable=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        share = torch.zeros_like(share).scatter(-1, index, ordered)
    total = share.cumsum(-1)
    return (total <= uniform[:, None] * total[:, -1:]).sum(-1)


def check_sampling(length: int, temperature: float, top_p: float, batch: int = 1, seed: int = 0) -> None:
    """Raise ValueError for values that cannot be used."""
    if length < 1:
        raise ValueError(f'the length must be at least one sample, got {length}')
    if batch < 1:
        raise ValueError(f'batch must be at least 1, got {batch}')
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f'temperature must be positive and finite, got {temperature}')
    if not 0 < top_p <= 1:
        raise ValueError(f'top_p must be in (0, 1], got {top_p}')


def check_fits(source: Generator, prompted: bool, temperature: float, top_p: float, steps: int | None) -> None:
    """Raise ValueError for options that this kind of model does not have."""
    if source.quantizer is not None:
        if steps is not None:
            raise ValueError(f'steps={steps} is for diffusion models: an autoregressive model takes one a sample')
        return
    for name, given in [('prompt', prompted), ('temperature', temperature != 1), ('top_p', top_p != 1)]:
        if given:
            raise ValueError(f'{name} is for autoregressive models: a diffusion model does not take it')


def samples_in(seconds: float, sample_rate: int) -> int:
    """Samples in a time, at least one. Raises ValueError unless it is positive and finite."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f'seconds must be positive and finite, got {seconds}')
    return max(1, round(seconds * sample_rate))


def class_numbers(source: Generator, label: int | str | Sequence[int | str] | None, batch: int) -> Tensor | None:
    """Classes by name or number -> numbers (batch,), or None where there is no label.

    Raises ValueError for an unknown class, a number of labels that is neither 1 nor `batch`, a label for a model
    without classes, and no label for one with them.
    """
    count, known = source.model.num_classes, ', '.join(source.classes)
    if label is None:
        if count is not None:
            names = known or f'0 to {count - 1}'
            raise ValueError(f'this model has {count} classes: give the label of what to generate ({names})')
        return None
    if count is None:
        raise ValueError(f'this model was trained without classes: it takes no label, got {label!r}')
    wanted = [label] if isinstance(label, int | str) else list(label)
    numbers = []
    for name in wanted:
        number = source.classes.index(str(name)) if str(name) in source.classes else name
        if not str(number).isdecimal() or int(number) >= count:
            raise ValueError(f'unknown class {name!r}: expected one of {known or f"0 to {count - 1}"}')
        numbers.append(int(number))
    if len(numbers) not in (1, batch):
        raise ValueError(f'expected one label, or one for each of {batch} clips, got {len(numbers)}')
    weight = next(source.model.parameters())
    return torch.tensor(numbers, device=weight.device).expand(batch)


def prompt_codes(prompt: Tensor, quantizer: Quantizer, batch: int) -> Tensor:
    """A waveform (T,) or (batch, T), T >= 1 -> codes (batch, T). Raises ValueError for another shape."""
    if prompt.numel() == 0 or prompt.dim() not in (1, 2) or (prompt.dim() == 2 and len(prompt) not in (1, batch)):
        raise ValueError(f'a prompt is (samples,) or ({batch}, samples), at least one, got {tuple(prompt.shape)}')
    return quantizer.encode(prompt.expand(batch, -1)).cpu()


def _sampler(
    model: SaShiMi, batch: int, label: Tensor | None, state: State | None, method: str
) -> 'Engine | EagerLoop':
    if method not in METHODS:
        raise ValueError(f'unknown method {method!r}: expected one of {", ".join(METHODS)}')
    if method != 'eager':
        try:
            # numba is optional, and takes half a second to import.
            from audio.engine import Engine, why_not
        except ImportError as error:
            if method == 'compiled' or error.name != 'numba':
                raise
            warnings.warn('numba is not installed: sampling one step at a time, ten times slower', stacklevel=3)
        else:
            if method == 'compiled' or why_not(model) is None:
                return Engine(model, batch, label=label, state=state)
    return EagerLoop(model, batch, label=label, state=state)
