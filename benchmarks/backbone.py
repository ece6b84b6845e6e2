"""How fast are the backbones beside timm's, and how much memory does a training step take?

    python benchmarks/backbone.py [pairs=s4nd_convnext_tiny:convnext_tiny batch=8 size=224 dtype=float32 compile=false
                                   threads=2 device=cpu rounds=5 out=out/backbone]

Each pair is our model and its peer in timm, with the same inputs. Images a second in inference and in a training step
(forward, cross-entropy, backward, AdamW); ratios (above 1: ours is faster) are of medians of interleaved runs. `peak
GB` is what a training step adds, in a process of its own. `kernel share` is the part of our training step that makes
kernels. dtype=bfloat16 runs under autocast. On a GPU tensors are channels_last where dtype is bfloat16.
"""

import timm
import torch
from common import medians, options, peak_memory, save, setup, table
from matplotlib.figure import Figure
from torch import nn

import s4nd
from s4nd import S4ND, pictures

PAIRS = 's4nd_convnext_tiny:convnext_tiny,s4nd_vit_base_patch16:vit_base_patch16_224'


class Step:
    """A training step of a model, and its inference, on one batch of noise."""

    def __init__(self, name: str, batch: int, size: int, dtype: str, device: str, compiled: bool) -> None:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.model = timm.create_model(name, img_size=size) if 'convnext' not in name else _convnext(name, size)
        self.model.to(device)
        layout = torch.channels_last if device == 'cuda' and dtype == 'bfloat16' else torch.contiguous_format
        self.model.to(memory_format=layout)
        self.x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
        self.target = torch.arange(batch, device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.run = torch.compile(self.model) if compiled else self.model

    def infer(self) -> None:
        with torch.no_grad(), torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            self.run(self.x)

    def train(self) -> None:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = nn.functional.cross_entropy(self.run(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def make_kernels(self) -> None:
        """What a training step spends on kernels, forward and backward."""
        for layer in self.model.modules():
            if isinstance(layer, S4ND):
                sum(k.sum() for k in layer.all_taps(list(layer.grid), [1.0] * len(layer.grid))[0]).backward()


def _convnext(name: str, size: int) -> nn.Module:
    return timm.create_model(name, img_size=size) if name.startswith('s4nd') else timm.create_model(name)


def training_step(*arguments: object) -> object:
    """For `peak_memory`: the step of a fresh model."""
    return Step(*arguments).train


def measure(ours: str, peer: str, chosen: dict[str, str]) -> dict[str, object]:
    arguments = (
        int(chosen['batch']),
        int(chosen['size']),
        chosen['dtype'],
        chosen['device'],
        chosen['compile'] == 'true',
    )
    rounds, device = int(chosen['rounds']), chosen['device']
    steps = {name: Step(name, *arguments) for name in (ours, peer)}
    for step in steps.values():
        step.model.eval()  # once, as a loop over images does: it drops the remembered kernels
    inference = medians({name: step.infer for name, step in steps.items()}, rounds, device)
    for step in steps.values():
        step.model.train()
    parts = {name: step.train for name, step in steps.items()} | {'kernels': steps[ours].make_kernels}
    training = medians(parts, rounds, device)
    del steps
    row: dict[str, object] = {'ours': ours, 'peer': peer}
    for part, found in (('inference', inference), ('training', training)):
        row |= {f'{part} img/s': arguments[0] / found[ours], f'{part} ratio': found[peer] / found[ours]}
    row['kernel share'] = training['kernels'] / training[ours]
    if device == 'cpu':
        memory = {name: peak_memory(training_step, name, *arguments) for name in (ours, peer)}
        row |= {'peak GB': memory[ours], 'peak ratio': memory[ours] / memory[peer]}
    return row


def picture(rows: list[dict]) -> Figure:
    figure = pictures.figure(3.8)
    axis = figure.subplots()
    for shift, part in ((-0.2, 'inference'), (0.2, 'training')):
        axis.bar([i + shift for i in range(len(rows))], [row[f'{part} ratio'] for row in rows], 0.4, label=part)
    axis.axhline(1, color=pictures.ink(), linewidth=0.8)
    axis.set_xticks(range(len(rows)), [f'{row["ours"]}\nagainst {row["peer"]}' for row in rows], fontsize=8)
    axis.set_ylabel('images per second / peer')
    pictures.legend(figure, [axis])
    return figure


if __name__ == '__main__':
    defaults = {'pairs': PAIRS, 'batch': '8', 'size': '224', 'dtype': 'float32', 'compile': 'false'}
    chosen = options(defaults | {'threads': '2', 'device': 'cpu', 'rounds': '5', 'out': 'out/backbone'})
    measured = setup(chosen['threads'], chosen['device'])
    measured += f', s4nd {s4nd.__version__}, timm {timm.__version__}, batch {chosen["batch"]}, {chosen["dtype"]}'
    found = []
    for pair in chosen['pairs'].split(','):
        found.append(measure(*pair.split(':'), chosen))
        print(table(found), flush=True)
    save(
        chosen['out'],
        f'backbone_{chosen["dtype"]}{"_compiled" * (chosen["compile"] == "true")}',
        measured,
        found,
        lambda: picture(found),
    )
