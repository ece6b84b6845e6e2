"""Generate audio: `python -m audio.generate checkpoint=out/sashimi seconds=2 [seed=0 temperature=1 top_p=1 out=a.wav]`.

Further: batch=4 (clips a-0.wav … a-3.wav), label=NAME (or number; several with commas, one a clip), prompt=file.wav
[prompt_seconds=1] to go on from a recording, method=eager, and for a diffusion model steps=6 (a short sampler).
Writes each clip and, beside it, a picture of its spectrogram (.png). In long runs, and when interrupted (Ctrl-C,
SIGTERM), what there is so far is written as well, as whole files.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from omegaconf import MISSING
from torch import Tensor
from tqdm import tqdm

from audio.generation import (
    METHODS,
    Generator,
    check_fits,
    check_sampling,
    class_numbers,
    generate,
    load_generator,
    samples_in,
    stream,
)
from audio.io import SUFFIXES, audio_info, read_audio, write_audio, write_spectrogram
from s4nd.words import parse_words

# Seconds of work between two writes of an unfinished clip.
WRITE_EVERY = 30.0


@dataclass
class Options:
    """The command's options, with their defaults."""

    checkpoint: str = MISSING  # a run's folder or a .safetensors file
    seconds: float = MISSING  # to generate, beyond the prompt
    batch: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    label: str = ''  # class by name or number, or one for each clip with commas between
    prompt: str = ''  # a sound file to go on from
    prompt_seconds: float | None = None  # how much of its beginning; None: all
    steps: int | None = None  # of a diffusion model; None: its whole schedule
    method: str = 'auto'  # auto, compiled or eager
    out: str = ''  # the sound file; empty: sample-<seed>.wav in the checkpoint's folder
    device: str = 'cpu'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for bad input, 130 when interrupted."""
    try:
        options = parse_words(Options, sys.argv[1:] if arguments is None else arguments)
        return run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def run(options: Options) -> int:
    """Generate, write and say what was written; returns the exit status."""
    samples_in(options.seconds, 1)
    check_sampling(1, options.temperature, options.top_p, options.batch, options.seed)
    if options.method not in METHODS:
        raise ValueError(f'method: {options.method!r}, expected one of {", ".join(METHODS)}')
    checkpoint = Path(options.checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    out = Path(options.out or folder / f'sample-{options.seed}.wav')
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f'out: cannot write {out.suffix!r}, expected one of {", ".join(SUFFIXES)}')
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device: {options.device!r} cannot be used: {str(error).splitlines()[0]}') from error
    source = load_generator(options.checkpoint, options.device)
    labels = options.label.split(',') if options.label else None
    class_numbers(source, labels, options.batch)
    check_fits(source, bool(options.prompt), options.temperature, options.top_p, options.steps)
    prompt = read_prompt(options, source.sample_rate)
    length = samples_in(options.seconds, source.sample_rate)
    names = [out] if options.batch == 1 else [out.with_stem(f'{out.stem}-{i}') for i in range(options.batch)]
    start = time.perf_counter()
    waves, interrupted = collect(source, options, length, labels, prompt, names)
    spent = time.perf_counter() - start
    if waves is None:
        print('interrupted before the first sample: nothing written', file=sys.stderr)
        return 130
    write(names, waves, source.sample_rate)
    title = f'{checkpoint.name}: seed {options.seed}, temperature {options.temperature:g}, top-p {options.top_p:g}'
    for name, wave in zip(names, waves, strict=True):
        picture = write_spectrogram(name.with_suffix('.png'), wave, source.sample_rate, title=title)
        print(f'{name}\n{picture}')
    made = waves.shape[1] - (0 if prompt is None else prompt.shape[-1])
    speed = made / spent
    real = f'{speed / source.sample_rate:.2f} times real time'
    print(f'{speed * len(names):.0f} samples/s ({len(names)} × {speed:.0f}, each {real})')
    if interrupted:
        share = f'{made / source.sample_rate:.2f} of {options.seconds:g} s'
        print(f'interrupted: {share} generated, and written as above', file=sys.stderr)
    return 130 if interrupted else 0


def collect(
    source: Generator, options: Options, length: int, labels: list[str] | None, prompt: Tensor | None, names: list[Path]
) -> tuple[Tensor | None, bool]:
    """Waveforms (batch, samples) so far, None for none, and whether the work was interrupted."""
    blocks: list[Tensor] = []
    start = written = time.perf_counter()
    interrupted = False
    name, interval = f'{options.seconds:g} s at {source.sample_rate} Hz', 0.5 if sys.stderr.isatty() else 10
    unit = 'samples' if source.quantizer is not None else 'steps'
    with tqdm(desc=name, mininterval=interval, unit=unit) as bar, terminable():

        def progress(done: int, total: int) -> None:
            bar.total = total
            if source.quantizer is not None:
                spent = max(time.perf_counter() - start, 1e-9)
                bar.set_postfix_str(f'{done / spent / source.sample_rate:.2f}× real time', refresh=False)
            bar.update(done - bar.n)

        try:
            for block in stream(
                source,
                length,
                batch=options.batch,
                seed=options.seed,
                temperature=options.temperature,
                top_p=options.top_p,
                label=labels,
                prompt=prompt,
                steps=options.steps,
                method=options.method,
                progress=progress,
            ):
                blocks.append(block)
                if time.perf_counter() - written > WRITE_EVERY:
                    write(names, torch.cat(blocks, 1), source.sample_rate)
                    written = time.perf_counter()
        except KeyboardInterrupt:
            interrupted = True
    return torch.cat(blocks, 1) if blocks else None, interrupted


def read_prompt(options: Options, sample_rate: int) -> Tensor | None:
    """The recording to go on from, (T,) at `sample_rate`; says so where it resamples."""
    if not options.prompt:
        if options.prompt_seconds is not None:
            raise ValueError(f'prompt_seconds={options.prompt_seconds:g} needs a prompt=file')
        return None
    info = audio_info(options.prompt)
    frames = None if options.prompt_seconds is None else samples_in(options.prompt_seconds, info.sample_rate)
    if frames is not None and frames > info.frames:
        lasts = info.frames / info.sample_rate
        raise ValueError(f'prompt_seconds={options.prompt_seconds:g}, but {options.prompt} lasts {lasts:.3f} s')
    wave, _ = read_audio(options.prompt, frames=frames, sample_rate=sample_rate)
    if not wave.numel():
        raise ValueError(f'{options.prompt} holds no samples')
    if info.sample_rate != sample_rate:
        print(f'{options.prompt}: resampled from {info.sample_rate} to {sample_rate} Hz')
    return wave


def write(names: Sequence[Path], waves: Tensor, sample_rate: int) -> None:
    """Each row of waves (batch, samples) to its file."""
    for name, wave in zip(names, waves, strict=True):
        write_audio(name, wave, sample_rate)


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt, as Ctrl-C does (in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _CallableModule(ModuleType):
    __call__ = staticmethod(generate)


# Importing this module makes it the package's `generate`, in place of the function: so it can be called as well.
sys.modules[__name__].__class__ = _CallableModule

if __name__ == '__main__':
    sys.exit(main())
