"""How many calls of ATen operators does a training step make, beside timm's?

    python benchmarks/operators.py [ours=s4nd_convnext_tiny peer=convnext_tiny size=224 grouped=cpu out=out/operators]

One image on a CPU, forward, cross-entropy, backward and fused AdamW. Views and nested calls count. `kernels` is what
makes the taps of all layers of S4ND; `convolutions` is what applies them. grouped=gpu evaluates together the kernels
that a GPU does, a CPU only as many as its cache holds.
"""

from collections.abc import Callable
from functools import partial

import timm
import torch
from common import options, save, setup, table
from torch import nn

from s4nd import S4ND
from s4nd.layers import together
from s4nd.ops import separable_conv


def calls(run: Callable[[], object]) -> int:
    """Calls of ATen operators in run()."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key.startswith('aten::'))


def of_step(model: nn.Module, size: int) -> int:
    """Calls of a second training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, target = torch.randn(1, 3, size, size), torch.zeros(1, dtype=torch.int64)

    def step() -> None:
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return calls(step)


def of_parts(model: nn.Module) -> dict[str, int]:
    """Calls of the parts of all layers of S4ND, forward and backward, on their training grids."""
    found = dict.fromkeys(('kernels forward', 'kernels backward', 'convolutions forward', 'convolutions backward'), 0)
    for stage in model.stages:
        layers = [layer for layer in stage.blocks.modules() if isinstance(layer, S4ND)]
        requests = [request for layer in layers for request in layer.requests(list(layer.grid))]
        made: list[torch.Tensor] = []
        found['kernels forward'] += calls(lambda to=made, r=requests: to.extend(k for k, _ in together.lag_taps_of(r)))
        gradients = [torch.ones_like(taps) for taps in made]
        found['kernels backward'] += calls(lambda y=made, g=gradients: torch.autograd.backward(y, g))
        for number, layer in enumerate(layers):
            taps = [k.detach().requires_grad_() for k in made[2 * number : 2 * number + 2]]
            x = (
                torch.randn(1, layer.d_model, *layer.grid)
                .contiguous(memory_format=torch.channels_last)
                .requires_grad_()
            )
            given = (x, taps, [k.shape[-1] // 2 for k in taps], 'auto', layer.D.flatten())
            out: list[torch.Tensor] = []
            found['convolutions forward'] += calls(lambda to=out, given=given: to.append(separable_conv(*given)))
            found['convolutions backward'] += calls(partial(out[0].backward, torch.ones_like(out[0])))
    return found


if __name__ == '__main__':
    defaults = {
        'ours': 's4nd_convnext_tiny',
        'peer': 'convnext_tiny',
        'size': '224',
        'grouped': 'cpu',
        'out': 'out/operators',
    }
    chosen = options(defaults)
    measured = setup('1', 'cpu') + f', timm {timm.__version__}, batch 1, size {chosen["size"]}'
    size = int(chosen['size'])
    if chosen['grouped'] == 'gpu':
        together.IN_CACHE = 2**60
    ours, peer = timm.create_model(chosen['ours'], img_size=size), timm.create_model(chosen['peer'])
    counts = {chosen['ours']: of_step(ours, size), chosen['peer']: of_step(peer, size), **of_parts(ours)}
    rows = [{'part': part, 'calls': count} for part, count in counts.items()]
    print(table(rows))
    save(chosen['out'], 'operators', measured, rows)
