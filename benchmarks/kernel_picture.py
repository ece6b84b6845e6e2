"""What do the kernels look like? One picture: 2-D kernels of an S4ND layer, the same ones at three resolutions.

    python benchmarks/kernel_picture.py [out=out/kernels] [checkpoint=out/my_run/last.safetensors]

Without a checkpoint: a freshly initialized layer (S4D-Lin, N = 32, bandlimit 1, grid 16 × 16, seed 0). With one: the
first S4ND layer of that model. Writes kernels.png.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import timm
import torch

import s4nd
from s4nd.files import write_atomically
from s4nd.training.checkpoint import load_weights, read_metadata

mpl.use('Agg')
import matplotlib.pyplot as plt

INK = '#80808a'  # legible on light and dark pages


def layer_of(checkpoint: Path) -> s4nd.S4ND:
    """The first S4ND layer of a trained model."""
    metadata = read_metadata(checkpoint)
    model = timm.create_model(metadata['model'], **json.loads(metadata['args']))
    load_weights(checkpoint, model, metadata['model'])
    return next(module for module in model.modules() if isinstance(module, s4nd.S4ND))


def draw(layer: s4nd.S4ND, path: Path, kernels: int = 8) -> None:
    """Rows: the training grid, twice and four times as fine. Columns: features spread over the width."""
    grid = layer.grid
    features = torch.linspace(0, layer.d_model - 1, kernels).long().tolist()
    figure, axes = plt.subplots(3, kernels, figsize=(1.3 * kernels, 4.2), layout='constrained')
    for row, factor in enumerate((1, 2, 4)):
        with torch.no_grad():
            taps, _ = layer.all_taps([size * factor for size in grid], [1 / factor] * len(grid))
        for column, feature in enumerate(features):
            kernel = torch.einsum('ri,rj->ij', taps[0][:, feature], taps[1][:, feature])
            limit = kernel.abs().max().item()
            axis = axes[row, column]
            axis.imshow(kernel, cmap='RdBu', vmin=-limit, vmax=limit, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f'feature {feature}', color=INK, fontsize=10)
        axes[row, 0].set_ylabel(f'{grid[0] * factor} × {grid[1] * factor}', color=INK)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, transparent=True))
    print(f'written to {path}')


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out', 'checkpoint'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER or checkpoint=FILE')
    torch.manual_seed(0)
    chosen = options.get('checkpoint')
    layer = layer_of(Path(chosen)) if chosen else s4nd.S4ND(64, (16, 16), d_state=32, bandlimit=1.0)
    draw(layer, Path(options.get('out', 'out/kernels')) / 'kernels.png')
