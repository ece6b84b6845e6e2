"""What the models of benchmarks/audio_models.py have learned to say: generated digits, and their metrics.

    python benchmarks/audio_samples.py classifier=out/digits_mel [models=out/audio_models/digits clips=256 seed=0]

Each model that was trained on the digits generates `clips` clips as long as its training clips, all at once; they are
written to <model>/clips and scored by audio.metrics. Prints the table, writes audio_samples.json beside the models.
Speeds are in time of one core.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wavenet import WaveNet

from audio import Generator, Quantizer, generate
from audio.evaluation.metrics import bits_of_clips, evaluate, table
from audio.generation.sampling import draw
from audio.io import write_audio
from audio.models import build_model
from s4nd.files import write_atomically
from s4nd.training.checkpoint import find_weights, load_weights, read_metadata
from s4nd.training.config import load_config


def main(words: list[str]) -> None:
    options = {'models': 'out/audio_models/digits', 'clips': '256', 'seed': '0'}
    options |= dict(word.split('=', 1) for word in words)
    unknown = options.keys() - {'models', 'clips', 'seed', 'classifier'}
    if unknown or 'classifier' not in options:
        sys.exit(f'expected classifier=RUN and models=, clips=, seed=, got {words}')
    torch.set_num_threads(1)
    root, reports = Path(options['models']), {}
    for run in sorted(path.parent for path in root.glob('*/report.json')):
        reports[run.name] = report = score(run, options['classifier'], int(options['clips']), int(options['seed']))
        print(f'\n{run.name}: {report["samples_per_second"]:.0f} samples/s\n{table(report)}', flush=True)
        write_atomically(
            root / 'audio_samples.json', lambda path: path.write_text(json.dumps(reports, indent=1), encoding='utf-8')
        )


@torch.no_grad()
def score(run: Path, classifier: str, clips: int, seed: int) -> dict[str, Any]:
    """Generate, write and score the clips of one model."""
    metadata = read_metadata(find_weights(run))
    quantizer, rate = Quantizer.from_json(metadata['quantizer']), int(metadata['sample_rate'])
    args = json.loads(metadata['args'])
    model = WaveNet(quantizer.bits, **args) if metadata['model'] == 'wavenet' else build_model('sashimi', args)
    load_weights(find_weights(run), model.eval(), metadata['model'])
    length = load_config(run / 'config.yaml').data.clip_samples
    start = time.process_time()
    if isinstance(model, WaveNet):
        codes = sample(model, clips, length, quantizer.zero_code, seed)
    else:
        codes = quantizer.encode(generate(Generator(model, quantizer, rate), length=length, batch=clips, seed=seed))
    seconds = time.process_time() - start
    for i, wave in enumerate(quantizer.decode(codes)):
        write_audio(run / 'clips' / f'{i:04}.wav', wave, rate)
    report = evaluate(run / 'clips', classifier, bits=bits_of_clips(model, codes, quantizer.zero_code), seed=seed)
    return report | {'samples_per_second': codes.numel() / seconds, 'generation_seed': seed}


def sample(model: WaveNet, batch: int, length: int, first: int, seed: int) -> Tensor:
    """Codes (batch, length), drawn at temperature 1 by the loop over `step`."""
    random, state = np.random.default_rng(seed), model.init_state(batch)
    code, codes = torch.full((batch,), first), torch.empty(batch, length, dtype=torch.int64)
    for i in range(length):
        codes[:, i] = code = draw(model.step(code, state), torch.from_numpy(random.random(batch, np.float32)))
    return codes


if __name__ == '__main__':
    main(sys.argv[1:])
