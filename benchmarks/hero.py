"""The first picture of the README: one scene at four sizes, and what S4ND and a convolution see in it.

    python benchmarks/hero.py [out=docs/pictures/hero.png] [scene=automobile] [sizes=8,16,32,64]
        [s4nd=s4nd_isotropic_mini.cifar10] [convolution=conv2d_isotropic_mini.cifar10]

A model is a run, a file of weights or the name of weights that ship. The default convolution is left out as long as its
weights do not ship. No input is resized: each model runs at the size of the picture. Prints what the picture shows.
"""

import sys

from common import options
from matplotlib.figure import Figure
from PIL import Image

from s4nd import pictures
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


def main(given: dict[str, str]) -> None:
    """Predict, print and draw."""
    names = {'S4ND': given['s4nd'], 'convolution': given['convolution']}
    if names['convolution'] == DEFAULTS['convolution'] and shipped_file(names['convolution']) is None:
        del names['convolution']
    sizes = [int(size) for size in given['sizes'].split(',')]
    scenes = [draw(given['scene'], size) for size in sizes]
    found = {}
    for label, name in names.items():
        model, classes = load_checkpoint(name), class_names(name)
        best = [probabilities(model, scene).max(0) for scene in scenes]
        found[label] = [(classes[number], float(probability)) for probability, number in best]
        print(f'{label:<12}', *(f'{s}×{s}: {c} {100 * p:.0f} %' for s, (c, p) in zip(sizes, found[label], strict=True)))
    print(*pictures.write(given['out'], lambda: picture(scenes, found, given['scene']), dark=True), sep='\n')


def picture(scenes: list[Image.Image], found: dict[str, list[tuple[str, float]]], right: str) -> Figure:
    """A column per size: the drawing, and below it a line per model, blue where it is right."""
    figure = pictures.figure(1.6 + 0.3 * len(found))
    for number, (axes, scene) in enumerate(zip(figure.subplots(1, len(scenes)), scenes, strict=True)):
        axes.imshow(scene, interpolation='nearest')
        axes.set_axis_off()
        axes.set_title(f'{scene.width} × {scene.height} pixels', loc='center')
        for line, (label, results) in enumerate(found.items()):
            name, probability = results[number]
            text, color = f'{label}: {name} {100 * probability:.0f} %', 'C0' if name == right else 'C1'
            axes.text(0.5, -0.12 - 0.15 * line, text, color=color, ha='center', transform=axes.transAxes, fontsize=10)
    return figure


if __name__ == '__main__':
    sys.exit(main(options(DEFAULTS)))
