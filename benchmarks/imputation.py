"""Gaps in real sound, filled in: SSSD-S4, a convolutional DiffWave of equal size, and linear interpolation.

    python benchmarks/imputation.py piano=FOLDER digits=FOLDER [seeds=0,1 models=sssd-s4,diffwave updates=700 …]
        [lr=0.005 ssm_lr=0.001 dt_min=0.001 dt_max=0.1 predicts=signal freeze=true samples=5 steps=6 clips=100
         out=out/imputation]
    python benchmarks/imputation.py small=true out=out/ci-imputation      # embedded melodies, a few updates: it runs

Clips of 256 samples at 4 kHz, scaled to unit variance, near-silent ones left out. One training a model and seed, on all
masks of MASKS in turn, the same recipe and number of updates for both models; then each mask on the test clips, the
estimate being the mean of several samples. What is done is not done again. Prints squared and absolute errors on the
missing part, in times of the clip's variance, and writes imputation.json and imputation.png, where three gaps are
filled. Training times are of one core.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import options, save, setup, table
from matplotlib.figure import Figure
from torch import Tensor, nn

from audio.data.parts import folder_parts
from audio.data.plucked import PluckedClips
from s4nd import pictures
from s4nd.data import blackout, future, random_missing
from s4nd.data.series.sets import SeriesData
from s4nd.files import write_atomically
from s4nd.models.sssd import SSSDS4, Imputer, gated_output, impute
from s4nd.tasks.series import SeriesConfig, SeriesEval, SeriesTask
from s4nd.training.checkpoint import load_weights
from s4nd.training.config import ModelConfig, OptimConfig
from s4nd.training.loop import fit

RATE, LENGTH, BATCH = 4000, 256, 16
MASKS = {
    'random 50 %': partial(random_missing, share=0.5),
    'gap of 16': partial(blackout, length=16),
    'forecast of 16': partial(future, length=16),
}
DEFAULTS = {
    'piano': '',
    'digits': '',
    'models': 'sssd-s4,diffwave',
    'seeds': '0,1',
    'updates': '700',
    'lr': '0.005',
    'ssm_lr': '0.001',
    'dt_min': '0.001',
    'dt_max': '0.1',
    'predicts': 'signal',
    'freeze': 'true',
    'clips': '100',
    'samples': '5',
    'steps': '6',
    'small': 'false',
    'out': 'out/imputation',
}
SIZE = {'d_model': 24, 'n_layers': 3, 'condition': 128}
D_STATE = 32


class DilatedBlock(nn.Module):
    """DiffWave's residual block (arXiv 2009.09761, figure 2), conditioned as SSSD-S4's is: one dilated convolution of
    width 3 in the place of a convolution and two S4."""

    def __init__(self, channels: int, d_model: int, condition: int, dilation: int) -> None:
        super().__init__()
        self.condition = nn.Linear(condition, d_model)
        self.conv = nn.Conv1d(d_model, 2 * d_model, 3, padding=dilation, dilation=dilation)
        self.known = nn.Linear(2 * channels, 2 * d_model)
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, known: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.condition(condition)[:, None]  # (B, L, H)
        y = self.conv(y.transpose(1, 2)).transpose(1, 2)
        return gated_output(x, y + self.known(known), self.out)


class DiffWave(Imputer):
    """The skeleton of SSSD-S4 with dilations 1, 2, 4 … 2**(n_layers - 1)."""

    def __init__(
        self, channels: int, d_model: int, n_layers: int, *, condition: int, diffusion: Mapping[str, Any]
    ) -> None:
        blocks = (DilatedBlock(channels, d_model, condition, 2**i) for i in range(n_layers))
        super().__init__(channels, d_model, blocks, condition=condition, diffusion=diffusion)


def matched_width(parameters: int, channels: int, **args: Any) -> int:
    """The d_model of the DiffWave whose size is nearest to `parameters`."""

    def size(d_model: int) -> int:
        with torch.device('meta'):
            return parameters_of(DiffWave(channels, d_model, **args))

    below = next(d_model for d_model in count(1) if size(d_model + 1) > parameters)
    return min(below, below + 1, key=lambda d_model: abs(size(d_model) - parameters))


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_model(name: str, chosen: dict[str, str]) -> tuple[Imputer, dict[str, Any]]:
    """A model and its keywords; the DiffWave sees the whole clip and is as large as the SSSD-S4."""
    diffusion = {'predicts': chosen['predicts']}
    mixer = {'d_state': D_STATE, 'dt_min': float(chosen['dt_min']), 'dt_max': float(chosen['dt_max'])}
    args: dict[str, Any] = {**SIZE, 'mixer_args': mixer, 'diffusion': diffusion}
    model = SSSDS4(1, **args)
    if name == 'sssd-s4':
        args['freeze'] = chosen['freeze'] == 'true'
        return SSSDS4(1, **args), args
    args = {'n_layers': round(math.log2(LENGTH)), 'condition': SIZE['condition'], 'diffusion': diffusion}
    args['d_model'] = matched_width(parameters_of(model), 1, **args)
    return DiffWave(1, **args), args


def series(data: str, root: str, clips: int) -> dict[str, Tensor]:
    """(N, 1, LENGTH) for each part: up to 6,000 training clips and `clips` of the others, evenly spaced."""
    if data == 'plucked':
        parts = {part: PluckedClips(64 if part == 'train' else clips, LENGTH, RATE, i) for i, part in enumerate(PARTS)}
    else:
        split = 'digits' if data == 'digits' else 'time'
        parts = folder_parts(root, LENGTH, RATE, split=split, normalize='peak')
    return {part: _scaled(found, 6000 if part == 'train' else clips) for part, found in parts.items()}


PARTS = ('train', 'val', 'test')
QUIET = 0.02  # of the file's peak


def _scaled(clips: Any, most: int) -> Tensor:
    waves = torch.stack([clips[i] for i in range(len(clips))])
    waves = waves[waves.std(1) > QUIET]
    most = min(most, len(waves))
    waves = waves[[i * len(waves) // most for i in range(most)]]
    return ((waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True))[:, None]


def interpolated(values: Tensor, mask: Tensor) -> Tensor:
    """Straight lines between observed samples, constant before the first and after the last: (B, C, L)."""
    time_axis = np.arange(values.shape[-1])
    rows = zip(values.flatten(0, 1).numpy(), mask.flatten(0, 1).numpy(), strict=True)
    return torch.tensor(np.stack([np.interp(time_axis, time_axis[m], v[m]) for v, m in rows])).view_as(values).float()


def train(
    name: str, parts: dict[str, Tensor], seed: int, chosen: dict[str, str], out: Path
) -> tuple[Imputer, dict[str, Any]]:
    """A trained model and what it took."""
    updates = int(chosen['updates'])
    torch.manual_seed(seed)
    model, args = make_model(name, chosen)
    config = SeriesConfig(
        seed=seed,
        epochs=updates,
        max_steps=updates,
        device='cpu',
        threads=1,
        model=ModelConfig(name=name, args=args),
        optim=OptimConfig(
            lr=float(chosen['lr']), ssm_lr=float(chosen['ssm_lr']), weight_decay=0.0, warmup_epochs=0.2, clip_grad=1.0
        ),
        data=SeriesData(batch_size=BATCH),
        eval=SeriesEval(every=updates),
    )
    task = SeriesTask(config, parts, MASKS)
    start = time.process_time()
    summary = fit(model, task, config, out)
    last = summary['history'][-1]
    row = {
        'parameters': parameters_of(model),
        'updates': summary['updates'],
        'core_seconds': time.process_time() - start,
    }
    return model, row | {'loss': last['loss'], 'val_loss': last['val_loss']}


def estimate(model: Imputer, values: Tensor, mask: Tensor, samples: int, steps: int) -> Tensor:
    """The mean of several draws."""
    return torch.stack([impute(model, values, mask, seed=seed, steps=steps) for seed in range(samples)]).mean(0)


def held_out_masks(values: Tensor) -> dict[str, Tensor]:
    """One mask of each kind, the same for every model."""
    return {name: draw(values.shape, torch.Generator().manual_seed(0)) for name, draw in MASKS.items()}


def errors(found: Tensor, values: Tensor, mask: Tensor) -> dict[str, float]:
    difference = (found - values)[~mask]
    return {'MSE': float(difference.square().mean()), 'MAE': float(difference.abs().mean())}


def report_of(name: str, seed: int, parts: dict[str, Tensor], chosen: dict[str, str], out: Path) -> dict[str, Any]:
    """Train and measure one model, or read the report where that is done."""
    if not (out / 'report.json').is_file():
        model, row = train(name, parts, seed, chosen, out)
        test, samples, steps = parts['test'], int(chosen['samples']), int(chosen['steps'])
        row['results'] = {
            name: errors(estimate(model, test, mask, samples, steps), test, mask)
            for name, mask in held_out_masks(test).items()
        }
        write_atomically(out / 'report.json', lambda path: path.write_text(json.dumps(row, indent=1), encoding='utf-8'))
    return json.loads((out / 'report.json').read_text(encoding='utf-8'))


def picture(values: Tensor, mask: Tensor, draws: list[Tensor]) -> Figure:
    """Three gaps of 16 samples: the clip, a straight line, and five draws."""
    line = interpolated(values, mask)
    ms = torch.arange(values.shape[-1]) / (RATE / 1000)
    figure = pictures.figure(6)
    axes = figure.subplots(3, 1, sharey=True)
    for axis, row in zip(axes, range(0, len(values), -(-len(values) // 3)), strict=False):
        gap = (~mask[row, 0]).nonzero()[:, 0]
        first, last = int(gap[0]), int(gap[-1])
        shown = slice(max(0, first - 32), last + 33)
        inside = slice(max(0, first - 1), last + 2)  # with the sample before and that after, where there is one
        axis.axvspan(ms[first] - 0.125, ms[last] + 0.125, color=pictures.faint(), alpha=0.5, linewidth=0)
        axis.plot(ms[shown], values[row, 0, shown], color=pictures.ink(), linewidth=1.5, label='the clip')
        for draw in draws:
            axis.plot(ms[inside], draw[row, 0, inside], 'C1', linewidth=1, alpha=0.7, label='five draws of SSSD-S4')
        axis.plot(ms[inside], line[row, 0, inside], 'C0', linestyle='--', linewidth=1.4, label='a straight line')
        axis.set_ylabel('amplitude')
        axis.margins(x=0.01)
    pictures.legend(figure, axes[:1])
    axes[-1].set_xlabel('time in the clip (ms); the gap is gray')
    return figure


def row_of(data: str, model: str, report: dict[str, Any]) -> dict[str, Any]:
    row = {'data': data, 'model': model, 'parameters': report['parameters'], 'core s': round(report['core_seconds'])}
    for mask, result in report['results'].items():
        row |= {f'{mask}: {metric}': value for metric, value in result.items()}
    return row


def main(chosen: dict[str, str]) -> None:
    measured, out = setup('1', 'cpu'), Path(chosen['out'])
    roots = {data: chosen[data] for data in ('piano', 'digits') if chosen[data]}
    if chosen['small'] == 'true':
        roots = {'plucked': ''}
        chosen = {**chosen, 'seeds': '0', 'updates': '4', 'clips': '4', 'samples': '2', 'steps': '2'}
    if not roots:
        sys.exit('nothing to impute: give piano=FOLDER or digits=FOLDER, or small=true')
    rows = []
    for data, root in roots.items():
        parts = series(data, root, int(chosen['clips']))
        test = parts['test']
        results = {name: errors(interpolated(test, mask), test, mask) for name, mask in held_out_masks(test).items()}
        rows.append(row_of(data, 'linear', {'parameters': 0, 'core_seconds': 0, 'results': results}))
        for name in chosen['models'].split(','):
            for seed in chosen['seeds'].split(','):
                found = report_of(name, int(seed), parts, chosen, out / data / f'{name}-{seed}')
                rows.append(row_of(data, f'{name}, seed {seed}', found))
                print(f'\n{table(rows)}', flush=True)
    figure = None
    if 'sssd-s4' in chosen['models'].split(','):
        data, seed = next(iter(roots)), chosen['seeds'].split(',')[0]
        model, _ = make_model('sssd-s4', chosen)
        load_weights(out / data / f'sssd-s4-{seed}' / 'last.safetensors', model, 'sssd-s4')
        test = series(data, roots[data], int(chosen['clips']))['test']
        mask, steps = held_out_masks(test)['gap of 16'], int(chosen['steps'])
        draws = [impute(model.eval(), test, mask, seed=seed, steps=steps) for seed in range(5)]
        figure = partial(picture, test, mask, draws)
    save(chosen['out'], 'imputation', measured, rows, figure)


if __name__ == '__main__':
    main(options(DEFAULTS))
