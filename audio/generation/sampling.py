"""How samples are drawn: the options, the rule by which a code is drawn, and the loops over models.

Randomness is the same on every path: row r of a batch has its own stream of uniform numbers, seeded by (seed, r), and a
sample is the code at which the distribution function passes the next of them. So row r of a seed is the same clip in a
batch of any size, by any method and however the work is cut, up to float rounding of the logits.

Shape legend: B = batch, n = samples of a block.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from s4nd.layers.streaming import State
from s4nd.ops.dispatch import wide, wide_dtype
from s4nd.options import option

from ..models.denoiser import DiffusionSaShiMi
from ..models.sashimi import SaShiMi

METHODS = ('auto', 'compiled', 'captured', 'eager')


@dataclass
class Sampling:
    """What to generate and how: the options of `generate`, of `stream` and of the command.

    Attributes:
        seconds, length: how much to generate beyond the prompt, in seconds or in samples: one of the two.
        batch: number of clips.
        seed: the same seed gives the same clips.
        temperature, top_p: of an autoregressive model, see `draw`.
        label: class by number or name, for all clips or a sequence with one for each; a tensor (B,) of numbers.
        prompt: what the clips begin with and go on from: a waveform (T,) or (B, T) at the model's rate, or the name of
            a sound file (resampled). A SaShiMi's context has no end, so any length will do.
        mel: of a vocoder: the spectrogram (80, F) or (B, 80, F) of what it shall say, in the scale of its training, or
            the name of a .npy file that holds it.
        steps: denoising steps of a diffusion model; None: all of its schedule.
        method: 'compiled' (needs numba and a CPU), 'captured' (CUDA graphs; needs a GPU), 'eager' (any device), or
            'auto': one of the first two if possible.

    Raises:
        ValueError: for values out of range.
    """

    seconds: float | None = option(None, 'time to generate, beyond the prompt')
    length: int | None = option(None, 'samples to generate, in place of seconds')
    batch: int = option(1, 'number of clips')
    seed: int = option(0, 'the same seed gives the same clips')
    temperature: float = option(1.0, 'below 1 sharpens the distribution of a code, above 1 flattens it')
    top_p: float = option(1.0, 'probability of the likeliest codes that are drawn from')
    label: Any = option(None, 'class by name or number')
    prompt: Any = option(None, 'sound to go on from')
    mel: Any = option(None, 'spectrogram for a vocoder: a .npy file')
    steps: int | None = option(None, 'denoising steps of a diffusion model; null: its whole schedule')
    method: str = option('auto', 'the loop that draws codes', choices=METHODS)

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.length is None):
            raise ValueError(f'give either seconds or length, got seconds={self.seconds} and length={self.length}')
        if self.seconds is not None:
            samples_in(self.seconds, 1)
        if self.length is not None and self.length < 1:
            raise ValueError(f'the length must be at least one sample, got {self.length}')
        if self.batch < 1:
            raise ValueError(f'batch must be at least 1, got {self.batch}')
        if self.seed < 0:
            raise ValueError(f'seed must not be negative, got {self.seed}')
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f'temperature must be positive and finite, got {self.temperature}')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must be in (0, 1], got {self.top_p}')
        if self.method not in METHODS:
            raise ValueError(f'unknown method {self.method!r}: expected one of {", ".join(METHODS)}')

    def samples(self, sample_rate: int | None = None) -> int:
        """Return the number of samples to generate, at `sample_rate` Hz where the options are in seconds."""
        if self.length is not None:
            return self.length
        if self.seconds is None or sample_rate is None:
            raise ValueError(f'seconds={self.seconds} needs a sample rate: give length, the number of samples')
        return samples_in(self.seconds, sample_rate)


class Sampler(Protocol):
    """A loop over the steps of a model that keeps the state between its calls."""

    def sample(self, first: Tensor, uniforms: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """Draw codes (B, n) after the codes `first` (B,), one for each of uniforms (B, n): see `draw`."""
        ...


def sample_codes(model: SaShiMi, first: int, sampling: Sampling) -> Tensor:
    """Draw all codes of `stream_codes` at once: (B, length)."""
    return torch.cat(list(stream_codes(model, first, sampling)), 1)


@torch.no_grad()
def stream_codes(model: SaShiMi, first: int, sampling: Sampling) -> Iterator[Tensor]:
    """Draw codes (B, n) int64, n samples at a time, in blocks of about a quarter of a second's work.

    Args:
        model: in eval mode.
        first: code put before the first sample, as in training (silence).
        sampling: label holds the class of each row (B,), for a model with classes; prompt holds codes (B, T) that come
            before and that are convolved, not taken one by one.

    Raises:
        ValueError: for options that do not fit the model.
    """
    label, batch, length = sampling.label, sampling.batch, sampling.samples()
    model.check_label(label, batch)
    device = model.head.weight.device
    token, state = torch.full((batch, 1), first, device=device), model.init_state(batch)
    if sampling.prompt is not None:
        seen = torch.cat([token, sampling.prompt.to(device)], 1)
        # Without the head: nothing is drawn yet.
        _, state = model.backbone(model.embed(seen[:, :-1], label), state)
        token = seen[:, -1:]
    sampler = _sampler(model, batch, label, state, sampling.method)
    random = [np.random.default_rng((sampling.seed, row)) for row in range(batch)]
    done, size = 0, 16
    while done < length:
        size = min(size, length - done)
        start = time.perf_counter()
        # 24 bits, so that no product with a sum of probabilities rounds up to that sum.
        uniforms = np.stack([rng.random(size, np.float32) for rng in random]).astype(np.float64)
        token = sampler.sample(token[:, -1], uniforms, sampling.temperature, sampling.top_p)
        done += size
        took = time.perf_counter() - start
        yield token
        size = max(1, min(2 * size, int(size * 0.25 / took)))


@torch.no_grad()
def sample_diffusion(
    model: DiffusionSaShiMi, sampling: Sampling, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Draw waveforms (B, length) on the model's device.

    Args:
        model: in eval mode.
        sampling: label holds the class of each row (B,), for a model with classes.
        progress: called with the number of denoising steps done, after each.

    Raises:
        ValueError: for a number of steps or a label that does not fit the model.
    """
    weight = model.leave[-1].weight
    random = torch.Generator(weight.device).manual_seed(sampling.seed)
    shape = (sampling.batch, sampling.samples())
    noise = torch.randn(shape, generator=random, dtype=weight.dtype, device=weight.device)
    mel = None if sampling.mel is None else spectrogram(sampling.mel, sampling.batch).to(weight)
    return model.diffusion.sample(
        lambda x, t: model(x, t, sampling.label, mel), noise, steps=sampling.steps, random=random, progress=progress
    )


def spectrogram(mel: Tensor | str, batch: int) -> Tensor:
    """Return a spectrogram (bands, F) or (B, bands, F), perhaps in a .npy file, for each of `batch` clips.

    Raises ValueError for a file that cannot be read and another number of axes or clips.
    """
    if not isinstance(mel, Tensor):
        try:
            mel = torch.from_numpy(np.load(mel, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ValueError(f'mel: {mel} cannot be read as a .npy file ({error})') from error
    mel = mel[None] if mel.dim() == 2 else mel
    if mel.dim() != 3 or len(mel) not in (1, batch):
        raise ValueError(f'mel: expected (bands, frames), or one for each of {batch} clips, got {tuple(mel.shape)}')
    return mel.expand(batch, -1, -1)


class EagerLoop:
    """Loop over `model.step` on any device: the same calls as `audio.generation.engine.Engine`."""

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
        for uniform in torch.from_numpy(uniforms).to(first.device, wide_dtype(first.device)).unbind(1):
            logits, self._state = self._model.step(
                code, self._state, self._system, label=self._label, phase=self._count % period
            )
            code = draw(logits, uniform, temperature, top_p)
            codes.append(code)
            self._count += 1
        return torch.stack(codes, 1)


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Draw one code for each row of logits (B, n) and number uniform (B,) in [0, 1), of at most 32 bits -> (B,).

    Of softmax(logits / temperature) the likeliest codes that together hold `top_p` stay (the one that crosses it too;
    of equals, the lower code); the code drawn is the one where the distribution function passes `uniform`. In float64
    (on MPS in float32).
    """
    share = torch.softmax(wide(logits) / temperature, -1)
    if top_p < 1:
        ordered, index = share.sort(dim=-1, descending=True, stable=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        share = torch.zeros_like(share).scatter(-1, index, ordered)
    total = share.cumsum(-1)
    code = (total <= uniform[:, None] * total[:, -1:]).sum(-1)
    return code.clamp(max=logits.shape[-1] - 1)  # of use in float32, where the product may round up to the sum


def samples_in(seconds: float, sample_rate: int) -> int:
    """Return the samples in a time, at least one. Raises ValueError unless it is positive and finite."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f'seconds must be positive and finite, got {seconds}')
    return max(1, round(seconds * sample_rate))


def _sampler(model: SaShiMi, batch: int, label: Tensor | None, state: State, method: str) -> Sampler:
    if method == 'captured' or (method == 'auto' and model.head.weight.is_cuda):
        if not model.head.weight.is_cuda:
            raise ValueError(f"method 'captured' needs a model on a GPU, got one on {model.head.weight.device}")
        from .captured import CapturedLoop  # which builds on this file

        return CapturedLoop(model, batch, label=label, state=state)
    if method != 'eager':
        try:
            # numba is optional, and takes half a second to import.
            from .engine import Engine, why_not
        except ImportError as error:
            if method == 'compiled' or error.name != 'numba':
                raise
            warnings.warn('numba is not installed: sampling one step at a time, ten times slower', stacklevel=3)
        else:
            if method == 'compiled' or why_not(model) is None:
                return Engine(model, batch, label=label, state=state)
    return EagerLoop(model, batch, label=label, state=state)
