"""Systems × tasks on one axis: which layer learns what, at equal size, recipe and number of updates; small-scale.

    python benchmarks/sequences.py [tasks=selective,delay,fashion,listops,cifar systems=s4-legs,s4d-lin,… seeds=0
                                    fashion=FOLDER cifar=FOLDER parameters=10000 threads=1 small=false out=…]

Every model is a linear map or an embedding, two blocks, a norm and a head (`SequenceModel`); its width is the one, of
multiples of 4, whose number of parameters is closest to `parameters`. Blocks are norm, layer, GELU, a gated linear map
and a residual; GSS, Mega and the Transformer are blocks of their own. Classes are read from the mean of all samples by
two-sided layers, samples (delay, selective copying) from the past alone.

Tasks without their folder are left out. The table has accuracy (percent; delay: explained variance), processor seconds
of the training, and the MB of tensors that the forward pass of one batch keeps for its backward pass. Every result is
written when it is there; a second run takes it from the folder.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import options, save, setup, table

from s4nd.data.sequences.named import Parts, load_sequences
from s4nd.data.sequences.options import SequenceData
from s4nd.files import write_atomically
from s4nd.seeds import seeded
from s4nd.tasks.sequences import SequenceConfig, SequenceTask
from s4nd.training.config import EvalConfig, ModelConfig, OptimConfig
from s4nd.training.loop import fit

SYSTEMS: dict[str, dict[str, Any]] = {
    's4-legs': {'layer': 's4', 'layer_args': {'init': 'legs', 'd_state': 32}},
    's4d-lin': {'layer': 's4d', 'layer_args': {'init': 'lin', 'd_state': 32}},
    's4d-random': {'layer': 's4d', 'layer_args': {'init': 'random', 'd_state': 32}},
    's5': {'layer': 's5', 'layer_args': {'d_state': 32}},
    'gss': {'layer': 'gss', 'layer_args': {'d_state': 64}},
    'mega-chunk': {'layer': 'mega', 'layer_args': {'chunk': 64}},
    'transformer': {'layer': 'attention', 'layer_args': {'chunk': None, 'num_heads': 4}},
}
# Updates, and the data of a task.
TASKS: dict[str, tuple[int, dict[str, Any]]] = {
    'selective': (300, {'kind': 'selective_copying', 'length': 64, 'memory': 4, 'symbols': 6, 'batch_size': 16}),
    'delay': (150, {'kind': 'delay', 'length': 256, 'lag': 64, 'batch_size': 8}),
    'fashion': (200, {'kind': 'fashion_mnist', 'size': 14, 'batch_size': 16}),
    'listops': (400, {'kind': 'listops', 'length': 512, 'shortest': 16, 'batch_size': 8}),
    'cifar': (200, {'kind': 'cifar10', 'size': 16, 'batch_size': 16}),
}
STEPWISE = ('delay', 'selective')


@cache
def parts_of(name: str, root: str) -> Parts:
    """The sequences of a task, the same for all systems and seeds; at most 500 are tested."""
    return load_sequences(SequenceData(**TASKS[name][1], root=root or None, train_count=1600, test_count=200))


def make_task(name: str, system: str, width: int, seed: int, root: str, updates: int) -> SequenceTask:
    """The task with the recipe that all systems share."""
    two_sided = name not in STEPWISE and system != 'gss'
    args = {**SYSTEMS[system], 'd_model': width, 'n_layers': 2, 'bidirectional': two_sided}
    config = SequenceConfig(
        seed=seed, epochs=100, max_steps=updates, device='cpu', model=ModelConfig('sequence', args),
        data=SequenceData(**TASKS[name][1], root=root or None), eval=EvalConfig(every=1000, limit=500),
        optim=OptimConfig(lr=4e-3, ssm_lr=2e-3, weight_decay=0.01, warmup_epochs=0.1, clip_grad=1.0),
    )  # fmt: skip
    return SequenceTask(config, parts_of(name, root))


def matched_width(name: str, system: str, root: str, parameters: int) -> int:
    """The multiple of 4 whose model has the number of parameters closest to `parameters`."""

    def distance(width: int) -> int:
        model = make_task(name, system, width, 0, root, 1).build_model()
        return abs(sum(p.numel() for p in model.parameters()) - parameters)

    return min(range(8, 72, 4), key=distance)


def kept_megabytes(task: SequenceTask, model: torch.nn.Module) -> float:
    """Bytes of tensors, each storage once, that the loss of the first batch keeps for its backward pass, in MB."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.loss(model, next(iter(task.train_batches(0))))
    loss.backward()
    return sum(kept.values()) / 1e6


def measure(name: str, system: str, seed: int, settings: Mapping[str, str]) -> dict[str, Any]:
    """Train one model and test it."""
    root, updates = settings.get(name, ''), 2 if settings['small'] == 'true' else TASKS[name][0]
    width = 8 if settings['small'] == 'true' else matched_width(name, system, root, int(settings['parameters']))
    task = make_task(name, system, width, seed, root, updates)
    with seeded(seed):
        model = task.build_model()
        kept = kept_megabytes(task, model)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        fit(model, task, task.config, out)
    seconds = time.process_time() - start
    found = task.evaluate_at(model, torch.device('cpu'), [])
    parameters = sum(p.numel() for p in model.parameters())
    return {
        'task': name, 'system': system, 'seed': seed, 'width': width, 'parameters': parameters,
        'score': found[task.monitor], 'seconds': seconds, 'MB': kept,
    }  # fmt: skip


def stored(name: str, system: str, seed: int, settings: Mapping[str, str]) -> dict[str, Any]:
    """`measure`, or what it gave an earlier run into the same folder."""
    path = Path(settings['out']) / f'{name}_{system}_{seed}.json'
    if path.exists():
        return json.loads(path.read_text(encoding='utf-8'))
    row = measure(name, system, seed, settings)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(row), encoding='utf-8'))
    return row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and system: the mean over the seeds, and the lowest and the highest."""
    found = []
    for key in dict.fromkeys((row['task'], row['system']) for row in rows):
        same = [row for row in rows if (row['task'], row['system']) == key]
        scores = [row['score'] for row in same]
        found.append({
            'task': key[0], 'system': key[1], 'width': same[0]['width'], 'parameters': same[0]['parameters'],
            'score': statistics.mean(scores), 'lowest': min(scores), 'highest': max(scores), 'seeds': len(scores),
            'seconds': statistics.mean(row['seconds'] for row in same), 'MB': same[0]['MB'],
        })  # fmt: skip
    return found


if __name__ == '__main__':
    chosen = options({
        'tasks': ','.join(TASKS), 'systems': ','.join(SYSTEMS), 'seeds': '0', 'fashion': '', 'cifar': '',
        'parameters': '10000', 'threads': '1', 'small': 'false', 'out': 'out/sequences',
    })  # fmt: skip
    names = [name for name in chosen['tasks'].split(',') if name not in ('fashion', 'cifar') or chosen[name]]
    wrong = [name for name in names if name not in TASKS]
    wrong += [name for name in chosen['systems'].split(',') if name not in SYSTEMS]
    if wrong:
        sys.exit(f"unknown '{wrong[0]}': expected tasks of {', '.join(TASKS)} and systems of {', '.join(SYSTEMS)}")
    measured, rows = setup(chosen['threads'], 'cpu'), []
    for seed in chosen['seeds'].split(','):
        for name in names:
            for system in chosen['systems'].split(','):
                rows.append(stored(name, system, int(seed), chosen))
                print(rows[-1], flush=True)
    print(table(summary(rows)))
    save(chosen['out'], 'sequences', measured, summary(rows))
