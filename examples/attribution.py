"""Captum on an S4ND model: which pixels made the decision, at the training size and at twice that size.

    python examples/attribution.py [small=true] [checkpoint=out/demo/s4nd] [out=out/examples/attribution]

Integrated gradients (every pixel) and Grad-CAM (the last feature map) of test pictures of the embedded set, side by
side. Without a checkpoint a small model is trained first. small=true: a few steps and two pictures, in seconds.
Needs the extra `examples`.
"""

import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam
from matplotlib.figure import Figure
from torch import Tensor, nn

import s4nd
from s4nd import pictures as style
from s4nd.data import NORMALIZATION, ShapeSet

MEAN, STD = (torch.tensor(values)[:, None, None] for values in NORMALIZATION['shapes'])


def pictures(scenes: ShapeSet, size: int) -> Tensor:
    """Normalized images (N, 3, size, size)."""
    return (scenes.at(size).float() / 255 - MEAN) / STD


def train_model(size: int, steps: int) -> nn.Module:
    """A small isotropic model, trained on the embedded shapes."""
    model = timm.create_model('s4nd_isotropic_mini', img_size=size, dim=48, bandlimit=0.5)
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=4e-3, weight_decay=0.05))
    scenes = ShapeSet.draw(50 * min(steps, 100), seed=0)
    images = pictures(scenes, size)
    for step in range(steps):
        chosen = torch.randint(len(images), (50,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(images[chosen]), scenes.labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f'step {step}/{steps}  loss {loss.item():.3f}')
    return model.eval()


def attribute(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Integrated gradients and Grad-CAM, each (N, H, W)."""
    gradients = IntegratedGradients(model).attribute(images, target=labels, n_steps=24, internal_batch_size=16)
    cam = LayerGradCam(model, model.norm).attribute(images, target=labels, relu_attributions=True)
    cam = F.interpolate(cam, images.shape[-2:], mode='bilinear')
    return gradients.abs().sum(1).detach(), cam[:, 0].detach()


def draw(rows: list[tuple[int, Tensor, Tensor, Tensor]], names: list[str]) -> Figure:
    """A row per picture, three columns per size: the picture, integrated gradients, Grad-CAM."""
    made = style.figure(1.35 * len(names) + 0.4)
    axes = made.subplots(len(names), 3 * len(rows), squeeze=False)
    for at, (size, images, gradients, cam) in enumerate(rows):
        shown = (images * STD + MEAN).permute(0, 2, 3, 1).clamp(0, 1)
        for line, name, *parts in zip(axes, names, shown, gradients, cam, strict=True):
            for axis, part in zip(line[3 * at : 3 * at + 3], parts, strict=True):
                axis.imshow(part, cmap='magma', interpolation='nearest')
                axis.set(xticks=[], yticks=[], frame_on=False)
            line[0].set_ylabel(name)
        for axis, title in zip(axes[0, 3 * at :], ('picture', 'gradients', 'Grad-CAM'), strict=False):
            axis.set_title(f'{size} × {size}\n{title}', loc='center')
    return made


def main(checkpoint: str | None, small: bool, out: Path) -> float:
    """Draw the attributions; returns how well the integrated gradients of the two sizes agree (correlation)."""
    torch.manual_seed(0)
    size, steps, count = (16, 2, 2) if small else (16, 200, 3)
    model = train_model(size, steps) if checkpoint is None else s4nd.models.load_checkpoint(checkpoint)
    scenes = ShapeSet.draw(10, seed=1).select(torch.tensor([6, 8, 3][:count]))  # rings, a disc, fine posts
    rows = []
    for at in (size, 2 * size):
        images = pictures(scenes, at)
        rows.append((at, images, *attribute(model, images, scenes.labels)))
    coarse = F.avg_pool2d(rows[1][2][:, None], 2)[:, 0]
    agreement = torch.corrcoef(torch.stack([rows[0][2].flatten(), coarse.flatten()]))[0, 1].item()
    names = [scenes.classes[label] for label in scenes.labels]
    style.write(out / 'attribution.png', lambda: draw(rows, names), dark=True)
    print(f'integrated gradients at {size} and {2 * size}: correlation {agreement:.3f}\n{out / "attribution.png"}')
    return agreement


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    main(
        options.get('checkpoint'),
        options.get('small') == 'true',
        Path(options.get('out', 'out/examples/attribution')),
    )
