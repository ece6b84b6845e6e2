"""How many kernels should a CPU evaluate together?

    python benchmarks/grouping.py [rounds=7 out=out/grouping]

Taps of all layers of a model on their training grids, forward and backward, one thread, processor time, medians of
interleaved runs. A row gives times as parts of the first column, where each layer evaluates its axes together. The
other columns evaluate the layers of a stage together, with at most so many parameters in one call.
"""

import statistics
import time
from functools import partial

import timm
import torch
from common import options, save, setup, table

from s4nd import S4ND
from s4nd.layers import together

MODELS = ('s4nd_convnext_tiny', 's4nd_isotropic_mini', 's4nd_isotropic_small', 's4nd_vit_base_patch16')
LIMITS = {'2^16': 2**16, '2^17': 2**17, '2^18': 2**18, '2^19': 2**19, 'all': 2**60}


def run(groups: list[list[S4ND]], limit: int) -> None:
    """Taps of all groups of layers, and their gradients."""
    together.IN_CACHE = limit
    for layers in groups:
        requests = [request for layer in layers for request in layer.requests(list(layer.grid))]
        taps = [taps for taps, _ in together.lag_taps_of(requests)]
        torch.autograd.backward(taps, [torch.ones_like(k) for k in taps])


def compare(name: str, rounds: int) -> dict[str, object]:
    """The row of one model."""
    stages = [[layer for layer in stage.modules() if isinstance(layer, S4ND)] for stage in _stages(name)]
    layers = [[layer] for stage in stages for layer in stage]
    candidates = {'layer': partial(run, layers, 2**60)}
    candidates |= {limit: partial(run, stages, value) for limit, value in LIMITS.items()}
    times: dict[str, list[float]] = {limit: [] for limit in candidates}
    for _ in range(rounds + 1):
        for limit, candidate in candidates.items():
            start = time.process_time()
            candidate()
            times[limit].append(time.process_time() - start)
    found = {limit: statistics.median(each[1:]) for limit, each in times.items()}
    parts = {limit: f'{found[limit] / found["layer"]:.2f}' for limit in LIMITS}
    return {'model': name, 'layer (ms)': f'{1000 * found["layer"]:.1f}', **parts}


def _stages(name: str) -> torch.nn.Module:
    return timm.create_model(name).stages


if __name__ == '__main__':
    chosen = options({'rounds': '7', 'out': 'out/grouping'})
    measured = setup('1', 'cpu') + f', timm {timm.__version__}'
    rows = [compare(name, int(chosen['rounds'])) for name in MODELS]
    print(table(rows))
    save(chosen['out'], 'grouping', measured, rows)
