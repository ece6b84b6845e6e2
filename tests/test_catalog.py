"""One place lists all kernels and layers, and the page in the documentation is made from it."""

from pathlib import Path

from s4nd import layers
from s4nd.catalog import KERNEL_ENTRIES, LAYER_ENTRIES, page
from s4nd.kernels import KERNELS, RecurrentKernel

PAGE = Path(__file__).parents[1] / 'docs' / 'reference' / 'kernels.md'
# What blocks are made of, around a layer.
PARTS = {'GatedLayer', 'GridLayer', 'MovingAverage', 'NormalizedFeedForward', 'Residual', 'S5Gate', 'forget'}
# Of the layers; those that are not named stream.
STREAMS = {'S4ND': 'no', 'CKConv': 'no'} | dict.fromkeys(('LocalAttention', 'Mega', 'S4', 'S5'), 'if causal')


def test_everything_is_listed() -> None:
    assert list(KERNEL_ENTRIES) == list(KERNELS)
    assert set(LAYER_ENTRIES) == set(layers.__all__) - PARTS


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text('utf-8') == page(), 'run python -m s4nd.catalog'


def test_recurrence_is_told() -> None:
    rows = [line.split(' | ') for line in page().splitlines() if line.startswith('| `')]
    told = {row[0].strip('| `'): row[3] for row in rows}
    kernels = {name: 'yes' if issubclass(kernel, RecurrentKernel) else 'no' for name, kernel in KERNELS.items()}
    assert told == kernels | {name: STREAMS.get(name, 'yes') for name in LAYER_ENTRIES}
