"""The same content sampled more finely, beside new content: what a finer input changes for a model of images.

    python benchmarks/same_content.py checkpoint=out/s4nd_8 [sizes=16,32 limit=2000 threads=1 data.root=…]

Columns at each size, accuracy in percent on the same test images:

`resized`  the images averaged to the training size.
`same`     those, continued to the size by the sum of cosines that has the same averages over their pixels. Averaging
           it to the training size gives them back exactly, so a model that follows the sampling changes nothing.
`bicubic`  those, interpolated to the size, which blurs.
`blurred`  what the training size can hold of the bicubic image, at the training size: what is lost there is lost by the
           interpolation, not by the model.
`new`      the images at that size, which show more.
"""

import math
import sys
from collections.abc import Callable

import torch
from common import table
from torch import Tensor, nn

from s4nd.data.images.resize import resize
from s4nd.options import ConfigError
from s4nd.resolution import Size, parse_size
from s4nd.tasks import make_task
from s4nd.tasks.images import ImageTask
from s4nd.training.checkpoint import find_weights
from s4nd.training.config import load_config


class Changed(nn.Module):
    """`model` on inputs that `change` has changed."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(self.change(inputs))


def finer_axis(count: int, size: int) -> Tensor:
    """The matrix (size, count) that `finer` applies to each axis, float64."""
    wave = torch.arange(count, dtype=torch.float64)
    analysis = 2 / count * torch.cos(math.pi * wave[:, None] * (wave + 0.5) / count)
    analysis[0] /= 2
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    # A cosine of k half waves, averaged over one of n cells, is its value at the center times sinc(k / 2n).
    kept = torch.sinc(wave / (2 * size)) / torch.sinc(wave / (2 * count))
    return torch.cos(math.pi * wave * place[:, None]) * kept @ analysis


def finer(images: Tensor, size: Size) -> Tensor:
    """Images (B, C, H, W) at a whole multiple of their size: averages of the sum of H × W cosines that has theirs."""
    rows, columns = (finer_axis(n, m).to(images) for n, m in zip(images.shape[-2:], size, strict=True))
    return rows @ images @ columns.mT


def coarser(images: Tensor, size: Size) -> Tensor:
    """Undo `finer`, and leave out all that it cannot make: images (B, C, H, W) to a whole part of their size."""
    rows, columns = (
        torch.linalg.pinv(finer_axis(n, m)).to(images) for n, m in zip(size, images.shape[-2:], strict=True)
    )
    return rows @ images @ columns.mT


def main(words: dict[str, str]) -> None:
    weights = find_weights(words.pop('checkpoint'))
    sizes = [parse_size(size) for size in words.pop('sizes', '16,32').split(',')]
    torch.set_num_threads(int(words.pop('threads', '1')))
    given = [f'eval.limit={words.pop("limit", "2000")}', *(f'{key}={value}' for key, value in words.items())]
    task = make_task(load_config(weights.parent / 'config.yaml', given))
    if not isinstance(task, ImageTask):
        raise ConfigError(f'checkpoint: expected a model of images, got one of task={task.config.task}')
    model, device = task.load_model(weights), torch.device('cpu')
    rows = []
    for size in [task.size, *sizes]:
        name = 'x'.join(map(str, size))
        changes: dict[str, Callable[[Tensor], Tensor]] = {
            'resized': task.resample,
            'same': lambda x, size=size: finer(task.resample(x), size),
            'bicubic': lambda x, size=size: resize(task.resample(x), size),
            'blurred': lambda x, size=size: coarser(resize(task.resample(x), size), task.size),
        }
        ways = {way: Changed(model, change) for way, change in changes.items()} | {'new': model}
        found = {way: task.evaluate_at(run.eval(), device, [name]) for way, run in ways.items()}
        accuracy = {way: next(v for k, v in r.items() if k.startswith('accuracy')) for way, r in found.items()}
        rows.append({'size': name, **{way: f'{value:.2f}' for way, value in accuracy.items()}})
    print(table(rows))


if __name__ == '__main__':
    options = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)
    if 'checkpoint' not in options:
        sys.exit(__doc__)
    main(options)
