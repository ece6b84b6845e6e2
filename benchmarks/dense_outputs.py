"""Dense outputs at the input's own grid: models trained at 16 × 16 and scored at 16, 32 and 64, directly and resized.

    python benchmarks/dense_outputs.py [problem=darcy|figures models=s4nd,conv,fno seeds=0,1,2 train=1000 test=200
                                        epochs=20 threads=1 out=out/dense]

`darcy`: pressure u of -∇·(a ∇u) = 1 in the unit square, u = 0 at its edge, from the permeability a, which is 12 where a
Gaussian field of covariance (-Δ + 9)⁻² is positive and 3 elsewhere, as in the literature on neural operators. Solved
here by finite volumes on 64 × 64 cells in float64 (direct, by blocks of rows); other sizes are area averages. Error in
percent: ‖û - u‖ / ‖u‖, lower is better.

`figures`: which pixels of a scene of `ShapeSet` (a disc or a cross) belong to the figure. Intersection over union in
percent, higher is better.

Each model has these rows: `direct` runs on the grid of the input; `resized` averages the input to 16 × 16, runs there
and interpolates the output (bicubic) to the grid of the input; `resized_odd` continues the output beyond the edge with
the opposite sign before that, which suits an output of 0 at the edge (darcy). The fno is that of the package
neuraloperator, which must be installed for it. The models have about as many parameters, the same inputs (with
coordinates), loss and steps.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import timm
import torch
import torch.nn.functional as F
from common import options, save, setup, table
from torch import Tensor, nn

import s4nd
from s4nd.data import ShapeSet
from s4nd.data.images.resize import resize
from s4nd.resolution import area_resize

TRAINED, SIZES = 16, (16, 32, 64)


def permeability(count: int, size: int, seed: int) -> Tensor:
    """(count, size, size), float64: 12 or 3 at the centers of the cells."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.arange(size, dtype=torch.float64)
    spectrum = (math.pi**2 * (wave[:, None] ** 2 + wave**2) + 9) ** -1
    spectrum[0, 0] = 0  # as often above zero as below
    coefficients = torch.randn(count, size, size, generator=generator, dtype=torch.float64) * spectrum
    cosines = torch.cos(math.pi * wave * (wave[:, None] + 0.5) / size)  # (place, wave)
    return torch.where(cosines @ coefficients @ cosines.T > 0, 12.0, 3.0).double()


def pressure(a: Tensor) -> Tensor:
    """Solve -∇·(a ∇u) = 1 with u = 0 at the edge by finite volumes: a (B, n, n) -> u (B, n, n), float64."""
    count, n, _ = a.shape
    padded = F.pad(a[:, None], (1, 1, 1, 1), mode='replicate')[:, 0]

    def conductance(one: Tensor, other: Tensor) -> Tensor:
        return 2 * one * other / (one + other)

    down = conductance(padded[:, 1:, 1:-1], padded[:, :-1, 1:-1])  # (B, n + 1, n): across the rows' borders
    right = conductance(padded[:, 1:-1, 1:], padded[:, 1:-1, :-1])
    down[:, (0, -1)] *= 2  # the edge is half a cell away
    right[:, :, (0, -1)] *= 2
    diagonal = down[:, 1:] + down[:, :-1] + right[:, :, 1:] + right[:, :, :-1]
    source = torch.full((count, n, 1), 1 / n**2, dtype=a.dtype)
    # Block elimination, a row of cells at a time: D_j u_j = b_j + E_{j+1} u_{j+1}.
    blocks, sides = [], []
    for j in range(n):
        block, side = torch.diag_embed(diagonal[:, j]), source
        block = block - torch.diag_embed(right[:, j, 1:-1], 1) - torch.diag_embed(right[:, j, 1:-1], -1)
        if j:
            link = down[:, j]
            solved = torch.linalg.solve(blocks[-1], torch.cat([torch.diag_embed(link), sides[-1]], 2))
            block = block - link[..., None] * solved[..., :n]
            side = side + link[..., None] * solved[..., n:]
        blocks.append(block)
        sides.append(side)
    rows = [torch.linalg.solve(blocks[-1], sides[-1])]
    for j in range(n - 2, -1, -1):
        rows.insert(0, torch.linalg.solve(blocks[j], sides[j] + down[:, j + 1, :, None] * rows[0]))
    return torch.stack(rows, 1)[..., 0]


def darcy(count: int, seed: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Size -> inputs (count, 1, n, n) and targets of mean square about 1."""
    a = permeability(count, max(SIZES), seed)
    u = torch.cat([pressure(part) for part in a.split(50)])
    fields = {n: [area_resize(field[:, None], [n, n]).float() for field in (a, u)] for n in SIZES}
    return {n: ((a - 7.5) / 4.5, u / 0.008) for n, (a, u) in fields.items()}


def figures(count: int, seed: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Size -> pictures (count, 3, n, n) and the share of each pixel that the figure covers."""
    scenes = ShapeSet.draw(5 * count, seed)
    scenes = scenes.select((scenes.labels >= 8).nonzero()[:, 0])
    silhouettes = replace(
        scenes,
        colors=torch.tensor([0.0, 1.0])[:, None].expand(len(scenes.labels), 2, 3),
        waves=scenes.waves * torch.tensor([1.0, 1, 1, 0, 1]),
    )
    return {n: (scenes.at(n) / 128.0 - 1, silhouettes.at(n)[:, :1] / 255.0) for n in SIZES}


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)


def overlap(output: Tensor, target: Tensor) -> Tensor:
    found, real = output > 0, target > 0.5
    return (found & real).flatten(1).sum(1) / (found | real).flatten(1).sum(1)


# Problem -> data, loss per example, score per example.
PROBLEMS: dict[str, tuple[Callable, Callable, Callable]] = {
    'darcy': (darcy, relative_error, relative_error),
    'figures': (figures, F.binary_cross_entropy_with_logits, overlap),
}


class Dense(nn.Module):
    """An isotropic model of this package with a linear head at each position."""

    def __init__(self, name: str, in_chans: int, **args: object) -> None:
        super().__init__()
        self.body = timm.create_model(name, img_size=TRAINED, in_chans=in_chans, num_classes=0, **args)
        self.head = nn.Conv2d(self.body.num_features, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body.forward_features(x))


def make(name: str, in_chans: int) -> nn.Module:
    depths = [1, 1, 1, 1]
    if name == 's4nd':
        return Dense('s4nd_isotropic_mini', in_chans, dim=48, depths=depths, d_state=32, bandlimit=0.5)
    if name == 'conv':
        return Dense('conv2d_isotropic_mini', in_chans, dim=68, depths=depths)
    if name == 'fno':
        from neuralop.models import FNO

        return FNO((8, 8), in_chans, 1, hidden_channels=12, n_layers=4, positional_embedding=None)
    raise ValueError(f'models: expected some of s4nd, conv, fno, got {name!r}')


def with_coordinates(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = (2 * (torch.arange(n) + 0.5) / n - 1 for n in (height, width))
    lines = torch.stack(torch.meshgrid(rows, columns, indexing='ij'))
    return torch.cat([x, lines.expand(len(x), -1, -1, -1)], 1)


def direct(model: nn.Module, x: Tensor) -> Tensor:
    return model(with_coordinates(x))


def resized(model: nn.Module, x: Tensor) -> Tensor:
    return F.interpolate(direct(model, resize(x, TRAINED)), x.shape[2:], mode='bicubic', align_corners=False)


def resized_odd(model: nn.Module, x: Tensor) -> Tensor:
    output, beyond = direct(model, resize(x, TRAINED)), 4
    for dim in (2, 3):
        ends = [-output.narrow(dim, start, beyond).flip(dim) for start in (0, TRAINED - beyond)]
        output = torch.cat([ends[0], output, ends[1]], dim)
    times = [size // TRAINED for size in x.shape[2:]]
    sizes = [output.shape[2] * times[0], output.shape[3] * times[1]]
    fine = F.interpolate(output, sizes, mode='bicubic', align_corners=False)
    rows, columns = (slice(beyond * n, -beyond * n) for n in times)
    return fine[..., rows, columns]


WAYS = {'darcy': (direct, resized, resized_odd), 'figures': (direct, resized)}


def train(model: nn.Module, x: Tensor, y: Tensor, loss: Callable, epochs: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=4e-3, weight_decay=0.01, ssm_lr=2e-3))
    total = epochs * (len(x) // 25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g['lr'] for g in optimizer.param_groups], total)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // 25 * 25].split(25):
            optimizer.zero_grad()
            loss(direct(model, x[rows]), y[rows]).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def measure(model: nn.Module, way: Callable, x: Tensor, y: Tensor, score: Callable) -> tuple[float, float]:
    """The mean score in percent, and milliseconds per input (median over batches)."""
    found, times = [], []
    for part, target in zip(x.split(20), y.split(20), strict=True):
        start = time.perf_counter()
        output = way(model, part)
        times.append((time.perf_counter() - start) / len(part))
        found.append(score(output, target))
    return 100 * torch.cat(found).mean().item(), 1000 * statistics.median(times)


def main(chosen: dict[str, str]) -> None:
    measured = setup(chosen['threads'], 'cpu')
    if chosen['problem'] not in PROBLEMS:
        sys.exit(f'problem: expected {" or ".join(PROBLEMS)}, got {chosen["problem"]!r}')
    data, loss, score = PROBLEMS[chosen['problem']]
    shown, held_out = data(int(chosen['train']), 0), data(int(chosen['test']), 10_000)
    rows = []
    for name in chosen['models'].split(','):
        cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for seed in map(int, chosen['seeds'].split(',')):
            torch.manual_seed(seed)
            model = make(name, shown[TRAINED][0].shape[1] + 2)
            train(model, *shown[TRAINED], loss, int(chosen['epochs']), seed)
            model.eval()
            for way in WAYS[chosen['problem']]:
                for size in SIZES:
                    cells.setdefault((way.__name__, size), []).append(measure(model, way, *held_out[size], score))
        parameters = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
        for way in (way.__name__ for way in WAYS[chosen['problem']]):
            row = {'model': name, 'run': way, 'parameters': parameters}
            for size in SIZES:
                values, times = zip(*cells[way, size], strict=True)
                row[f'@{size}'] = f'{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})'
                row[f'ms@{size}'] = statistics.median(times)
            rows.append(row)
            print(row, flush=True)
    print(table(rows))
    save(chosen['out'], f'dense_{chosen["problem"]}', measured, rows)


if __name__ == '__main__':
    defaults = {'problem': 'darcy', 'models': 's4nd,conv,fno', 'seeds': '0,1,2', 'train': '1000', 'test': '200'}
    main(options(defaults | {'epochs': '20', 'threads': '1', 'out': 'out/dense'}))
