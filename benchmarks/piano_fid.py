"""How near are clips of the piano model that ships to real ones, by Fréchet distance?

    s4nd generate seconds=0.5 batch=200 temperature=0.9 out=clips/a.wav
    python benchmarks/piano_fid.py real=FOLDER generated=clips [seed=0]

`real` is a folder of FLAC files, split 88/6/6 in time as in training. Distances are to 1,000 windows of half a second
of the training part, of 200 clips each: the generated ones, windows of the other parts, and noise. The features are
those of the classifier of spoken digits that ships (8 kHz). They rank sounds, and do not compare with published
figures. Pieces have no classes, so IS, mIS and AM are not defined.
"""

import sys
from pathlib import Path

import torch
from common import options, table
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import resample

from s4nd.audio.evaluation.metrics import fid, load_classifier, see
from s4nd.audio.io import read_audio

RATE, SAMPLES = 8000, 8000  # of the classifier
PARTS = {'training': (0.0, 0.88), 'validation': (0.88, 0.94), 'test': (0.94, 1.0)}


def prepared(wave: Tensor, rate: int) -> Tensor:
    """Half a second at the classifier's rate, its peak 1, filled up with silence."""
    wave = resample(wave, rate, RATE)
    wave = wave / wave.abs().max().clamp_min(1e-3)
    return F.pad(wave, (0, max(0, SAMPLES - len(wave))))[:SAMPLES]


def windows(pieces: list[tuple[Tensor, int]], part: tuple[float, float], count: int, seed: int) -> list[Tensor]:
    """Windows of half a second at random places of a part, from each piece in turn."""
    random, found = torch.Generator().manual_seed(seed), []
    for number in range(count):
        wave, rate = pieces[number % len(pieces)]
        first, last = (int(share * len(wave)) for share in part)
        start = int(torch.randint(first, last - rate // 2, (1,), generator=random))
        found.append(prepared(wave[start : start + rate // 2], rate))
    return found


def main(real: Path, generated: Path, seed: int) -> None:
    """Measure and print."""
    pieces = [read_audio(path) for path in sorted(real.rglob('*.flac'))]
    clips = [prepared(*read_audio(path)) for path in sorted(generated.glob('*.wav'))]
    if not (pieces and clips):
        sys.exit(f'expected FLAC files in {real} and WAV files in {generated}')
    classifier = load_classifier('spectrogram_classifier.digits')
    reference = see(classifier, windows(pieces, PARTS['training'], 1000, seed)).features
    noise = torch.randn(200, SAMPLES, generator=torch.Generator().manual_seed(seed))
    sounds = {f'real, {part}': windows(pieces, PARTS[part], 200, seed + 1) for part in ('validation', 'test')}
    sounds |= {'generated': clips, 'noise': list(noise / noise.abs().amax(1, keepdim=True))}
    rows = [{'clips': n, 'FID': f'{fid(reference, see(classifier, s).features):.1f}'} for n, s in sounds.items()]
    print(table(rows))


if __name__ == '__main__':
    given = options({'real': '', 'generated': '', 'seed': '0'})
    main(Path(given['real']), Path(given['generated']), int(given['seed']))
