"""Generate audio: `python -m audio.generate checkpoint=out/sashimi seconds=2 [seed=0 temperature=1 top_p=1 out=a.wav]`.

Writes the clip and, beside it, a picture of its spectrogram (.png).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from audio.generation import check_sampling, load_generator, sample_codes
from audio.io import SUFFIXES, write_audio, write_spectrogram


@dataclass
class Options:
    """The command's options, with their defaults."""

    checkpoint: str = MISSING  # a run's folder or a .safetensors file
    seconds: float = MISSING
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    out: str = ''  # the sound file; empty: sample-<seed>.wav in the checkpoint's folder
    device: str = 'cpu'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for bad input."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        audio, picture, rate = run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{audio}\n{picture}\n{rate:.0f} samples/s')
    return 0


def parse(arguments: Sequence[str]) -> Options:
    """Options from key=value words. Raises ValueError naming what is unknown, missing or of the wrong type."""
    schema = OmegaConf.structured(Options)
    known = [field.name for field in fields(Options)]
    for word in arguments:
        key = word.partition('=')[0]
        if '=' not in word or key not in known:
            raise ValueError(f'{word!r}: expected key=value with one of {", ".join(known)}')
    try:
        merged = OmegaConf.merge(schema, OmegaConf.from_dotlist(list(arguments)))
    except OmegaConfBaseException as error:
        raise ValueError(f'{error.full_key}: {str(error).splitlines()[0]}') from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f'{", ".join(missing)} must be given (checkpoint=… seconds=…)')
    return OmegaConf.to_object(merged)


def run(options: Options) -> tuple[Path, Path, float]:
    """Generate and write; returns the sound file, the picture and the speed in samples a second."""
    if not options.seconds > 0:
        raise ValueError(f'seconds must be positive, got {options.seconds}')
    check_sampling(1, options.temperature, options.top_p)
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
    length = max(1, round(options.seconds * source.sample_rate))
    label, interval = f'{options.seconds:g} s at {source.sample_rate} Hz', 0.5 if sys.stderr.isatty() else 10
    with tqdm(total=length, unit='samples', desc=label, mininterval=interval) as bar:
        codes = sample_codes(
            source.model,
            length,
            source.quantizer.zero_code,
            seed=options.seed,
            temperature=options.temperature,
            top_p=options.top_p,
            progress=lambda done: bar.update(1),
        )
        speed = length / max(bar.format_dict['elapsed'], 1e-9)
    wave = source.quantizer.decode(codes[0])
    title = f'{checkpoint.name}: seed {options.seed}, temperature {options.temperature:g}, top-p {options.top_p:g}'
    picture = write_spectrogram(out.with_suffix('.png'), wave, source.sample_rate, title=title)
    return write_audio(out, wave, source.sample_rate), picture, speed


if __name__ == '__main__':
    # One step is a few hundred tiny operations: handing each to several threads costs more than it saves.
    torch.set_num_threads(1)
    sys.exit(main())
