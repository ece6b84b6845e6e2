"""One place lists all kernels, and the page in the documentation is made from it."""

from pathlib import Path

from s4nd.kernels import KERNELS
from s4nd.kernels.catalogue import CATALOGUE, table

PAGE = Path(__file__).parents[2] / 'docs' / 'kernels.md'


def test_every_kernel_is_listed() -> None:
    assert list(CATALOGUE) == list(KERNELS)


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text('utf-8') == table(), 'run python -m s4nd.kernels.catalogue'


def test_recurrence_is_told() -> None:
    rows = [line.split(' | ') for line in table().splitlines() if line.startswith('| `')]
    told = {row[0].strip('| `'): row[3] for row in rows}
    assert told == {name: 'yes' if kernel.has_recurrence else 'no' for name, kernel in KERNELS.items()}
