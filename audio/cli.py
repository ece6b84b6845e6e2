"""The commands on sound: generate, metrics, page and export, each also `python -m s4nd.audio.<name>`.

    s4nd generate [checkpoint=out/sashimi seconds=2 seed=0 temperature=1 top_p=1 batch=4 label=NAME prompt=a.wav …]
    s4nd metrics checkpoint=out/run [part=test real=DATA]
    s4nd metrics generated=FOLDER classifier=out/digits_mel [checkpoint=out/run real=DATA seed=0 labels=none out=a.json]
    s4nd page real=DATA generated=FOLDER[,FOLDER …] out=page.html [count=6 seconds=8]
    python -m s4nd.audio.export checkpoint=out/sashimi [out=sashimi.onnx]

Every command returns its exit status: 2 for bad input, 130 when it was interrupted. `--help` lists its options.
"""

import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from s4nd.cli import Program
from s4nd.files import write_atomically
from s4nd.options import MISSING, option
from s4nd.training.checkpoint import find_weights, results_folder

from .generation.generator import Generator, check_fits, class_numbers, load_generator, stream
from .generation.sampling import Sampling, samples_in
from .io import SUFFIXES, audio_info, check_writable, read_audio, write_audio, write_spectrogram

# Seconds of work between two writes of an unfinished clip.
WRITE_EVERY = 30.0


@dataclass
class GenerateOptions(Sampling):
    """The options of `generate`; several labels stand with commas between them, one for each clip."""

    checkpoint: str = option('sashimi.piano', 'folder of a run, a .safetensors file, or the name of weights that ship')
    batch: int = option(1, 'number of clips', low=1, high=1 << 16)
    prompt_seconds: float | None = option(None, 'how much of the beginning of the prompt; null: all')
    out: str = option('', "sound file; empty: sample-<seed>.wav in the checkpoint's folder; a batch is numbered")
    device: str = option('cpu', 'where the model runs')


@dataclass
class MetricsOptions:
    """The options of `metrics`."""

    checkpoint: str | None = option(None, 'run of the model to measure, or that generated the clips')
    generated: str | None = option(None, 'folder of generated clips')
    classifier: str | None = option(None, 'run of a spectrogram classifier, or the name of one that ships')
    labels: str = option('none', "where the class of a generated file is written: its 'folder' or its 'name'")
    real: str | None = option(None, "where the run's data lies now, if not where it was")
    part: str | None = option(None, 'part of the data for the likelihood; null: test, and with generated: none')
    seed: int = option(0, 'of the halves of the IS and the pairs of the mIS')
    out: str | None = option(None, 'JSON file of the report')


@dataclass
class PageOptions:
    """The options of `page`."""

    real: str = option(MISSING, 'folder or tar of real recordings')
    generated: str = option(MISSING, 'folders of generated clips, with commas between them')
    out: str = option(MISSING, 'the HTML file')
    count: int = option(6, 'clips per column', low=1)
    seconds: float = option(8.0, 'longest time per clip')


@dataclass
class ExportOptions:
    """The options of `export`."""

    checkpoint: str = option(MISSING, 'folder of a run, or a .safetensors file')
    out: str = option('sashimi.onnx', 'the ONNX file')


def _generate(options: GenerateOptions) -> int:
    checkpoint = Path(options.checkpoint)
    folder = checkpoint if checkpoint.is_dir() else results_folder(find_weights(checkpoint))
    out = Path(options.out or folder / f'sample-{options.seed}.wav')
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f'out: cannot write {out.suffix!r}, expected one of {", ".join(SUFFIXES)}')
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device: {options.device!r} cannot be used: {str(error).splitlines()[0]}') from error
    source = load_generator(options.checkpoint, options.device)
    rate = source.sample_rate
    sampling = replace(options, label=options.label.split(',') if options.label else None)
    class_numbers(source, sampling.label, sampling.batch)
    check_fits(source, sampling)
    sampling = replace(sampling, prompt=read_prompt(options, rate))
    names = [out] if options.batch == 1 else [out.with_stem(f'{out.stem}-{i}') for i in range(options.batch)]
    for path in (*names, *(name.with_suffix('.png') for name in names)):
        if path.is_dir():
            raise ValueError(f'out: {path} is a folder, and a file is to be written there')
    prompted = 0 if sampling.prompt is None else sampling.prompt.shape[-1]
    check_writable(names[-1], rate, len(names) * (prompted + sampling.samples(rate)))
    pace = Pace()
    waves, interrupted = collect(source, sampling, names, pace)
    if waves is None:
        print('interrupted before the first sample: nothing written', file=sys.stderr)
        return 130
    made = waves.shape[1] - prompted
    speed = pace.speed(made)
    write(names, waves, rate)
    title = f'{checkpoint.name}: seed {options.seed}, temperature {options.temperature:g}, top-p {options.top_p:g}'
    for name, wave in zip(names, waves, strict=True):
        print(name)
        print(write_spectrogram(name.with_suffix('.png'), wave, rate, title=title))
    print(f'{speed * len(names):.0f} samples/s ({len(names)} × {speed:.0f}, each {speed / rate:.2f} times real time)')
    if interrupted:
        share = f'{made / rate:.2f} of {options.samples(rate) / rate:g} s'
        print(f'interrupted: {share} generated, and written as above', file=sys.stderr)
    return 130 if interrupted else 0


class Pace:
    """Samples per second, without the first block where there are more: it may have compiled the loop."""

    def __init__(self) -> None:
        self.marks = [(0, time.perf_counter())]

    def speed(self, done: int) -> float:
        first, start = next(mark for mark in reversed(self.marks) if mark[0] < done)
        return (done - first) / max(time.perf_counter() - start, 1e-9)


def collect(source: Generator, sampling: Sampling, names: Sequence[Path], pace: Pace) -> tuple[Tensor | None, bool]:
    """Generate waveforms (batch, samples), None for none, and say whether the work was interrupted."""
    blocks: list[Tensor] = []
    written = time.perf_counter()
    interrupted, rate = False, source.sample_rate
    title = f'{sampling.samples(rate) / rate:g} s at {rate} Hz'
    unit = ' samples' if source.quantizer is not None else ' steps'
    with tqdm(desc=title, mininterval=0.5 if sys.stderr.isatty() else 10, unit=unit) as bar, terminable():

        def progress(done: int, total: int) -> None:
            if source.quantizer is not None and len(pace.marks) == 1:
                pace.marks.append((done, time.perf_counter()))
                bar.reset(total)
            elif source.quantizer is not None:
                bar.set_postfix_str(f'{pace.speed(done) / rate:.3g}× real time', refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        try:
            for block in stream(source, sampling, progress):
                blocks.append(block)
                if time.perf_counter() - written > WRITE_EVERY:
                    with suppress(OSError, ValueError):  # the end tries again, and elsewhere
                        for name, wave in zip(names, torch.cat(blocks, 1), strict=True):
                            write_audio(name, wave, rate)
                    written = time.perf_counter()
        except KeyboardInterrupt:
            interrupted = True
    return torch.cat(blocks, 1) if blocks else None, interrupted


def read_prompt(options: GenerateOptions, sample_rate: int) -> Tensor | None:
    """Read the recording to go on from, (T,) at `sample_rate`; print where it is resampled."""
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
    """Write each row of waves (batch, samples) to its file.

    Raises:
        OSError: they cannot be written; they are kept as WAV in the folder for temporary files, which it names.
    """
    try:
        for name, wave in zip(names, waves, strict=True):
            write_audio(name, wave, sample_rate)
    except (OSError, ValueError) as error:
        folder = Path(tempfile.mkdtemp(prefix='generated-'))
        for name, wave in zip(names, waves, strict=True):
            write_audio(folder / f'{name.stem}.wav', wave, sample_rate)
        raise OSError(f'{error}; what was generated is kept in {folder}') from error


@contextmanager
def terminable() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, as on Ctrl-C (in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _metrics(options: MetricsOptions) -> int:
    from .evaluation.metrics import evaluate, generated_bits, nll, table

    if options.checkpoint is None and options.generated is None:
        raise ValueError('give checkpoint=… (its bits per sample) or generated=… (metrics of a folder of clips)')
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    if options.generated is not None:
        if options.classifier is None:
            raise ValueError(
                'classifier must be given: a spectrogram classifier, such as the shipped spectrogram_classifier.digits'
            )
        bits = None
        if options.checkpoint is not None:
            bits = generated_bits(options.checkpoint, options.generated, options.labels)
        report = evaluate(options.generated, options.classifier, bits=bits, real=options.real, seed=options.seed)
        report['checkpoint'] = options.checkpoint
        print(table(report))
    if options.checkpoint is not None and (options.generated is None or options.part is not None):
        real = None if options.generated is not None else options.real
        found = report['nll'] = nll(options.checkpoint, options.part or 'test', real)
        print(f'{found["checkpoint"]}: {found["bits"]:.4f} bits per sample on {found["clips"]} {found["part"]} clips')
    if options.out is not None:
        write_atomically(
            options.out, lambda path: path.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        )
    return 0


def _page(options: PageOptions) -> int:
    from .evaluation.page import write_page

    torch.set_num_threads(1)
    folders = options.generated.split(',')
    print(write_page(options.out, options.real, folders, count=options.count, seconds=options.seconds))
    return 0


def _export(options: ExportOptions) -> int:
    from s4nd.interop import onnx

    onnx.check_suffix(options.out)
    onnx.show(export_checkpoint(options.checkpoint, options.out))
    return 0


def export_checkpoint(checkpoint: str, out: str) -> dict[str, float]:
    """Write the step of a SaShiMi as ONNX; returns the file and its worst relative error.

    Raises:
        ValueError: the checkpoint holds another model.
        ExportError: the graph does not compute what the model computes.
    """
    from s4nd.training.checkpoint import find_weights, read_metadata

    from .models.onnx import export_step
    from .models.sashimi import SaShiMi

    model = load_generator(checkpoint).model
    if not isinstance(model, SaShiMi):
        raise ValueError(f'{checkpoint} holds a {type(model).__name__}, which has no step: expected a SaShiMi')
    return {out: export_step(model, out, read_metadata(find_weights(checkpoint)))}


generate = Program(
    _generate,
    GenerateOptions,
    """Generate sound, each clip with a picture of its spectrogram (.png).

s4nd generate seconds=2 out=piano.wav
s4nd generate seconds=1 batch=4 checkpoint=out/my_run out=clips/a.wav

In long runs, and when it is interrupted (Ctrl-C, SIGTERM), what there is so far is written as well, as whole files.
The speed is printed at the end.""",
)
metrics = Program(
    _metrics,
    MetricsOptions,
    """Measure a model of sound in bits per sample, or generated clips.

s4nd metrics checkpoint=out/my_run
s4nd metrics generated=clips classifier=spectrogram_classifier.digits real=recordings

`checkpoint` alone measures the likelihood of recordings. `generated` measures FID, IS, mIS, AM and accuracy of a folder
of clips by a `classifier`.""",
)
page = Program(
    _page,
    PageOptions,
    """Write a page to listen to real clips beside generated ones.

s4nd page real=recordings generated=clips out=page.html

The HTML file holds sounds and spectrograms, and needs no other file.""",
)
export = Program(
    _export,
    ExportOptions,
    """Write SaShiMi's step as ONNX.

The exit code is 1 if the model cannot be exported, and no file is written then.""",
)
