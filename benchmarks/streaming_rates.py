"""A causal classifier of sound, streamed sample by sample at a lower rate than it was trained at, or resampled first.

    python benchmarks/streaming_rates.py digits=FOLDER [models=s4,conv seeds=0 rate=4000 epochs=4 test=300 threads=1
                                         cache=out/cache out=out/streaming]

Spoken digits at 8 kHz, the first half second of each recording; the class is read from the mean of all samples so far.
`s4`: three gated blocks of a causal S4D whose modes end at 2 kHz. `conv`: the same blocks around causal depthwise
convolutions, as many parameters. Norms are batch norms, so that nothing but the GELU and the gates makes frequencies.

Rows at `rate` (Hz): `direct` takes one step per sample received, at a dt that is 8000 / rate times as long; `resampled`
brings the samples to 8 kHz first and takes the steps of that rate (the time of the resampling is not counted). The
answers are those of the recurrence; `apart` is the largest difference to the convolution over the whole clip, relative
to the largest answer. Times are seconds per second of sound, one stream, medians of rounds in which all
models take turns; with epochs=0 nothing else is of use.
"""

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from common import medians, options, save, setup, table
from torch import Tensor, nn

from audio.data.datasets import Labeled
from audio.data.parts import AudioData, clip_parts
from audio.io import resample
from s4nd import param_groups
from s4nd.layers.block import GatedLayer, Residual
from s4nd.layers.s4 import S4
from s4nd.layers.streaming import State
from s4nd.models.sequence import SequenceModel

TRAINED, SECONDS, WIDTH, LAYERS = 8000, 0.5, 32, 3
TIMED = 400  # steps


class CausalConv(nn.Module):
    """A causal depthwise convolution that streams: (B, H, L) -> (B, H, L)."""

    def __init__(self, d_model: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_model, taps) / math.sqrt(taps))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        past = self.weight.shape[1] - 1
        return F.conv1d(F.pad(x, (past, 0)), self.weight[:, None], self.bias, groups=len(self.weight))

    def init_state(self, batch: int) -> State:
        return {'x': self.weight.new_zeros(batch, len(self.weight), self.weight.shape[1] - 1)}

    def system(self, step: float = 1.0) -> None:
        if step != 1:
            raise ValueError(f'a convolution counts samples: expected step 1, got {step}')

    def step(self, x: Tensor, state: State, system: None = None) -> tuple[Tensor, State]:
        window = torch.cat([state['x'], x[..., None]], -1)
        return torch.einsum('bht,ht->bh', window, self.weight) + self.bias, {'x': window[..., 1:]}


def make(name: str) -> SequenceModel:
    layers: dict[str, Callable[[], nn.Module]] = {
        's4': lambda: S4(WIDTH, (round(TRAINED * SECONDS),), 's4d', init='lin', dt_max=0.5, bandlimit=0.5),
        'conv': lambda: CausalConv(WIDTH, 69),
    }
    if name not in layers:
        raise ValueError(f'models: expected some of {", ".join(layers)}, got {name!r}')
    blocks = [Residual(GatedLayer(layers[name](), WIDTH), WIDTH, norm='batch') for _ in range(LAYERS)]
    return SequenceModel(1, 10, blocks, d_model=WIDTH, head='mean', norm='batch')


def load(data: AudioData, part: str, seconds: float) -> tuple[Tensor, Tensor]:
    """Waves (N, L, 1) and labels (N,) of a part."""
    clips = list(Labeled(clip_parts(data, 0)[part]))
    waves = torch.stack([clip.wave for clip in clips])[:, : round(seconds * data.sample_rate)]
    return waves[..., None], torch.tensor([clip.label for clip in clips])


def train(model: nn.Module, waves: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(param_groups(model, lr=4e-3, weight_decay=0.01, ssm_lr=2e-3))
    total = epochs * (len(waves) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g['lr'] for g in optimizer.param_groups], total)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(waves), generator=generator)[: len(waves) // 16 * 16].split(16):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(waves[rows]), labels[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f'epoch {epoch + 1}: loss {statistics.mean(losses):.3f}', file=sys.stderr, flush=True)


@torch.no_grad()
def streamed(model: SequenceModel, waves: Tensor, step: float) -> Tensor:
    """Answers after the last sample, from a loop over the samples of all clips at once."""
    state, system, answer = model.init_state(len(waves)), model.system(step), waves
    for sample in waves.unbind(1):
        answer, state = model.step(sample, state, system)
    return answer


@torch.no_grad()
def measure(model: SequenceModel, waves: Tensor, labels: Tensor, step: float) -> tuple[float, float]:
    """Accuracy in percent of the recurrence, and how far it is from the convolution."""
    found = streamed(model, waves, step)
    whole = torch.cat([model(part) for part in waves.split(20)])
    apart = (found - whole).abs().max() / whole.abs().max()
    return 100 * (found.argmax(1) == labels).float().mean().item(), apart.item()


def main(chosen: dict[str, str]) -> None:
    measured = setup(chosen['threads'], 'cpu')
    rate, epochs = int(chosen['rate']), int(chosen['epochs'])
    data = AudioData(
        kind='digits', root=chosen['digits'], cache=chosen['cache'], sample_rate=TRAINED, clip_samples=TRAINED,
        normalize='peak', labels='name',
    )  # fmt: skip
    shown, own = load(data, 'train', SECONDS), load(data, 'test', SECONDS)
    low = load(replace(data, sample_rate=rate, clip_samples=rate), 'test', SECONDS)
    back = resample(low[0][..., 0], rate, TRAINED)[:, : own[0].shape[1], None]
    picked = torch.linspace(0, len(own[0]) - 1, min(int(chosen['test']), len(own[0]))).long()
    runs = {f'{TRAINED} Hz': (own[0], 1.0), 'direct': (low[0], TRAINED / rate), 'resampled': (back, 1.0)}
    rows, timed = [], {}
    for name in chosen['models'].split(','):
        cells: dict[str, list[tuple[float, float]]] = {}
        for seed in map(int, chosen['seeds'].split(',')):
            torch.manual_seed(seed)
            model = make(name)
            if epochs:
                train(model, *shown, epochs, seed)
            model.eval()
            for run, (waves, step) in runs.items():
                if name == 's4' or step == 1:
                    cells.setdefault(run, []).append(measure(model, waves[picked], own[1][picked], step))
                    print(name, seed, run, cells[run][-1], file=sys.stderr, flush=True)
        parameters = sum(p.numel() for p in model.parameters())
        for run, found in cells.items():
            values, apart = zip(*found, strict=True)
            accuracy = f'{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})'
            timed[f'{name} {run}'] = partial_stream(model, *runs[run])
            row = {'model': name, 'run': run, 'parameters': parameters, 'accuracy': accuracy}
            rows.append(row | {'apart': max(apart), 'steps': runs[run][0].shape[1] / SECONDS})
    for row, seconds in zip(rows, medians(timed, 9).values(), strict=True):
        row['seconds'] = seconds / TIMED * row.pop('steps')
    print(table(rows))
    save(chosen['out'], f'streaming_{rate}', measured, rows)


def partial_stream(model: SequenceModel, waves: Tensor, step: float) -> Callable[[], Tensor]:
    """The loop over the first samples of one clip."""
    return lambda: streamed(model, waves[:1, :TIMED], step)


if __name__ == '__main__':
    defaults = {'digits': '', 'models': 's4,conv', 'seeds': '0', 'rate': '4000', 'epochs': '4', 'test': '300'}
    given = options(defaults | {'threads': '1', 'cache': 'out/cache', 'out': 'out/streaming'})
    if not given['digits']:
        sys.exit(__doc__)
    main(given)
