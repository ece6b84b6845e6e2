"""Sizes as they are written."""

import pytest

from s4nd.resolution import parse_size, size_name


@pytest.mark.parametrize(
    ('written', 'size', 'name'),
    [(16, (16, 16), '16'), ('16', (16, 16), '16'), ('24x40', (24, 40), '24x40'), ((3, 5), (3, 5), '3x5'),
     ([7, 7], (7, 7), '7'), ('8x8', (8, 8), '8')],
)  # fmt: skip
def test_a_size_reads_back_from_its_name(written: object, size: tuple[int, int], name: str) -> None:
    assert parse_size(written) == size and size_name(size) == name and parse_size(name) == size


@pytest.mark.parametrize('written', [0, -8, 1.5, True, None, '', 'x8', '8x', '8x0', '8x8x8', '8 x 8', (8, 8, 8), 'big'])
def test_anything_else_is_refused_with_its_value(written: object) -> None:
    shown = 'x'.join(map(str, written)) if isinstance(written, tuple) else str(written)
    with pytest.raises(ValueError, match=rf"expected a size of at least 1, such as 16, or 24x40 .*, got '{shown}'"):
        parse_size(written)
