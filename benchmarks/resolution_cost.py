"""What does it cost to evaluate on a larger grid than the training grid? S4ND-ConvNeXt beside timm's ConvNeXt.

    python benchmarks/resolution_cost.py [ours=s4nd_convnext_tiny peer=convnext_tiny size=128 batch=4 threads=2
                                          device=cpu rounds=5 out=out/resolution_cost]

A model for `size` evaluates at 1, 1.5, 2 and 3 times that, with the same weights. Milliseconds an image; `/ peer` is
the ratio of medians of interleaved runs; `a pixel` is the time per pixel over that at the training size. An S4ND kernel
spans the image, so its products grow with one side more than the pixels do.
"""

from functools import partial

import timm
import torch
from common import medians, options, save, setup, table
from matplotlib.figure import Figure

import s4nd  # noqa: F401 (registers the models)
from s4nd import pictures


def measure(models: dict[str, torch.nn.Module], sizes: list[int], batch: int, rounds: int, device: str) -> list[dict]:
    rows: list[dict] = []
    for size in sizes:
        x = torch.randn(batch, 3, size, size, device=device)
        with torch.no_grad():
            found = medians({name: partial(model, x) for name, model in models.items()}, rounds, device)
        row = {'size': size, 'ours ms': 1000 * found['ours'] / batch, 'peer ms': 1000 * found['peer'] / batch}
        rows.append(row | {'ours / peer': found['ours'] / found['peer']})
    for row in rows:
        pixels = (row['size'] / sizes[0]) ** 2
        row |= {f'{name} a pixel': row[f'{name} ms'] / rows[0][f'{name} ms'] / pixels for name in ('ours', 'peer')}
    return rows


def picture(rows: list[dict]) -> Figure:
    figure = pictures.figure(4)
    axis = figure.subplots()
    for name in ('ours', 'peer'):
        axis.plot([row['size'] for row in rows], [row[f'{name} ms'] for row in rows], 'o-', label=name)
    axis.set(xlabel='size (pixels per side)', ylabel='ms per image', xscale='log', yscale='log')
    pictures.legend(figure, [axis])
    return figure


if __name__ == '__main__':
    defaults = {'ours': 's4nd_convnext_tiny', 'peer': 'convnext_tiny', 'size': '128', 'batch': '4', 'threads': '2'}
    chosen = options(defaults | {'device': 'cpu', 'rounds': '5', 'out': 'out/resolution_cost'})
    measured = setup(chosen['threads'], chosen['device'])
    size = int(chosen['size'])
    models = {
        'ours': timm.create_model(chosen['ours'], img_size=size).to(chosen['device']).eval(),
        'peer': timm.create_model(chosen['peer']).to(chosen['device']).eval(),
    }
    sizes = [round(size * factor) // 32 * 32 for factor in (1, 1.5, 2, 3)]
    rows = measure(models, sizes, int(chosen['batch']), int(chosen['rounds']), chosen['device'])
    print(table(rows))
    save(chosen['out'], 'resolution_cost', measured, rows, lambda: picture(rows))
