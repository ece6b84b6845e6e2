"""What the kernels and layers are, in one place, and the tables of them in the documentation.

python -m s4nd.catalog [out=docs/reference/kernels.md]
"""

import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from s4nd import layers
from s4nd.files import write_atomically
from s4nd.kernels import KERNELS, RecurrentKernel, make_kernel
from s4nd.words import parse_words

# What parameters are counted for.
D_MODEL, D_STATE, LENGTH = 64, 64, 1024


@dataclass(frozen=True)
class KernelEntry:
    """A row of the table; whether there is a recurrence, and the numbers of parameters, come from the class."""

    system: str
    summary: str
    resolution: str
    parameters: str
    taps: str
    step: str


@dataclass(frozen=True)
class LayerEntry:
    """A row of the table; whether it streams, and the numbers of parameters, come from the class.

    Attributes:
        cost, step: order of the operations per sample of a clip, and of a stream.
        options: keywords besides d_model with which it is counted.
    """

    system: str
    summary: str
    resolution: str
    cost: str
    step: str
    options: dict[str, Any] = field(default_factory=dict)


KERNEL_ENTRIES: dict[str, KernelEntry] = {
    's4d': KernelEntry(
        'S4D, arXiv 2206.11893',
        'Diagonal state matrix; ZOH or bilinear; inits lin, inv, inv+lin, legs, real, random',
        'yes, exact',
        'H + 2SN + cHN',
        'cHNL',
        'N',
    ),
    's4': KernelEntry(
        'S4, S4 v2, arXiv 2111.00396, 2206.12037',
        'Diagonal plus low rank r; bilinear; inits legs, legt, lagt, fout, hippo, random',
        'yes, exact',
        'H + (2 + r)SN + cHN',
        'H(N³ log L + cNL)',
        'rN',
    ),
    'nplr': KernelEntry(
        'S4 as first released, ViS4mer, arXiv 2111.00396, 2204.01692',
        'A = Λ - P Q* without constraints: Re Λ free, P and Q apart, B, P, Q per feature; bilinear',
        'yes, exact',
        'H + SN + (1 + 2r + c)HN',
        'H(N³ log L + cNL)',
        'rN',
    ),
    'dss-exp': KernelEntry(
        'DSS, arXiv 2203.14343',
        'Diagonal without B, Re Λ < 0; HiPPO-LegS spectrum; released versions by real, scaled and dt_split',
        'yes, exact',
        'H + SN + cHN',
        'cHNL',
        'N',
    ),
    'dss-softmax': KernelEntry(
        'DSS, arXiv 2203.14343',
        'Diagonal without B, Re Λ free, normalized over the length of the axis and zero beyond it',
        'yes, exact: the length is held in training samples',
        'H + SN + cHN',
        'cHNL',
        '',
    ),
    'lmu': KernelEntry(
        'LMU, NeurIPS 2019',
        'Fixed Legendre memory of a window of θ samples (options: theta, train_theta), trained readout; ZOH or Euler',
        'yes, exact',
        'cHN',
        'N³ log L + cHNL',
        'N²',
    ),
    'lssl': KernelEntry(
        'LSSL, arXiv 2110.13985',
        'Dense trained A, or one of a structure; bilinear; inits legs, legt, lagt, fout; for small N',
        'yes, exact; no bandlimit',
        'H + S(N² + N) + cHN',
        'H(N³ log L + cNL)',
        'N²',
    ),
    'ema': KernelEntry(
        'Mega, arXiv 2209.10655',
        'N damped moving averages per feature, real',
        'yes, exact',
        '(3 + c)HN',
        'cHNL',
        'N',
    ),
    'sgconv': KernelEntry(
        'SGConv, arXiv 2210.09298',
        'Sub-kernels of N taps at doubling scales, interpolated, less in weight each time; joined or summed',
        'yes, by sampling the interpolation',
        'cHN(1 + ⌈log2(length/N)⌉)',
        'cHL',
        '',
    ),
    'ckconv': KernelEntry(
        'CKConv, FlexConv, CCNN, arXiv 2102.02611, 2110.08059, 2206.03398',
        'Network of the coordinate (options: network magnet or siren), Gaussian mask of trained width',
        'yes, by sampling the network',
        '(W + 1)cH + 3W² + 19W + c',
        '(W² + cHW)L',
        '',
    ),
}

LAYER_ENTRIES: dict[str, LayerEntry] = {
    'S4ND': LayerEntry(
        'S4ND, arXiv 2210.06583',
        'An outer product of one kernel per axis, on one to three axes, causal or two-sided; each feature by itself',
        'yes: step = grid / size on each axis',
        'O(H log L), by matrices O(HL)',
        '',
        {'grid': (LENGTH,)},
    ),
    'S4': LayerEntry(
        'S4, arXiv 2111.00396',
        'One kernel on one causal axis; each feature by itself',
        'when streaming: `system(step)`',
        'O(H log L)',
        'H times that of the kernel',
    ),
    'CKConv': LayerEntry(
        'CKConv, FlexConv, CCNN, arXiv 2102.02611, 2110.08059, 2206.03398',
        'A network of all coordinates of one to three axes at once, not separable; each feature by itself',
        'yes: step = grid / size on each axis',
        'O(H log L + W² + HW)',
        '',
        {'grid': (LENGTH,)},
    ),
    'GSS': LayerEntry(
        'GSS, arXiv 2206.13947',
        'Block: gates of expand·H features around a DSS of d_ssm features',
        'no: the step is 1',
        'O(H² + H log L)',
        'O(H² + HN)',
    ),
    'GSSHybrid': LayerEntry(
        'GSS, arXiv 2206.13947',
        'Stack of GSS blocks, of every few one a LocalAttention',
        'no: the step is 1',
        'O(H² + H log L + Hc)',
        'O(H² + HN + Hc)',
        {'depth': 4},
    ),
    'LocalAttention': LayerEntry(
        'GSS, arXiv 2206.13947',
        'Transformer block with attention inside chunks of c samples',
        'no: lags are counted in samples',
        'O(H² + Hc)',
        'O(H² + Hc)',
    ),
    'Mega': LayerEntry(
        'Mega, Mega-chunk, arXiv 2209.10655',
        'Block: damped moving averages and gated attention (softmax, laplace, relu2), whole or in chunks of c samples',
        'no: lags are counted in samples',
        'O(H² + HN + HL), with chunks O(H² + HN + Hc)',
        'O(H² + HN + HL), with chunks O(H² + HN + Hc)',
    ),
    'LMU': LayerEntry(
        'LMU, NeurIPS 2019',
        'Legendre memories written by an encoder and read by a nonlinear recurrent cell; one sample after the other',
        'when streaming: `system(step)`',
        'O(H² + MN² + MHN) for M memories',
        'the same',
    ),
    'S5': LayerEntry(
        'S5, arXiv 2208.04933',
        'One diagonal system with H inputs and outputs, by an associative scan; mixes the features',
        'yes: step = grid / L, or as given, also per sample',
        'O(HN)',
        'O(HN)',
    ),
    'LiquidS4': LayerEntry(
        'Liquid-S4, arXiv 2209.12951',
        'S4 and products of inputs: of neighbors at once (pb) or through the kernel (kb), or of any (allcombs, exact)',
        'no: products depend on the step',
        'O(pH log L)',
        'p times that of S4',
    ),
}

_KERNELS = """# Kernels and layers

Generated by `python -m s4nd.catalog`; do not edit. All of them in the same small models, trained alike:
[side by side](../results/side_by_side.md). The layers at length: [layers](../guides/layers.md).

## Kernels

`kernel='…'` takes these names in `S4ND` on any axis, in the timm families, and in `S4` and SaShiMi where there is a
recurrence; `kernel_args` of a layer takes what is called an option here and in the classes.

H = d_model, N = d_state, S = n_ssm, c = channels, L = taps, W = hidden width. *Count*: H = {H}, N = {N}, one channel,
an axis of {L} samples. *Taps*, *step*: order of the operations for a whole kernel and, of one feature, for a sample of
the recurrence. The kernels that need the length of their axis (dss-softmax, sgconv, ckconv) take it from the layer's
grid or `l_max`, or from the option `length`.

| kernel | system | what it is | recurrence | other resolutions | parameters | count | taps | step |
|---|---|---|---|---|---|---|---|---|
"""

_LAYERS = """
## Layers

In `s4nd.layers`: a signal (B, H, L) in, a signal out. *Parameters*: {H} features, and the class's own defaults beside
the options that are named. *Per sample*, *step*: order of the operations per sample of a clip of L samples, and for
one of a stream; c is the size of a chunk.

| layer | system | what it is | streams | other resolutions | parameters | per sample | step |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The documentation page."""
    rows = [_row(f'`{name}`', *_kernel_cells(name, entry)) for name, entry in KERNEL_ENTRIES.items()]
    text = _KERNELS.format(H=D_MODEL, N=D_STATE, L=LENGTH) + ''.join(rows)
    rows = [_row(f'`{name}`', *_layer_cells(name, entry)) for name, entry in LAYER_ENTRIES.items()]
    return text + _LAYERS.format(H=D_MODEL) + ''.join(rows)


def _kernel_cells(name: str, entry: KernelEntry) -> list[str]:
    count = _count(make_kernel(name, D_MODEL, d_state=D_STATE, length=LENGTH, device='meta'))
    recurrence = 'yes' if issubclass(KERNELS[name], RecurrentKernel) else 'no'
    cells = [entry.system, entry.summary, recurrence, entry.resolution, entry.parameters, count]
    return [*cells, f'O({entry.taps})', f'O({entry.step})' if entry.step else '–']


def _layer_cells(name: str, entry: LayerEntry) -> list[str]:
    cls = getattr(layers, name)
    count = _count(cls(D_MODEL, **entry.options, device='meta'))
    options = ', '.join(f'{key}={value}' for key, value in entry.options.items())
    two_sided = 'bidirectional' in inspect.signature(cls).parameters
    streams = 'no' if not hasattr(cls, 'step') else 'if causal' if two_sided else 'yes'
    cells = [entry.system, entry.summary, streams, entry.resolution, f'{count} (`{options}`)' if options else count]
    return [*cells, entry.cost, entry.step or '–']


def _count(module: nn.Module) -> str:
    return f'{sum(parameter.numel() for parameter in module.parameters()):,}'


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |\n'


@dataclass
class Options:
    """The option of `python -m s4nd.catalog`."""

    out: str = 'docs/reference/kernels.md'


if __name__ == '__main__':
    try:
        options = parse_words(Options, sys.argv[1:])
    except ValueError as problem:
        sys.exit(f'error: {problem}')
    write_atomically(options.out, lambda path: path.write_text(page(), 'utf-8'))
