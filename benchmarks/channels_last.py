"""What does channels_last cost a model, beside what it costs timm's?

    python benchmarks/channels_last.py [size=64 frames=8 batch=4 rounds=9 out=out/channels_last]

Per model: milliseconds of the contiguous model in inference and in a training step (forward and backward), and the
ratio channels_last / contiguous of each: weights and inputs in the format, medians of interleaved runs, one thread,
time of the processor. Below the line stand timm's models, which have the same blocks with other mixers. A model that
leaves its format somewhere pays for copies, and its ratio lies above theirs.
"""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from common import options, save, setup, table
from matplotlib.figure import Figure

import s4nd
from s4nd import pictures

MODELS = {
    's4nd_convnext_micro': {}, 's4nd_vit_tiny_patch16': {}, 's4nd_isotropic_mini': {}, 's4nd_ccnn_mini': {},
    's4nd_convnext3d_nano': {}, 's4nd_isotropic3d_mini': {},
}  # fmt: skip
PEERS = {'convnext_atto': {}, 'convnext_nano': {}, 'vit_tiny_patch16_224': {'dynamic_img_size': True}, 'resnet18': {}}


class Runs:
    """A model in both formats, on one input of noise."""

    def __init__(self, name: str, arguments: dict, chosen: dict[str, str]) -> None:
        size, clips = int(chosen['size']), '3d' in name
        sized = {'img_size': size} if name.startswith('s4nd') else {}
        if clips:
            sized['num_frames'] = int(chosen['frames'])
        layout = torch.channels_last_3d if clips else torch.channels_last
        x = torch.randn(int(chosen['batch']), 3, *([sized['num_frames']] if clips else []), size, size)
        self.models, self.inputs = {}, {}
        for format_name, memory_format in (('contiguous', torch.contiguous_format), ('channels_last', layout)):
            torch.manual_seed(0)
            self.models[format_name] = timm.create_model(name, **arguments, **sized).to(memory_format=memory_format)
            self.inputs[format_name] = x.contiguous(memory_format=memory_format)

    def infer(self, format_name: str) -> None:
        with torch.no_grad():
            self.models[format_name](self.inputs[format_name])

    def train(self, format_name: str) -> None:
        self.models[format_name](self.inputs[format_name]).square().mean().backward()

    def ratio(self, part: Callable[[str], None], rounds: int) -> tuple[float, float]:
        """Milliseconds of the contiguous model, and channels_last / contiguous."""
        times: dict[str, list[float]] = {name: [] for name in self.models}
        for _ in range(rounds + 1):
            for name, found in times.items():
                start = time.thread_time()
                part(name)
                found.append(time.thread_time() - start)
        plain, last = (statistics.median(found[1:]) for found in times.values())
        return 1000 * plain, last / plain


def measure(name: str, arguments: dict, chosen: dict[str, str]) -> dict[str, object]:
    runs, rounds = Runs(name, arguments, chosen), int(chosen['rounds'])
    training = runs.ratio(runs.train, rounds)
    for model in runs.models.values():
        model.eval()
    inference = runs.ratio(runs.infer, rounds)
    return {
        'model': name,
        'inference ms': inference[0], 'inference ratio': inference[1],
        'training ms': training[0], 'training ratio': training[1],
    }  # fmt: skip


def picture(rows: list[dict]) -> Figure:
    figure = pictures.figure(4)
    axis = figure.subplots()
    for shift, part in ((-0.2, 'inference'), (0.2, 'training')):
        axis.bar([i + shift for i in range(len(rows))], [row[f'{part} ratio'] for row in rows], 0.4, label=part)
    axis.axhline(1, color=pictures.ink(), linewidth=0.8)
    axis.set_xticks(range(len(rows)), [str(row['model']) for row in rows], fontsize=8, rotation=25, ha='right')
    axis.set_ylabel('channels_last / contiguous')
    pictures.legend(figure, [axis])
    return figure


if __name__ == '__main__':
    chosen = options({'size': '64', 'frames': '8', 'batch': '4', 'rounds': '9', 'out': 'out/channels_last'})
    measured = setup('1', 'cpu')
    measured += f', s4nd {s4nd.__version__}, timm {timm.__version__}, size {chosen["size"]}, batch {chosen["batch"]}'
    found = []
    for name, arguments in {**MODELS, **PEERS}.items():
        found.append(measure(name, arguments, chosen))
        print(table(found[-1:]), flush=True)
    save(chosen['out'], 'channels_last', measured, found, lambda: picture(found))
