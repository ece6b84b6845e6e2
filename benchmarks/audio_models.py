"""SaShiMi, its variants and a WaveNet of equal size on piano and spoken digits: one recipe, one budget, one table.

    python benchmarks/audio_models.py piano=FOLDER digits=FOLDER [runs=piano/sashimi,piano/wavenet out=out/audio_models]
        [max_steps=… optim.lr=… …]

The recipes are configs/audio/sashimi_{piano,digits}_small.yaml; further key=value words change them for all runs. Each
run trains through s4nd.training.fit as train.py does and leaves its weights and a report in out/<data>/<model>. What
is done is not done again, and an interrupted run goes on after its last epoch. Prints the table of all reports found,
writes audio_models.json and audio_models.png. Speeds are in time of one core, whatever else the machine does.
"""

import json
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import nn
from wavenet import WaveNet, matched_args

from audio import SaShiMi
from audio.tasks import AudioConfig, AutoregressiveTask, build
from s4nd import pictures
from s4nd.files import write_atomically
from s4nd.training.config import load_config
from s4nd.training.loop import fit, make_accelerator
from s4nd.training.report import write_report

mpl.use('Agg')

CONFIGS = Path(__file__).parents[1] / 'configs' / 'audio'
SMALL = ('model.args.n_layers=2',)
# Model -> what it changes in the recipe. A WaveNet takes the size of the SaShiMi that the recipe describes.
MODELS: dict[str, tuple[str, ...]] = {
    'sashimi': (),
    'wavenet': (),
    'sashimi-2': SMALL,
    's4d-inv-2': (*SMALL, 'model.args.init=inv'),
    's4d-legs-2': (*SMALL, 'model.args.init=legs'),
    'dplr-legs-2': (*SMALL, 'model.args.kernel=s4', 'model.args.init=legs'),
}
RUNS = ('piano/sashimi', 'piano/wavenet', 'digits/sashimi', 'digits/wavenet', 'piano/sashimi-2', 'digits/sashimi-2')
RUNS += ('piano/s4d-inv-2', 'piano/s4d-legs-2', 'piano/dplr-legs-2')
STEPS, REPEATS = 400, 7  # timed: samples of the plain step loop, updates


def main(words: list[str]) -> None:
    options = dict(word.split('=', 1) for word in words)
    folders = {name: options.pop(name) for name in ('piano', 'digits') if name in options}
    out = Path(options.pop('out', 'out/audio_models'))
    wanted = options.pop('runs', ','.join(RUNS)).split(',')
    unknown = [run for run in wanted if run not in RUNS]
    if unknown:
        sys.exit(f'unknown run {unknown[0]!r}: expected some of {", ".join(RUNS)}')
    for run in wanted:
        data, model = run.split('/')
        if not (out / run / 'report.json').is_file() and data in folders:
            overrides = [*MODELS[model], f'data.root={folders[data]}', *(f'{k}={v}' for k, v in options.items())]
            train(out / run, CONFIGS / f'sashimi_{data}_small.yaml', overrides)
    reports = [out / run / 'report.json' for run in RUNS]
    rows = [json.loads(report.read_text(encoding='utf-8')) for report in reports if report.is_file()]
    if not rows:
        sys.exit('nothing to show: give piano=FOLDER or digits=FOLDER')
    show(rows)
    write_atomically(
        out / 'audio_models.json', lambda path: path.write_text(json.dumps(rows, indent=1), encoding='utf-8')
    )
    pictures.write(out / 'audio_models.png', lambda: picture(rows), dark=True)
    print(f'\nwritten to {out}')


def train(out: Path, recipe: Path, overrides: list[str]) -> None:
    """Train one model, measure it and write its report."""
    config = load_config(recipe, [*overrides, f'out={out}', f'resume={str((out / "resume.pt").is_file()).lower()}'])
    accelerator = make_accelerator(config)
    model, task = prepare(config, out.name)
    summary = fit(model, task, config, out, accelerator)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    last = summary['history'][-1]
    report = {
        'label': f'{out.parent.name}/{out.name}',
        'model': config.model.name,
        'args': config.model.args,
        'parameters': parameters,
        'metric': 'test_nll',
        'results': {key: last[key] for key in ('val_nll', 'test_nll')},
        'clips': summary['updates'] * config.data.batch_size,
        'epoch_seconds': epoch_seconds(model, task),
        'eager_generation': eager_speed(model),
        'optim': {'lr': config.optim.lr, 'updates': summary['updates'], 'batch': config.data.batch_size},
        'seed': config.seed,
        'loss': last['loss'],
        'training': summary,
    }
    write_report(out, report)


def prepare(config: AudioConfig, name: str) -> tuple[nn.Module, AutoregressiveTask]:
    """Model and task; a WaveNet is made as large as the SaShiMi of the recipe."""
    model, task = build(config)
    if name == 'wavenet':
        size = sum(parameter.numel() for parameter in model.parameters())
        args = {**matched_args(size, config.data.bits), 'ordered': config.model.args.get('ordered', False)}
        config.model.name, config.model.args = 'wavenet', args
        task.model_args = args
        torch.manual_seed(config.seed)
        model = WaveNet(config.data.bits, **config.model.args)
    return model, task


def epoch_seconds(model: nn.Module, task: AutoregressiveTask) -> float:
    """Seconds of one core that forward and backward over all training clips take, from the median of `REPEATS`."""
    batches, seconds = task.train_batches(0), []
    for batch in islice(batches, REPEATS):
        start = time.process_time()
        task.loss(model.train(), batch).backward()
        seconds.append(time.process_time() - start)
    model.zero_grad()
    return len(batches) * median(seconds)


@torch.no_grad()
def eager_speed(model: SaShiMi | WaveNet) -> float:
    """Samples a second of one core in the plain loop over `step`, batch 1, without drawing."""
    model.eval()
    token, state, start = torch.zeros(1, dtype=torch.int64), model.init_state(1), 0.0
    system = model.system() if isinstance(model, SaShiMi) else None
    for i in range(STEPS + 50):
        if i == 50:
            start = time.process_time()
        if system is None:
            model.step(token, state)
        else:
            _, state = model.step(token, state, system, phase=i % model.backbone.period)
    return STEPS / (time.process_time() - start)


def show(rows: list[dict[str, Any]]) -> None:
    titles = {'parameters': 11, 'clips': 7, 'val NLL': 9, 'test NLL': 10, 's/epoch': 9, 'steps/s': 9, 'lr': 9}
    print(f'{"run":<20}' + ''.join(f'{title:>{width}}' for title, width in titles.items()))
    for row in rows:
        results, optim = row['results'], row['optim']
        print(
            f'{row["label"]:<20}{row["parameters"]:>11,}{row["clips"]:>7}{results["val_nll"]:>9.3f}'
            f'{results["test_nll"]:>10.3f}{row["epoch_seconds"]:>9.0f}{row["eager_generation"]:>9.0f}{optim["lr"]:>9.4g}'
        )


def picture(rows: list[dict[str, Any]]) -> Figure:
    """One bar per run: test NLL in bits per sample."""
    figure = pictures.figure(0.45 * len(rows) + 1)
    axes = figure.subplots()
    bars = axes.barh([row['label'] for row in rows], [row['results']['test_nll'] for row in rows])
    axes.bar_label(bars, fmt='%.3f', padding=3)
    axes.invert_yaxis()
    axes.set_xlabel('test NLL, bits per sample (lower is better)')
    axes.margins(x=0.1)
    return figure


if __name__ == '__main__':
    main(sys.argv[1:])
