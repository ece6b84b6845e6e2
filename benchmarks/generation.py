"""How fast does SaShiMi generate? The compiled loop against the plain one, at batch 1 and 8, published size (4.76 M).

The ways are run in turn, several rounds in one process; a ratio is one of medians over the rounds. Threads: as many as
the process may use cores for the compiled loop (a row of the batch is the unit), one for the plain loop, which several
make slower. The time to the first sample is taken in fresh processes: with nothing compiled yet, and once it is.

    python benchmarks/generation.py [small=true] [checkpoint=RUN] [out=out/generation]

checkpoint=RUN adds the number of passes that a parallel fixed-point sampler needs on that trained model.
Prints the table and writes generation.json and generation.png.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from audio.generation import load_generator
from audio.generation.engine import Engine
from audio.generation.sampling import EagerLoop, draw
from audio.models.sashimi import SaShiMi
from s4nd import pictures
from s4nd.files import write_atomically

SIZES = {'published': {}, 'small': {'d_model': 16, 'n_layers': 2, 'd_state': 16}}
BATCHES = (1, 8)
ROUNDS = 9
STEPS = {'eager': 32, 'compiled': 512}
RATE = 16000
FIRST = """
import sys, time, numpy, torch
from audio import SaShiMi
model = SaShiMi(8, **{args!r}).eval()
start = time.perf_counter()
from audio.generation.engine import Engine
Engine(model).sample(torch.tensor([128]), numpy.zeros((1, 1)))
print(time.perf_counter() - start)
"""


def speeds(model: SaShiMi, batch: int, ways: dict[str, Callable[[SaShiMi, int], Any]]) -> dict[str, dict[str, float]]:
    """Median samples per second (all rows together) of each way, over interleaved rounds, and seconds before them."""
    rng, samplers, found, before = np.random.default_rng(0), {}, {way: [] for way in ways}, {}
    first = torch.full((batch,), 128)
    for way, make in ways.items():
        start = time.perf_counter()
        samplers[way] = make(model, batch)
        samplers[way].sample(first, rng.random((batch, 2 * model.backbone.period)))
        before[way] = time.perf_counter() - start
    for _ in range(ROUNDS):
        for way, sampler in samplers.items():
            uniforms = rng.random((batch, STEPS[way]))
            start = time.perf_counter()
            sampler.sample(first, uniforms)
            found[way].append(uniforms.size / (time.perf_counter() - start))
    medians = {way: statistics.median(values) for way, values in found.items()}
    return {
        way: {
            'samples_per_second': value,
            'ratio_to_eager': value / medians['eager'],
            'times_real_time': value / batch / RATE,
            'fastest_round': max(found[way]),
            'seconds_before': before[way],
        }
        for way, value in medians.items()
    }


def first_sample(size: str) -> dict[str, float]:
    """Seconds from a built model to its first sample, with nothing compiled yet and in the next process."""
    code = FIRST.format(args=SIZES[size])
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {'NUMBA_CACHE_DIR': cache}
        runs = [
            subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
            for _ in range(2)
        ]
    return {name: float(run.stdout) for name, run in zip(('cold', 'warm'), runs, strict=True)}


@torch.no_grad()
def fixed_point_passes(model: SaShiMi, first: int, length: int = 1024, temperature: float = 1.0) -> int:
    """Passes until codes = draw(model(codes)) holds for fixed uniform numbers (Jacobi iteration), from silence.

    A pass is a forward over the whole window; after k passes the first k codes are final.
    """
    uniform = torch.from_numpy(np.random.default_rng((0, 0)).random(length, np.float32)).double()
    codes = torch.full((1, length), first)
    for done in range(1, length + 1):
        logits = model(torch.nn.functional.pad(codes[:, :-1], (1, 0), value=first))[0]
        drawn = draw(logits, uniform, temperature)[None]
        if torch.equal(drawn, codes):
            return done
        codes = drawn
    return length


def picture(rows: list[dict[str, Any]]) -> Figure:
    figure = pictures.figure(3.6)
    axis = figure.subplots()
    names = [f'{row["way"]}, batch {row["batch"]}' for row in rows]
    bars = axis.barh(names, [row['samples_per_second'] for row in rows])
    axis.bar_label(bars, [f'{row["samples_per_second"]:.0f} ({row["ratio_to_eager"]:.1f}×)' for row in rows], padding=3)
    axis.axvline(RATE, color=pictures.ink(), linewidth=0.8, linestyle='--')
    axis.set_xscale('log')
    axis.margins(x=0.25)
    axis.set_xlabel(f'samples per second, all rows together (dashed: {RATE})')
    axis.invert_yaxis()
    return figure


def main(out: Path, size: str, checkpoint: str | None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SaShiMi(8, **SIZES[size]).eval()
    ways: dict[str, Callable[[SaShiMi, int], Any]] = {'eager': EagerLoop, 'compiled': Engine}
    report: dict[str, Any] = {'size': size, 'parameters': sum(p.numel() for p in model.parameters())}
    report['first_sample_seconds'] = first_sample(size)
    report['rows'] = rows = []
    print(f'{"way":>14}{"batch":>7}{"samples/s":>11}{"ratio":>8}{"real time":>11}{"seconds before":>16}')
    for batch in BATCHES:
        for way, row in speeds(model, batch, ways).items():
            rows.append({'way': way, 'batch': batch, **row})
            print(
                f'{way:>14}{batch:>7}{row["samples_per_second"]:>11.0f}{row["ratio_to_eager"]:>8.1f}'
                f'{row["times_real_time"]:>11.3f}{row["seconds_before"]:>16.1f}'
            )
    cold, warm = report['first_sample_seconds'].values()
    print(f'\nfirst sample: {cold:.1f} s with the compiler at work, {warm:.1f} s afterwards')
    if checkpoint is not None:
        source = load_generator(checkpoint)
        passes = {t: fixed_point_passes(source.model, source.quantizer.zero_code, temperature=t) for t in (1.0, 0.5)}
        report['fixed_point_passes_of_1024'] = passes
        print(', '.join(f'temperature {t:g}: {n} passes for 1024 samples' for t, n in passes.items()))
    write_atomically(
        out / 'generation.json', lambda path: path.write_text(json.dumps(report, indent=1), encoding='utf-8')
    )
    pictures.write(out / 'generation.png', lambda: picture(rows), dark=True)
    print(f'\nwritten to {out}')


if __name__ == '__main__':
    options = {'small': 'false', 'out': 'out/generation', 'checkpoint': ''}
    options |= dict(argument.split('=', 1) for argument in sys.argv[1:])
    if len(options) > 3 or options['small'] not in ('true', 'false'):
        sys.exit(f'expected small=true, checkpoint=RUN or out=FOLDER, got {sys.argv[1:]}')
    size = 'small' if options['small'] == 'true' else 'published'
    main(Path(options['out']), size, options['checkpoint'] or None)
