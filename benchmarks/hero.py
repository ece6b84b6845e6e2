"""The first picture of the README: one scene at four sizes, and what S4ND and a convolution see in it.

    python benchmarks/hero.py [out=docs/pictures/hero.png] [scene=automobile] [sizes=8,16,32,64]
        [s4nd=s4nd_isotropic_mini.cifar10] [convolution=conv2d_isotropic_mini.cifar10]

A model is a run, a file of weights or the name of weights that ship. The default convolution is left out as long as its
weights do not ship. No input is resized: each model runs at the size of the picture. Prints what the picture shows.
"""

import json
import sys
from pathlib import Path

import torch
from common import options
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import nn

from s4nd.data.synthetic.drawings import draw
from s4nd.models import load_checkpoint
from s4nd.training.checkpoint import find_weights, read_metadata
from s4nd.weights import shipped_file

DEFAULTS = {
    'out': 'docs/pictures/hero.png',
    'scene': 'automobile',
    'sizes': '8,16,32,64',
    's4nd': 's4nd_isotropic_mini.cifar10',
    'convolution': 'conv2d_isotropic_mini.cifar10',
}
INK, RIGHT, WRONG = '#80808a', '#2f8fd0', '#d9752b'  # legible on light and dark pages, and without red and green


@torch.no_grad()
def predict(model: nn.Module, classes: list[str], picture: Image.Image) -> tuple[str, float]:
    """The most probable class of a picture at its own size, and its probability."""
    cfg = model.pretrained_cfg
    transform = create_transform((3, *picture.size), mean=cfg['mean'], std=cfg['std'], crop_pct=1.0)
    probability, label = model(transform(picture)[None]).softmax(-1)[0].max(0)
    return classes[label], float(probability)


def main(given: dict[str, str]) -> None:
    """Predict, print and draw."""
    names = {'S4ND': given['s4nd'], 'convolution': given['convolution']}
    if names['convolution'] == DEFAULTS['convolution'] and shipped_file(names['convolution']) is None:
        del names['convolution']
    sizes = [int(size) for size in given['sizes'].split(',')]
    pictures = [draw(given['scene'], size) for size in sizes]
    found = {}
    for label, name in names.items():
        model, classes = load_checkpoint(name), json.loads(read_metadata(find_weights(name))['classes'])
        found[label] = [predict(model, classes, picture) for picture in pictures]
        print(f'{label:<12}', *(f'{s}×{s}: {c} {100 * p:.0f} %' for s, (c, p) in zip(sizes, found[label], strict=True)))
    figure = Figure(figsize=(2.3 * len(sizes), 2.6 + 0.28 * len(names)), layout='constrained')
    FigureCanvasAgg(figure)
    for number, (axes, picture) in enumerate(zip(figure.subplots(1, len(sizes)), pictures, strict=True)):
        axes.imshow(picture, interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(f'{sizes[number]} × {sizes[number]} pixels', color=INK)
        for line, (label, results) in enumerate(found.items()):
            name, probability = results[number]
            text = f'{label}: {name} {100 * probability:.0f} %'
            color = RIGHT if name == given['scene'] else WRONG
            axes.text(0.5, -0.09 - 0.12 * line, text, color=color, ha='center', transform=axes.transAxes, fontsize=11)
    path = Path(given['out'])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, transparent=True)
    print(path)


if __name__ == '__main__':
    sys.exit(main(options(DEFAULTS)))
