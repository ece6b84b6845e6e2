"""What the client scripts share: the embedded pictures, and a small model trained on them."""

import timm
import torch
from torch import Tensor, nn

import s4nd
from s4nd.data import NORMALIZATION, ShapeSet

MEAN, STD = NORMALIZATION['shapes']
SIZE = 16
MODEL = {'img_size': SIZE, 'dim': 24, 'depths': (1, 1), 'bandlimit': 0.5}


def pictures(count: int, size: int = SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalized images (count, 3, size, size) and their labels."""
    scenes = ShapeSet.draw(count, seed=seed)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (scenes.at(size).float() / 255 - mean) / std, scenes.labels


def classes() -> list[str]:
    """Names of the labels."""
    return list(ShapeSet.draw(1, seed=0).classes)


def make_model(**options: object) -> nn.Module:
    """An untrained isotropic model of 10 classes."""
    torch.manual_seed(0)
    return timm.create_model('s4nd_isotropic_mini', **{**MODEL, **options})


def trained_model(steps: int = 150) -> nn.Module:
    """The same after some steps, in evaluation mode."""
    model = make_model()
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=1e-2, weight_decay=0.01))
    images, labels = pictures(1000)
    for step in range(steps):
        chosen = torch.randint(len(images), (50,), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, size: int = SIZE) -> float:
    """Percent of 200 test pictures."""
    images, labels = pictures(200, size, seed=1)
    return 100 * (model(images).argmax(1) == labels).float().mean().item()
