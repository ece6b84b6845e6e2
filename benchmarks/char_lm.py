"""Which layer models text best for equal time? Character models of equal time a training step, bits a character.

    python benchmarks/char_lm.py [text=FILE models=s4d,gss,gss-hybrid,mega-chunk,transformer width=128 depth=4
                                  length=512 batch=4 chunk=128 d_state=256 steps=1000 lr=0.004 seed=0 rounds=15
                                  threads=1 match=time out=out/char_lm]

Characters are bytes of UTF-8. Without text=FILE the text is the standard library of the Python that runs: the modules
of its top folder, sorted by name, one after the other (4.7 MB in Python 3.11). The last twentieth is held out.

Every model is an embedding, `depth` layers, a norm and a head, trained with the same recipe on the same windows of
`length` characters for the same number of steps:

    s4d         norm -> S4D (N = 64) -> GELU -> linear -> GLU, residual
    dss         the same with DSS-exp of 64 modes, as released
    gss         GSS, reduce 4, expand 4
    gss-hybrid  the same, the second layer of four a Transformer block with causal attention in chunks
    mega-chunk  Mega with attention in chunks, each followed by a feed-forward of twice the width
    transformer causal attention over the whole window with rotary positions, and an MLP of four times the width

`width` is that of s4d, `chunk` that of both attentions, `d_state` that of GSS. The widths of the others, multiples of
4, are those whose step takes as long (interleaved medians, s4d beside each), or with match=size those with the most
nearly equal number of parameters. steps=0 ends after that. Bits a character
are those of the held-out text in windows of `length` and of 8 · `length`. Every result is written when it is there; a
second run takes those of the same settings from the folder.
"""

import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import medians, options, save, setup, table
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd import GSS, GSSHybrid, Mega, param_groups
from s4nd.files import write_atomically
from s4nd.layers.attention import LocalAttention
from s4nd.models.s4_block import FeedForward, S4Block

Settings = dict[str, str]

SIZES = {'width': '128', 'depth': '4', 'length': '512', 'batch': '4', 'chunk': '128', 'd_state': '256'}
RECIPE = {'text': '', 'steps': '1000', 'lr': '0.004', 'seed': '0'}


class Transposed(nn.Module):
    """A layer of (B, C, L) signals on (B, L, C)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


def layers(name: str, width: int, settings: Settings) -> list[nn.Module]:
    """The layers of a model, (B, L, width) -> (B, L, width)."""
    depth, chunk, d_state = (int(settings[key]) for key in ('depth', 'chunk', 'd_state'))
    if name == 's4d':
        return [S4Block(width, mixer_args={'kernel': 's4d'}) for _ in range(depth)]
    if name == 'dss':
        return [S4Block(width, mixer_args={'kernel': 'dss-exp', 'd_state': 128}) for _ in range(depth)]
    if name == 'gss':
        return [Transposed(GSS(width, d_state=d_state)) for _ in range(depth)]
    if name == 'gss-hybrid':
        return [Transposed(GSSHybrid(width, depth, chunk=chunk, num_heads=4, d_state=d_state))]
    if name == 'mega-chunk':
        return [nn.Sequential(Transposed(Mega(width, chunk=chunk)), FeedForward(width, 2, 0.0)) for _ in range(depth)]
    if name == 'transformer':
        return [Transposed(LocalAttention(width, num_heads=4, chunk=None)) for _ in range(depth)]
    sys.exit(f"unknown model '{name}': expected some of s4d, dss, gss, gss-hybrid, mega-chunk, transformer")


def make_model(name: str, width: int, settings: Settings) -> nn.Module:
    """Bytes (B, L) -> logits (B, L, 256) of the next one."""
    torch.manual_seed(int(settings['seed']))
    inner = layers(name, width, settings)
    return nn.Sequential(nn.Embedding(256, width), *inner, nn.LayerNorm(width), nn.Linear(width, 256))


def read_text(path: str) -> tuple[Tensor, Tensor]:
    """The training part and the held-out end of a file ('': of the standard library), as bytes."""
    if path:
        if not Path(path).is_file():
            sys.exit(f'{path}: no such file')
        data = Path(path).read_bytes()
    else:
        modules = sorted(Path(sysconfig.get_paths()['stdlib']).glob('*.py'))
        data = b'\n'.join(module.read_bytes() for module in modules)
    if len(data) < 500_000:
        sys.exit(f'{path or "the standard library"} holds {len(data)} bytes; expected 500000 at least: give text=FILE')
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return text[: -len(text) // 20], text[-len(text) // 20 :]


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean nats a character of windows (B, L + 1) of bytes."""
    windows = windows.long()
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def stepper(name: str, width: int, settings: Settings) -> Callable[[], None]:
    """A training step on random bytes, for timing."""
    model = make_model(name, width, settings)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-3))
    windows = torch.randint(256, (int(settings['batch']), int(settings['length']) + 1))

    def step() -> None:
        optimizer.zero_grad()
        loss(model, windows).backward()
        optimizer.step()

    return step


def match_size(name: str, settings: Settings) -> dict[str, object]:
    """The width with which `name` has about as many parameters as s4d."""

    def size(name: str, width: int) -> int:
        return sum(p.numel() for p in make_model(name, width, settings).parameters())

    widths = range(4, 2 * int(settings['width']) + 1, 4)
    target = size('s4d', int(settings['width']))
    return {'width': min(widths, key=lambda width: abs(size(name, width) - target))}


def match_width(name: str, settings: Settings) -> dict[str, object]:
    """The width with which a step of `name` takes as long as that of s4d, its milliseconds, and the ratio."""
    reference, rounds = int(settings['width']), int(settings['rounds'])
    if name == 's4d':
        seconds = medians({name: stepper(name, reference, settings)}, rounds)[name]
        return {'width': reference, 'ms per step': 1e3 * seconds, 'of s4d': 1.0}
    width, found = 4 * round(0.15 * reference), {}
    while width not in found:
        candidates = {key: stepper(key, size, settings) for key, size in (('s4d', reference), (name, width))}
        seconds = medians(candidates, rounds)
        ratio = seconds[name] / seconds['s4d']
        found[width] = {'width': width, 'ms per step': 1e3 * seconds[name], 'of s4d': ratio}
        print(f'{name}: a step at width {width} takes {ratio:.3f} of the time of s4d', flush=True)
        if abs(ratio - 1) > 0.03:
            # Time grows with a power of the width between 1 and 2.
            width = max(4, 4 * round(width * ratio ** (-2 / 3) / 4))
    return min(found.values(), key=lambda row: abs(row['of s4d'] - 1))


def train(name: str, width: int, settings: Settings, text: Tensor) -> nn.Module:
    """The model after `steps` updates on random windows, the same ones for every model."""
    model, steps = make_model(name, width, settings), int(settings['steps'])
    optimizer = torch.optim.AdamW(param_groups(model, float(settings['lr']), weight_decay=0.01))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * t / steps))
    )
    generator = torch.Generator().manual_seed(int(settings['seed']))
    offsets = torch.arange(int(settings['length']) + 1)
    for t in range(steps):
        starts = torch.randint(len(text) - len(offsets), (int(settings['batch']), 1), generator=generator)
        value = loss(model, text[starts + offsets])
        if t % 100 == 0:
            print(f'{name}: step {t} of {steps}, {value.item() / math.log(2):.3f} bits', flush=True)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def bits(model: nn.Module, text: Tensor, length: int) -> float:
    """Mean bits a character in consecutive windows of `length`, nothing carried from one to the next."""
    windows = text[: (len(text) - 1) // length * length + 1].unfold(0, length + 1, length)
    total = sum(loss(model, part).item() * len(part) for part in windows.split(max(1, 4096 // length)))
    return total / len(windows) / math.log(2)


def train_and_test(name: str, width: int, settings: Settings) -> dict[str, object]:
    """What the table says of a model after its training."""
    length, start, (text, held_out) = int(settings['length']), time.perf_counter(), read_text(settings['text'])
    model = train(name, width, settings, text)
    minutes = (time.perf_counter() - start) / 60
    found = {f'bits at {n}': bits(model, held_out, n) for n in (length, 8 * length)}
    return {'parameters': sum(p.numel() for p in model.parameters()), **found, 'minutes': minutes}


def stored(path: Path, settings: Settings, compute: Callable[[], dict[str, object]]) -> dict[str, object]:
    """compute(), or what it gave an earlier run with the same settings."""
    if path.exists():
        known = json.loads(path.read_text(encoding='utf-8'))
        if known['settings'] == settings:
            return known['row']
    row = compute()
    content = json.dumps({'settings': settings, 'row': row}, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding='utf-8'))
    return row


def measure(name: str, settings: Settings) -> dict[str, object]:
    """The row of a model: its width, and what its training gave."""
    folder = Path(settings['out'])
    timed = {key: settings[key] for key in (*SIZES, 'threads', 'match')}
    match = {'time': match_width, 'size': match_size}[settings['match']]
    row = {'model': name, **stored(folder / f'{name}_width.json', timed, lambda: match(name, settings))}
    if int(settings['steps']) == 0:
        return row
    learned = timed | {key: settings[key] for key in RECIPE}
    return row | stored(folder / f'{name}.json', learned, lambda: train_and_test(name, row['width'], settings))


if __name__ == '__main__':
    names = 's4d,gss,gss-hybrid,mega-chunk,transformer'
    chosen = options(
        {'models': names, **SIZES, **RECIPE, 'rounds': '15', 'threads': '1', 'match': 'time', 'out': 'out/char_lm'}
    )
    measured, rows = setup(chosen['threads'], 'cpu'), []
    for model in chosen['models'].split(','):
        rows.append(measure(model, chosen))
        print(table(rows), flush=True)
    save(chosen['out'], 'char_lm', measured, rows)
