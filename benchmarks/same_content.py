"""The same content sampled more finely, beside new content: what a finer input changes for a model of images.

    python benchmarks/same_content.py checkpoint=out/s4nd_8 [sizes=16,32 limit=2000 threads=1 data.root=…]

Three columns at each size: `same`, the images of the training size interpolated (bicubic) to it, where a model that
follows the sampling changes nothing; `new`, the images at that size, which show more; `resized`, those averaged to the
training size. Accuracy in percent on the same test images.
"""

import sys

import torch
from common import table
from torch import Tensor, nn

from s4nd.data.images.resize import resize
from s4nd.options import ConfigError
from s4nd.resolution import parse_size
from s4nd.tasks import Resampled, make_task
from s4nd.tasks.images import ImageTask
from s4nd.training.checkpoint import find_weights
from s4nd.training.config import load_config


class SameContent(nn.Module):
    """`model` on inputs from which everything finer than the training size was taken, on their own grid."""

    def __init__(self, model: nn.Module, task: ImageTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(resize(self.task.resample(inputs), inputs.shape[-2:]))


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
        ways = {'same': SameContent(model, task), 'new': model, 'resized': Resampled(model, task)}
        found = {way: task.evaluate_at(run.eval(), device, [name]) for way, run in ways.items()}
        accuracy = {way: next(v for k, v in r.items() if k.startswith('accuracy')) for way, r in found.items()}
        rows.append({'size': name, **{way: f'{value:.2f}' for way, value in accuracy.items()}})
    print(table(rows))


if __name__ == '__main__':
    options = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)
    if 'checkpoint' not in options:
        sys.exit(__doc__)
    main(options)
