"""What do the kernels look like? One picture: 2-D kernels of an S4ND layer, each at three resolutions.

    python benchmarks/kernel_picture.py [out=out/kernels] [checkpoint=out/my_run]

Without a checkpoint: a freshly initialized layer (S4D-Lin, N = 32, bandlimit 1, grid 16 × 16, seed 0). With one: the
first S4ND layer of that model. Writes kernels.png.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure

import s4nd
from s4nd import pictures
from s4nd.training.checkpoint import find_weights, load_weights, read_metadata


def layer_of(checkpoint: Path) -> s4nd.S4ND:
    """The first S4ND layer of a trained model."""
    metadata = read_metadata(checkpoint)
    model = timm.create_model(metadata['model'], **json.loads(metadata['args']))
    load_weights(checkpoint, model, metadata['model'])
    return next(module for module in model.modules() if isinstance(module, s4nd.S4ND))


def draw(layer: s4nd.S4ND, columns: int = 6) -> Figure:
    """Rows: the training grid, twice and four times as fine. Columns: features, the middle half of the lags."""
    grid, factors = layer.grid, (1, 2, 4)
    features = torch.linspace(0, layer.d_model - 1, columns).long().tolist()
    figure = pictures.figure(3.9)
    axes = figure.subplots(len(factors), columns)
    for row, factor in zip(axes, factors, strict=True):
        with torch.no_grad():
            taps, _ = layer.all_taps([size * factor for size in grid], [1 / factor] * len(grid))
        for axis, feature in zip(row, features, strict=True):
            kernel = torch.einsum('ri,rj->ij', taps[0][:, feature], taps[1][:, feature])
            middle = [slice(size // 4, size - size // 4) for size in kernel.shape]
            image = axis.imshow(kernel[*middle] / kernel.abs().max(), cmap=pictures.diverging(), vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=pictures.faint())
            if factor == 1:
                axis.set_title(f'feature {feature}', loc='center')
        row[0].set_ylabel(f'{grid[0] * factor} × {grid[1] * factor}')
    figure.colorbar(image, ax=axes, label='tap / largest tap', ticks=(-1, 0, 1), shrink=0.8, aspect=30)
    return figure


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out', 'checkpoint'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER or checkpoint=FILE')
    torch.manual_seed(0)
    chosen = options.get('checkpoint')
    layer = layer_of(find_weights(chosen)) if chosen else s4nd.S4ND(64, (16, 16), d_state=32, bandlimit=1.0)
    out = Path(options.get('out', 'out/kernels'))
    print(*pictures.write(out / 'kernels.png', lambda: draw(layer), dark=True), sep='\n')
