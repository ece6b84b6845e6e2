"""segmentation_models_pytorch with an S4ND encoder: trained at one size, evaluated at twice that size.

    python examples/segmentation.py [small=true] [encoder=tu-s4nd_convnext_tiny] [out=out/examples/segmentation]

Any registered name goes after 'tu-'; `img_size` is the grid that the encoder is trained on. The scenes are discs and
bars, functions of the plane that can be drawn at any size. The decoder is smp's own, of 3 x 3 convolutions: it knows
pixels, the encoder does not. small=true: a few steps on small images, in seconds. Needs the extra `examples`.
"""

import json
import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

import s4nd
from s4nd.files import write_atomically

CLASSES = ('ground', 'disc', 'bar')


def scenes(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same `count` scenes at any size: images (N, 3, size, size) and the class of each pixel (N, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    line = (torch.arange(size) + 0.5) / size
    y, x = line[None, :, None], line[None, None, :]
    place = torch.rand(count, 4, 1, 1, generator=generator) * 0.6 + 0.2
    disc = (y - place[:, 0]) ** 2 + (x - place[:, 1]) ** 2 < 0.16**2
    bar = ((y - place[:, 2]).abs() < 0.06) & ((x - place[:, 3]).abs() < 0.3)
    masks = torch.where(disc, 1, torch.where(bar, 2, 0))
    colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]])
    return colors[masks].permute(0, 3, 1, 2) + 0.3 * torch.randn(count, 3, 1, 1, generator=generator), masks


@torch.no_grad()
def mean_iou(model: torch.nn.Module, images: Tensor, masks: Tensor) -> float:
    """Intersection over union, averaged over the classes."""
    found = model.eval()(images).argmax(1)
    counts = smp.metrics.get_stats(found, masks, mode='multiclass', num_classes=len(CLASSES))
    return smp.metrics.iou_score(*counts, reduction='macro').item()


def main(encoder: str, small: bool, out: Path) -> dict[str, float]:
    torch.manual_seed(0)
    size, steps, batch = (32, 3, 4) if small else (64, 150, 16)
    model = smp.Unet(encoder, encoder_weights=None, classes=len(CLASSES), img_size=size)
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=1e-3, weight_decay=0.05))
    model.train()
    for step in range(steps):
        images, masks = scenes(batch, size, seed=step)
        loss = F.cross_entropy(model(images), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f'step {step}/{steps}  loss {loss.item():.3f}')
    report = {'loss': loss.item()}
    for at in (size, 2 * size):
        report[f'mean_iou@{at}'] = mean_iou(model, *scenes(4 if small else 64, at, seed=10_000))
    write_atomically(out / 'report.json', lambda path: path.write_text(json.dumps(report, indent=2), encoding='utf-8'))
    print(f'{json.dumps(report)}\nwritten to {out}')
    return report


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    main(
        options.get('encoder', 'tu-s4nd_convnext_tiny'),
        options.get('small') == 'true',
        Path(options.get('out', 'out/examples/segmentation')),
    )
