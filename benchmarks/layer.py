"""What does an S4ND layer cost beside the depthwise convolution that it replaces, and beside the published method?

    python benchmarks/layer.py [format=contiguous threads=2 device=cpu rounds=9 small=false out=out/layer]

S4ND (N = 64, bidirectional, S4D) against a depthwise convolution of 7 a side and against the published evaluation of
the same kernel: an FFT over all axes at once at twice the size, times the outer product of the axes' spectra.
`forward` is in evaluation, where our taps are remembered (the published method is given them too, and spared making
its kernel); `training` is forward and backward with the kernels made anew. float32, milliseconds; ratios are of
medians of interleaved runs.

format=channels_last measures ConvNeXt's stages and clips in that format, where a CPU takes one convolution per axis,
beside matrix products (method 'toeplitz') for the same layer.
"""

import copy

import torch
from common import medians, options, save, setup, table
from matplotlib.figure import Figure
from torch import Tensor, nn

from s4nd import S4ND, pictures

STAGES = [(8, 96, 56, 56), (8, 192, 28, 28), (8, 384, 14, 14), (8, 768, 7, 7)]
SIZES = [(2, 16, 64, 64), (2, 16, 128, 128), (2, 16, 256, 256), (2, 16, 512, 512), (2, 16, 1024, 1024)]
CLIPS = (2, 96, 8, 28, 28)
SHAPES = {'contiguous': [*STAGES, (32, 768, 7, 7), CLIPS, *SIZES], 'channels_last': [*STAGES, CLIPS]}


def published(layer: S4ND, x: Tensor, taps: list[Tensor], centers: list[int]) -> Tensor:
    """The same convolution as one N-D FFT product at twice the size."""
    size = x.shape[2:]
    double = [2 * length for length in size]
    spectrum = torch.ones(1, device=x.device)
    for axis, (k, center) in enumerate(zip(taps, centers, strict=True)):
        behind, ahead = k[0, :, :center], k[0, :, center:]
        gap = k.new_zeros(len(ahead), double[axis] - k.shape[-1])
        wrapped = torch.cat([ahead, gap, behind], 1)
        last = axis == len(size) - 1
        one = torch.fft.rfft(wrapped) if last else torch.fft.fft(wrapped)
        spectrum = spectrum * one.reshape(len(ahead), *[-1 if other == axis else 1 for other in range(len(size))])
    axes = tuple(range(2, x.dim()))
    y = torch.fft.irfftn(torch.fft.rfftn(x, s=double, dim=axes) * spectrum, s=double, dim=axes)
    for axis, length in enumerate(size):
        y = y.narrow(axis + 2, 0, length)
    return y + layer.D.reshape(-1, *[1] * len(size)) * x


def measure(shape: tuple[int, ...], rounds: int, device: str, last: bool) -> dict[str, object]:
    channels, size = shape[1], shape[2:]
    layout = torch.contiguous_format
    if last:
        layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    convolution = nn.Conv2d if len(size) == 2 else nn.Conv3d
    conv = convolution(channels, channels, 7, padding=3, groups=channels).to(device, memory_format=layout)
    layer = S4ND(channels, size, d_state=64).to(device)
    x, weight = (torch.randn(shape, device=device).contiguous(memory_format=layout) for _ in range(2))
    signal = x.clone().requires_grad_()
    products = copy.deepcopy(layer)
    products.method = 'toeplitz'
    row: dict[str, object] = {'shape': '×'.join(map(str, shape))}

    layer.eval(), products.eval()
    with torch.no_grad():
        remembered = layer.operators(list(size), [1.0] * len(size))
        torch.testing.assert_close(published(layer, x, *remembered), layer(x), atol=1e-4, rtol=1e-4)
        forward = medians(
            {
                'conv': lambda: conv(x),
                'ours': lambda: layer(x),
                'published': lambda: published(layer, x, *remembered),
                **({'products': lambda: products(x)} if last else {}),
            },
            rounds,
            device,
        )
    layer.train(), products.train()
    training = medians(
        {
            'conv': lambda: conv(signal).backward(weight),
            'ours': lambda: layer(signal).backward(weight),
            'published': lambda: published(layer, signal, *layer.operators(list(size), [1.0] * len(size))).backward(
                weight
            ),
            'kernel': lambda: sum(k.sum() for k in layer.operators(list(size), [1.0] * len(size))[0]).backward(),
            **({'products': lambda: products(signal).backward(weight)} if last else {}),
        },
        rounds,
        device,
    )
    for part, found in (('forward', forward), ('training', training)):
        row |= {f'{part} ms': 1000 * found['ours'], f'{part} / conv': found['ours'] / found['conv']}
        row[f'published / {part}'] = found['published'] / found['ours']
        if last:
            row[f'products / {part}'] = found['products'] / found['ours']
    row['kernel share'] = training['kernel'] / training['ours']
    return row


def picture(rows: list[dict]) -> Figure:
    figure = pictures.figure(4.2)
    panels = figure.subplots(1, 2)
    for axis, part in zip(panels, ('forward', 'training'), strict=True):
        places = range(len(rows))
        axis.bar(places, [row[f'{part} / conv'] for row in rows], color='C0', label='S4ND')
        published = [row[f'{part} / conv'] * row[f'published / {part}'] for row in rows]
        axis.plot(places, published, 'D', color='C1', label='published method')
        axis.axhline(1, color=pictures.ink(), linewidth=0.8, label='depthwise convolution')
        axis.set(yscale='log', title=part, ylabel='time / depthwise convolution')
        axis.set_xticks(places, [row['shape'] for row in rows], rotation=60, ha='right', fontsize=8)
    pictures.legend(figure, panels)
    return figure


if __name__ == '__main__':
    chosen = options(
        {'format': 'contiguous', 'threads': '2', 'device': 'cpu', 'rounds': '9', 'small': 'false', 'out': 'out/layer'}
    )
    measured = setup(chosen['threads'], chosen['device'])
    shapes = [(2, 8, 14, 14), (2, 8, 4, 6, 5)] if chosen['small'] == 'true' else SHAPES[chosen['format']]
    found = []
    for shape in shapes:
        rounds = int(chosen['rounds']) if max(shape) < 512 else 3
        found.append(measure(shape, rounds, chosen['device'], chosen['format'] == 'channels_last'))
        print(table(found).splitlines()[-1] if len(found) > 1 else table(found), flush=True)
    print(f'\n{table(found)}')
    name = 'layer' if chosen['format'] == 'contiguous' else 'layer_channels_last'
    save(chosen['out'], name, measured, found, lambda: picture(found))
