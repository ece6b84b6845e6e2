"""The first picture of the README: one scene at four sizes, and what S4ND and a convolution see in it.

    python benchmarks/hero.py [out=docs/pictures/hero.png] [scene=automobile] [sizes=8,16,32,64]
        [s4nd=s4nd_isotropic_mini.cifar10] [convolution=conv2d_isotropic_mini.cifar10]

A model is a run, a file of weights or the name of weights that ship. The default convolution is left out as long as its
weights do not ship. No input is resized: each model runs at the size of the picture. Prints what the picture shows.
"""

import sys
from pathlib import Path

from common import options
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from s4nd.data.synthetic.drawings import draw
from s4nd.models import class_names, load_checkpoint, probabilities
from s4nd.weights import shipped_file

DEFAULTS = {
    'out': 'docs/pictures/hero.png',
    'scene': 'automobile',
    'sizes': '8,16,32,64',
    's4nd': 's4nd_isotropic_mini.cifar10',
    'convolution': 'conv2d_isotropic_mini.cifar10',
}
INK, RIGHT, WRONG = '#80808a', '#2f8fd0', '#d9752b'  # legible on light and dark pages, and without red and green


def main(given: dict[str, str]) -> None:
    """Predict, print and draw."""
    names = {'S4ND': given['s4nd'], 'convolution': given['convolution']}
    if names['convolution'] == DEFAULTS['convolution'] and shipped_file(names['convolution']) is None:
        del names['convolution']
    sizes = [int(size) for size in given['sizes'].split(',')]
    pictures = [draw(given['scene'], size) for size in sizes]
    found = {}
    for label, name in names.items():
        model, classes = load_checkpoint(name), class_names(name)
        best = [probabilities(model, picture).max(0) for picture in pictures]
        found[label] = [(classes[number], float(probability)) for probability, number in best]
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
