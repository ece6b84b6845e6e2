"""What does S4 over the features of many frames cost beside attention? ViS4mer's head against transformer heads.

    python benchmarks/vis4mer.py [tokens=64,256,1024 batch=8 threads=2 device=cpu rounds=3 memory=true out=out/vis4mer]

A token is a feature of width 1024 (a frame's, or a patch's); all heads are fp32, without dropout, and have the
parameters of the published head (width 1024, 3 levels) within a few percent:

- `vis4mer nplr`: the head as published; `vis4mer s4`, `vis4mer s4d`: with the stable and the diagonal kernel.
- `attention`: the same pyramid, pooling and classifier; where S4 is, timm's attention (heads of 64, d/4 features).
- `transformer`: timm's ViT blocks, three of equal width without a pyramid, then the mean and a classifier.

Each of the latter two with torch's scaled_dot_product_attention (`fused`) and with the attention matrix in memory
(`plain`), as transformers of the paper's time had it. Seconds of a training step (forward, cross-entropy, backward,
AdamW) are medians of interleaved runs; `peak GB` is what a step adds, weights and optimizer included, in a process of
its own. Ratios are over the first: above 1, the published head is faster or smaller.
"""

import math
from collections.abc import Callable

import torch
from common import medians, options, peak_memory, save, setup, table
from matplotlib.figure import Figure
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import s4nd
from s4nd import pictures
from s4nd.models.vis4mer import ViS4merHead
from s4nd.models.vis4mer_head import halve

FEATURES, CLASSES = 1024, 10
# As many parameters as the published head, in whole heads of 48.
WIDTH, HEADS = 288, 6
MODELS = (
    'vis4mer nplr', 'vis4mer s4', 'vis4mer s4d',
    'attention fused', 'attention plain', 'transformer fused', 'transformer plain',
)  # fmt: skip


class Positions(nn.Module):
    """x + sines and cosines of the positions (B, T, d), which attention needs and S4 does not."""

    def forward(self, x: Tensor) -> Tensor:
        count, width = x.shape[1:]
        rates = torch.exp(torch.arange(0, width, 2, device=x.device) * (-math.log(1e4) / width))
        angles = torch.arange(count, device=x.device)[:, None] * rates
        return x + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class AttentionBlock(nn.Module):
    """ViS4mer's block with attention for S4: (B, T, dim) -> (B, ceil(T/2), dim/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads=dim // 256, attn_head_dim=64, qkv_bias=True)
        self.reduce = nn.Linear(dim, dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.reduce(halve(x + self.attention(self.norm(x)))))


def make_model(name: str) -> nn.Module:
    kind, variant = name.split()
    if kind == 'vis4mer':
        init = 'legs' if variant == 's4d' else None
        return ViS4merHead(FEATURES, CLASSES, mixer_args={'kernel': variant, 'init': init}, proj_drop_rate=0.0)
    if kind == 'attention':
        model = ViS4merHead(FEATURES, CLASSES)
        model.blocks = nn.Sequential(Positions(), *(AttentionBlock(1024 // 2**i) for i in range(3)))
    else:
        blocks = [Block(WIDTH, HEADS, qkv_bias=True) for _ in range(3)]
        model = nn.Sequential(
            nn.Linear(FEATURES, WIDTH), Positions(), *blocks, nn.LayerNorm(WIDTH), Mean(), nn.Linear(WIDTH, CLASSES)
        )
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.fused_attn = variant == 'fused'
    return model


class Mean(nn.Module):
    """Over time: (B, T, d) -> (B, d)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def training_step(name: str, tokens: int, batch: int, device: str) -> Callable[[], None]:
    """A training step of a fresh model on one batch of noise."""
    model = make_model(name).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, target = torch.randn(batch, tokens, FEATURES, device=device), torch.arange(batch, device=device) % CLASSES

    def step() -> None:
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(tokens: int, chosen: dict[str, str]) -> list[dict[str, object]]:
    arguments = (tokens, int(chosen['batch']), chosen['device'])
    seconds = medians(
        {name: training_step(name, *arguments) for name in MODELS}, int(chosen['rounds']), chosen['device']
    )
    first = MODELS[0]
    rows = [
        {
            'tokens': tokens,
            'head': name,
            'parameters': sum(p.numel() for p in make_model(name).parameters()),
            's a step': seconds[name],
            'time ratio': seconds[name] / seconds[first],
        }
        for name in MODELS
    ]
    if chosen['memory'] == 'true' and chosen['device'] == 'cpu':
        peaks = {name: peak_memory(training_step, name, *arguments) for name in MODELS}
        rows = [
            row | {'peak GB': peaks[row['head']], 'memory ratio': peaks[row['head']] / peaks[first]} for row in rows
        ]
    return rows


def picture(rows: list[dict]) -> Figure:
    columns = [key for key in ('s a step', 'peak GB') if key in rows[0]]
    figure = pictures.figure(4)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(panels, columns, strict=True):
        for name in MODELS:
            own = [row for row in rows if row['head'] == name]
            line = '--' if name.endswith('plain') else '-'
            axis.loglog([row['tokens'] for row in own], [row[column] for row in own], line, marker='o', label=name)
        axis.set_xlabel('tokens')
        axis.set_ylabel('seconds per step' if column == 's a step' else column)
    pictures.legend(figure, panels)
    return figure


if __name__ == '__main__':
    defaults = {'tokens': '64,256,1024', 'batch': '8', 'threads': '2', 'device': 'cpu', 'rounds': '3'}
    chosen = options(defaults | {'memory': 'true', 'out': 'out/vis4mer'})
    measured = setup(chosen['threads'], chosen['device']) + f', s4nd {s4nd.__version__}, batch {chosen["batch"]}, fp32'
    found = []
    for tokens in chosen['tokens'].split(','):
        found += measure(int(tokens), chosen)
        print(table(found), flush=True)
    save(chosen['out'], 'vis4mer', measured, found, lambda: picture(found))
