"""How fast does the output converge as the same signal is sampled more finely? The order, for a layer and a model.

    python benchmarks/resolution_order.py [seeds=0,1,2,3 sizes=16,32,64,128,256 out=out/resolution_order]

One axis and smooth signals (sums of 6 cosines of up to 3 cycles, at the centers of cells). The output at each size is
compared with that at four times the largest size, averaged to the coarser cells: ‖coarse - fine‖ / ‖fine‖ over the
middle half of the axis, float64, mean over seeds. `order` is the log-log slope over all sizes, `last` that between the
last two: -1 halves the change at twice the samples.

Layers are S4ND with its three cells; models are `s4nd_isotropic_mini` in two dimensions over signals that vary along
both axes, whose logits are compared (sizes above 64 are left out). Both were built for the smallest size. A filtered
GELU is computed at twice the size, between Fourier interpolations that continue the maps periodically or mirrored.
"""

import math
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from common import options, save, setup, table
from torch import Tensor

from s4nd import S4ND


def signal(seed: int, channels: int, size: int) -> Tensor:
    """(1, channels, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    frequency, amplitude, phase = (
        draw(channels, 6, 1, generator=generator, dtype=torch.float64) for draw in (torch.rand, torch.randn, torch.rand)
    )
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return (amplitude * torch.cos(2 * math.pi * (3 * frequency * place + phase))).sum(1)[None]


def layer_changes(cell: str, bandlimit: float | None, sizes: list[int], seed: int) -> list[float]:
    torch.manual_seed(seed)
    layer = S4ND(16, (sizes[0],), cell=cell, bandlimit=bandlimit, skip=False, dtype=torch.float64).eval()
    fine = layer(signal(seed, 16, 4 * sizes[-1]))
    changes = []
    for size in sizes:
        coarse, other = layer(signal(seed, 16, size)), fine.unflatten(2, (size, -1)).mean(-1)
        inside = slice(size // 4, size - size // 4)
        changes.append(((coarse - other)[..., inside].norm() / other[..., inside].norm()).item())
    return changes


def model_changes(gelu: str, bandlimit: float | None, sizes: list[int], seed: int) -> list[float]:
    torch.manual_seed(seed)
    args = {'dim': 16, 'depths': [1, 1, 1], 'd_state': 16, 'bandlimit': bandlimit}
    model = timm.create_model('s4nd_isotropic_mini', img_size=sizes[0], **args).double().eval()

    def logits(size: int) -> Tensor:
        with patch.object(F, 'gelu', GELUS[gelu]):
            return model(signal(seed, 3, size)[..., None] * signal(seed + 1, 3, size)[..., None, :])

    fine = logits(2 * sizes[-1])
    return [((logits(size) - fine).norm() / fine.norm()).item() for size in sizes]


def interpolated(x: Tensor, height: int, width: int) -> Tensor:
    """Maps (…, H, W) at (…, height, width), both even, by their Fourier coefficients below the Nyquist limits."""
    spectrum = torch.fft.rfft2(x)
    rows, columns = min(x.shape[-2], height) // 2, min(x.shape[-1], width) // 2
    other = spectrum.new_zeros(*x.shape[:-2], height, width // 2 + 1)
    other[..., :rows, :columns] = spectrum[..., :rows, :columns]
    other[..., 1 - rows :, :columns] = spectrum[..., 1 - rows :, :columns]
    return torch.fft.irfft2(other, s=(height, width)) * (height * width / (x.shape[-2] * x.shape[-1]))


def filtered_gelu(x: Tensor, mirrored: bool, gelu: Callable[[Tensor], Tensor] = F.gelu) -> Tensor:
    """GELU of maps (B, C, H, W) at twice the size, without what the smaller one cannot hold."""
    height, width = x.shape[-2:]
    if mirrored:
        x = torch.cat([x, x.flip(-1)], -1)
        x = torch.cat([x, x.flip(-2)], -2)
    rows, columns = x.shape[-2:]
    return interpolated(gelu(interpolated(x, 2 * rows, 2 * columns)), rows, columns)[..., :height, :width]


GELUS = {
    'plain': F.gelu,
    'filtered, periodic': partial(filtered_gelu, mirrored=False),
    'filtered, mirrored': partial(filtered_gelu, mirrored=True),
}


def slope(sizes: list[int], changes: list[float]) -> float:
    """Of the least-squares line through (log size, log change)."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, changes))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@torch.no_grad()
def main(chosen: dict[str, str]) -> None:
    measured = setup('1', 'cpu')
    sizes = [int(size) for size in chosen['sizes'].split(',')]
    seeds = [int(seed) for seed in chosen['seeds'].split(',')]
    kinds = [('layer', cell, limit) for cell in ('input', 'training', 'published') for limit in (0.5, 1.0)]
    kinds += [('model', gelu, limit) for gelu in GELUS for limit in (0.5, 1.0)]
    rows = []
    for what, variant, limit in kinds:
        used = sizes if what == 'layer' else [size for size in sizes if size <= 64]
        measure = layer_changes if what == 'layer' else model_changes
        found = [measure(variant, limit, used, seed) for seed in seeds]
        means = [sum(values) / len(values) for values in zip(*found, strict=True)]
        row = {'what': what, 'cell or GELU': variant, 'bandlimit': limit}
        row |= {str(size): f'{100 * m:.3g} %' for size, m in zip(used, means, strict=True)}
        row |= {str(size): '' for size in sizes if size not in used}
        rows.append(row | {'order': slope(used, means), 'last': slope(used[-2:], means[-2:])})
    print(table(rows))
    save(chosen['out'], 'resolution_order', measured, rows)


if __name__ == '__main__':
    main(options({'seeds': '0,1,2,3', 'sizes': '16,32,64,128,256', 'out': 'out/resolution_order'}))
