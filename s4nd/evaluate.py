"""A checkpoint at many sizes, frame rates or sample rates: metrics and time per input, as a table and a picture.

s4nd evaluate checkpoint=out/my_run sizes=[8,16,32,24x40] data.root=/path/to/cifar10
s4nd evaluate checkpoint=s4nd_isotropic_mini.cifar10 sizes=[8,16,32] data.root=FOLDER

`checkpoint` is a weights file of `s4nd train`, the folder of a run (its best weights, else the last), or the name of
weights that ship, which `s4nd list` shows. Options of the section `eval` need no prefix: sizes=[8,16]. Every other
word is an option of the run's configuration, such as device=cpu or out=FOLDER.

With resample=true each point has a second row: the input is brought to the training point first, the model runs there,
and the time includes both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import s4nd
from s4nd.options import describe, option_names
from s4nd.tasks import Resampled, Task, make_task, task_class
from s4nd.training.checkpoint import (
    UNNAMED,
    CheckpointError,
    config_beside,
    find_weights,
    read_metadata,
    results_folder,
)
from s4nd.training.config import ConfigError, RunConfig, check_plain, load_config
from s4nd.training.loop import make_accelerator
from s4nd.training.report import table, write_report
from s4nd.words import split_words

__all__ = ['evaluate', 'help_text', 'main', 'time_per_input']

PATIENCE = 5.0  # seconds, for the passes that are timed at a point


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Evaluate the checkpoint that `arguments` name, write evaluation.json, .txt and .png, and return the report."""
    plain, words = split_words(arguments)
    given = dict(word.partition('=')[::2] for word in words)
    if 'checkpoint' not in given or plain:
        usage = '; s4nd evaluate --help shows how' if arguments else f':\n{__doc__}'
        raise ConfigError(f'expected checkpoint=… and key=value, got {" ".join(arguments) or "nothing"}{usage}')
    weights = find_weights(given['checkpoint'])
    config = _config(weights, [word for word in words if not word.startswith('checkpoint=')])
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    task = make_task(config)
    model = task.load_model(weights).to(accelerator.device)
    report = evaluate(task, model, accelerator, weights)
    report['training'] = {'checkpoint': str(weights)}
    _add_times(report, model, task, accelerator)
    if 'resampled' in report:
        _add_times(report['resampled'], Resampled(model, task), task, accelerator)
    if accelerator.is_main_process:
        out = Path(config.out) if 'out' in given else results_folder(weights)
        paths = write_report(out, report, 'evaluation')
        print('', *_count(task, report), table([report]), '', *paths, sep='\n')
    return report


def _count(task: Task, report: dict[str, Any]) -> list[str]:
    """A line that says how many examples were measured, where a task tells."""
    count = report.get('test_examples')
    if count is None:
        return []
    measured, total = count['measured'], count['total']
    if measured == total:
        return [f'{total} {task.examples} measured']
    return [f'{measured} of {total} {task.examples} measured; eval.limit=null measures all']


def help_text(arguments: Sequence[str]) -> str:
    """The module's text, and the options `eval` of the task that `arguments` (task=… or checkpoint=…) name."""
    given = dict(word.partition('=')[::2] for word in split_words(arguments)[1])
    name = given.get('task', 'image')
    if 'checkpoint' in given:
        name = _config(find_weights(given['checkpoint']), []).task
    schema = get_type_hints(task_class(name).Config)['eval']
    return (
        f'{__doc__}\nOptions of `eval` for the task {name} (checkpoint=… or task=… lists those of another):\n\n'
        f'{describe(schema)}\n\ns4nd train task={name} --help lists all others.'
    )


def evaluate(task: Task, model: nn.Module, accelerator: Accelerator, weights: str | Path) -> dict[str, Any]:
    """The report on a trained model, measured at all points of the task's axes.

    Args:
        weights: the file of the model's weights, whose metadata tell where the model was trained.
    """
    start = time.monotonic()
    metadata = read_metadata(weights)
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        results = task.evaluate_at(model, accelerator.device, _points(task))
        resampled = {}
        if task.config.eval.resample:
            found = task.evaluate_at(Resampled(model, task).eval(), accelerator.device, _points(task))
            resampled = {'resampled': {'results': found}}
    skipped = task.skipped
    return {
        'label': task.config.label,
        'model': task.config.model.name,
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'metric': task.monitor.partition('@')[0],
        'axes': {
            name: {'unit': axis.unit, 'trained': metadata.get(name, axis.trained), 'points': list(axis.points)}
            for name, axis in task.axes.items()
        },
        **task.notes(),
        'skipped_files': {'count': len(skipped), 'first': skipped[:10]},
        'results': results,
        **resampled,
        'evaluation_seconds': round(time.monotonic() - start, 1),
        'seed': task.config.seed,
        'versions': {'s4nd': s4nd.__version__, 'torch': torch.__version__, 'timm': timm.__version__},
    }


@torch.no_grad()
def time_per_input(
    model: nn.Module, task: Task, point: str, accelerator: Accelerator, repeats: int = 5
) -> float | None:
    """Milliseconds per input at `point`, in a forward pass of a batch: the median of `repeats` after a first one.

    There are fewer where they take more than PATIENCE together. None where the task has no inputs to measure with.
    """
    count = task.batch_size
    inputs = task.example(point, count)
    if inputs is None:
        return None
    inputs = inputs.to(accelerator.device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with accelerator.autocast():
            task.predict(model, inputs).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
        if len(seconds) > 1 and sum(seconds) > PATIENCE:
            break
    return 1000 * statistics.median(seconds[1:]) / count


def _add_times(entry: dict[str, Any], model: nn.Module, task: Task, accelerator: Accelerator) -> None:
    times = {point: time_per_input(model, task, point, accelerator) for point in _points(task)}
    if None not in times.values() and times:
        entry['milliseconds'] = times


def _points(task: Task) -> list[str]:
    return [point for axis in task.axes.values() for point in axis.points]


def _config(weights: Path, words: Sequence[str]) -> RunConfig:
    """The configuration beside the weights; where there is none, what the weights imply, and the words."""
    path, implied = config_beside(weights), list[str]()
    if path is None:
        metadata = read_metadata(weights)
        if 'model' not in metadata:
            raise CheckpointError(f'{weights} {UNNAMED}')
        name = metadata.get('task', 'image')
        implied = [f'task={name}', f'model.name={metadata["model"]}', *task_class(name).words_from(metadata)]
        check_plain(str(weights), implied)
    task = load_config(path, [*implied]).task
    known = set(option_names(task_class(task).Config))
    words = [f'eval.{word}' if _belongs_to_eval(word.partition('=')[0], known) else word for word in words]
    return load_config(path, [*implied, *words, 'eval_only=true', f'checkpoint={weights}'])


def _belongs_to_eval(key: str, known: set[str]) -> bool:
    return key not in known and f'eval.{key}' in known


if __name__ == '__main__':
    from s4nd.cli import run

    sys.exit(run(main, sys.argv[1:], help_text))
