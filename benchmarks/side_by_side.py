"""Every kernel in the same two small models, trained with the same recipe and the same number of updates.

    python benchmarks/side_by_side.py digits=FOLDER fashion=FOLDER
        [kernels=s4d-lin,ema,… tasks=pixels,images,… seeds=0,1 budget=1.0 threads=1 out=out/side_by_side]

digits: the Free Spoken Digit Dataset (a folder or a tar); fashion: the folder of Fashion-MNIST's idx files. Each is
needed only by the tasks that use it. budget multiplies the number of updates. Every result is written to out as soon as
it is there and used again by a later start, which goes on with what is missing; the tables and the picture are made
from results of the same budget in out, whichever start made them.

Accuracy (%) on test data at the training resolution, and with the same weights at half and twice that: `pixels` has its
rows, `images` both sides resampled, `digits` the sample rate, `delay` the spacing. For `delay` it is the share of the
signal's variance that is explained. A step is one forward and backward of a batch in processor time, the least of
seven; memory (MB) is what the forward keeps for the backward.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from common import options, save, setup
from matplotlib.figure import Figure
from small_models import VARIANTS
from small_tasks import SETTINGS, Setting
from torch import Tensor, nn

from s4nd import pictures
from s4nd.files import write_atomically
from s4nd.training.config import ModelConfig, OptimConfig, RunConfig
from s4nd.training.loop import NonFiniteError, fit

DEFAULTS = {
    'digits': '',
    'fashion': '',
    'kernels': ','.join(VARIANTS),
    'tasks': ','.join(SETTINGS),
    'seeds': '0',
    'budget': '1.0',
    'threads': '1',
    'out': 'out/side_by_side',
}

# What is said of these kernels, and the pairs that tell: the first minus the second.
CLAIMS: dict[str, list[tuple[str, str]]] = {
    'a trained B beats a fixed one': [('s4d-lin', 's4d-lin-fixed-b'), ('s4-legs', 's4-legs-fixed-b')],
    'ZOH and bilinear are alike': [('s4d-lin', 's4d-lin-bilinear')],
    'inv and lin are as good as legs': [('s4d-inv', 's4d-legs'), ('s4d-lin', 's4d-legs')],
    'S4D is as good as S4': [('s4d-legs', 's4-legs')],
    'random is worse than what HiPPO gives': [('s4d-random', 's4d-legs'), ('s4d-random', 's4d-lin')],
}

Result = dict[str, Any]


def processor_seconds(run: Callable[[], object], rounds: int = 7) -> float:
    """Least processor time of `run`, which other processes disturb less than the clock; the first call warms up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def train(setting: Setting, name: str, seed: int, updates: int, root: str) -> Result:
    """Train the variant `name` on the task of `setting` and measure it at three resolutions; nan if it diverges."""
    task = setting.task(root, setting.batch, seed)
    set_seed(seed)
    model = VARIANTS[name].freeze(setting.model(VARIANTS[name]))
    per_epoch = len(task.train_batches(0))
    epochs = -(-updates // per_epoch)
    config = RunConfig(
        seed=seed,
        epochs=epochs,
        max_steps=updates,
        device='cpu',
        model=ModelConfig('side_by_side'),
        optim=OptimConfig(
            lr=4e-3, ssm_lr=1e-3, weight_decay=0.05, warmup_epochs=0.1 * updates / per_epoch, clip_grad=1.0
        ),
    )
    config.eval.every = epochs
    result = {'parameters': sum(p.numel() for p in model.parameters() if p.requires_grad)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            summary = fit(model, task, config, folder)
    except NonFiniteError as error:  # a result, too: the others shall go on
        return {**result, 'accuracy': [math.nan] * 3, 'error': str(error)}
    found = task.evaluate_at(model.eval(), torch.device('cpu'), setting.resolutions)
    accuracy = [value for key, value in found.items() if key.startswith('accuracy@')]
    return {**result, 'accuracy': accuracy, 'training seconds': summary['seconds']}


def memory(model: nn.Module, x: Tensor) -> float:
    """Bytes that the forward keeps for the backward, parameters and input aside."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)  # while it lives, what was kept lives, and no two of them have one address
    given = {tensor.untyped_storage().data_ptr() for tensor in [x, *model.parameters()]}
    del y
    return sum(size for address, size in sizes.items() if address not in given)


def costs(task: str, name: str) -> Result:
    """Time and memory of a step on one batch of noise."""
    setting = SETTINGS[task]
    torch.manual_seed(0)
    model = VARIANTS[name].freeze(setting.model(VARIANTS[name]))
    x = torch.randn(setting.batch, *setting.shape)
    seconds = processor_seconds(lambda: model(x).square().mean().backward())
    return {'ms per step': 1000 * seconds, 'MB': memory(model, x) / 1e6}


def kept(path: Path, make: Callable[[], Result], **about: object) -> Result:
    """The result in the file at `path` if it is about the same; otherwise a new one, which is written there."""
    if path.exists():
        result = json.loads(path.read_text(encoding='utf-8'))
        if {key: result.get(key) for key in about} == about:
            return result
    result = {**about, **make()}
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(result), encoding='utf-8'))
    return result


def updates_of(task: str, budget: float) -> int:
    return max(1, round(budget * SETTINGS[task].updates))


def read_results(out: Path, budget: float) -> list[Result]:
    """All results of training with this budget in `out`, in the order of the tasks, the variants and the seeds."""
    results = [json.loads(path.read_text(encoding='utf-8')) for path in (out / 'runs').glob('*.json')]
    tasks, kernels = list(SETTINGS), list(VARIANTS)
    results = [result for result in results if result['updates'] == updates_of(result['task'], budget)]
    return sorted(results, key=lambda r: (tasks.index(r['task']), kernels.index(r['kernel']), r['seed']))


def mean_rows(results: Sequence[Result], out: Path) -> list[Result]:
    """One row a task and kernel: means over the seeds, and the costs, measured where they are not yet known."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result['task'], result['kernel']), []).append(result)
    rows = []
    for (task, kernel), group in groups.items():
        accuracy = (statistics.mean(values) for values in zip(*(r['accuracy'] for r in group), strict=True))
        cost = kept(out / 'costs' / f'{task}_{kernel}.json', lambda at=(task, kernel): costs(*at))
        rows.append({
            'task': task, 'kernel': kernel, 'seeds': len(group), **dict(zip(('×½', '×1', '×2'), accuracy, strict=True)),
            **cost, 'parameters': group[0]['parameters'],
        })  # fmt: skip
    return rows


def tables(rows: Sequence[Result]) -> str:
    """One table a task, in Markdown."""
    text = []
    for task in dict.fromkeys(row['task'] for row in rows):
        text += [f'**{SETTINGS[task].title}**', '']
        text += [
            '| kernel | ×½ | ×1 | ×2 | ms per step | MB | parameters | seeds |',
            '|---|---|---|---|---|---|---|---|',
        ]
        for row in rows:
            if row['task'] == task:
                accuracy = ' | '.join(f'{row[key]:.1f}' for key in ('×½', '×1', '×2'))
                costs = f'{row["ms per step"]:.0f} | {row["MB"]:.1f} | {row["parameters"]:,} | {row["seeds"]}'
                text.append(f'| `{row["kernel"]}` | {accuracy} | {costs} |')
        text.append('')
    return '\n'.join(text)


def claims(results: Sequence[Result]) -> str:
    """For each claim and pair, the difference in accuracy at the training resolution, seed by seed, in Markdown."""
    found = {(r['task'], r['kernel'], r['seed']): r['accuracy'][1] for r in results}
    tasks = list(dict.fromkeys(r['task'] for r in results))
    text = [f'| claim | pair | {" | ".join(tasks)} |', '|---|---|' + '---|' * len(tasks)]
    for claim, pairs in CLAIMS.items():
        for first, second in pairs:
            cells = []
            for task in tasks:
                seeds = sorted({seed for at, kernel, seed in found if at == task and kernel == first})
                both = [seed for seed in seeds if (task, second, seed) in found]
                cells.append(', '.join(f'{found[task, first, s] - found[task, second, s]:+.1f}' for s in both) or '–')
            text.append(f'| {claim} | `{first}` − `{second}` | {" | ".join(cells)} |')
    return '\n'.join(text) + '\n'


def draw(rows: Sequence[Result]) -> Figure:
    """One panel per task, one line per kernel: accuracy at half, the same and twice the resolution of training."""
    tasks = list(dict.fromkeys(row['task'] for row in rows))
    kernels = [name for name in VARIANTS if any(row['kernel'] == name for row in rows)]
    figure = pictures.figure(0.27 * len(kernels) + 1.4)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    marks = {'×½': ('v', 'C1'), '×2': ('^', 'C2'), '×1': ('o', 'C0')}
    for panel, task in zip(panels, tasks, strict=True):
        found = {row['kernel']: row for row in rows if row['task'] == task}
        for key, (marker, color) in marks.items():
            places = [kernels.index(name) for name in found]
            panel.scatter([row[key] for row in found.values()], places, marker=marker, color=color, label=key, s=28)
        panel.set_title(task)
        panel.set_xlabel('variance explained (%)' if task == 'delay' else 'accuracy (%)')
        panel.grid(axis='both')
    panels[0].set_yticks(range(len(kernels)), kernels)
    panels[0].invert_yaxis()
    pictures.legend(figure, panels[:1])
    return figure


def chosen_words(text: str, option: str, known: Mapping[str, object]) -> list[str]:
    """The names in `text`; exits with a message on one that is not known."""
    names = text.split(',')
    for name in names:
        if name not in known:
            sys.exit(f'{option}: unknown name {name!r}, expected some of {",".join(known)}')
    return names


def main() -> None:
    given = options(DEFAULTS)
    out, budget = Path(given['out']), float(given['budget'])
    tasks = chosen_words(given['tasks'], 'tasks', SETTINGS)
    kernels = chosen_words(given['kernels'], 'kernels', VARIANTS)
    missing = sorted({SETTINGS[task].data for task in tasks if SETTINGS[task].data and not given[SETTINGS[task].data]})
    if missing:
        sys.exit(f'{", ".join(missing)}: no data given, expected {" ".join(f"{name}=FOLDER" for name in missing)}')
    measured = setup(given['threads'], 'cpu')
    runs = [(seed, task, name) for seed in map(int, given['seeds'].split(',')) for task in tasks for name in kernels]
    for number, (seed, task, name) in enumerate(runs, 1):
        setting, updates = SETTINGS[task], updates_of(task, budget)
        result = kept(
            out / 'runs' / f'{task}_{name}_{seed}.json',
            partial(train, setting, name, seed, updates, given.get(setting.data, '')),
            task=task, kernel=name, seed=seed, updates=updates,
        )  # fmt: skip
        accuracy = ' '.join(f'{value:.1f}' for value in result['accuracy'])
        print(f'{number}/{len(runs)}  {task} {name} seed {seed}: {accuracy}', flush=True)
    results = read_results(out, budget)
    rows = mean_rows(results, out)
    text = f'{tables(rows)}\n{claims(results)}'
    print(f'\n{text}')
    write_atomically(out / 'side_by_side.md', lambda path: path.write_text(text, 'utf-8'))
    save(given['out'], 'side_by_side', measured, rows, lambda: draw(rows))


if __name__ == '__main__':
    main()
