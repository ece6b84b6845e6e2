"""What the weights of published SaShiMi models tell of their levels."""

from typing import Any

from s4nd.interop._names import Names
from s4nd.interop._parts import take_linear


def pools(names: Names, down: list[str]) -> list[str]:
    """Those of the modules on the way down that are pools."""
    return [part for part in down if names.has(f'{part}linear.')]


def level_args(names: Names, d_model: int, maps: list[str]) -> tuple[dict[str, Any], int]:
    """Keywords `pool` and `expand`, and the width of the center.

    maps: prefixes of the pools' linear maps, finest first.
    """
    widths, pool = [d_model], []
    for theirs in maps:
        out, features = _shape(names, theirs)
        pool.append(features // widths[-1])
        widths.append(out)
    return {'pool': pool, 'expand': widths[1] // d_model if maps else 1}, widths[-1]


def _shape(names: Names, theirs: str) -> tuple[int, int]:
    """(out, in) of a linear map."""
    (weight,) = [
        value for name, value in take_linear(names, theirs, '').items() if value.dim() == 2 and name[-1] != '0'
    ]
    return weight.shape[0], weight.shape[1]
