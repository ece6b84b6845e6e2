"""Taps of several axes and layers made in one call, so that a training step launches fewer operators.

A stage of a model makes the taps of its layers before they run. Each layer takes the taps that fit its request, and
evaluates its kernels by itself where there are none.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from s4nd.kernels import form_of, side_by_side
from s4nd.ops.dispatch import by_hand

if TYPE_CHECKING:
    from s4nd.layers.s4nd import S4ND


class Request(NamedTuple):
    """What one axis of a layer asks its kernel for: number of taps, their step, and the width that a lag averages."""

    layer: 'S4ND'
    axis: int
    length: int
    step: float
    width: float


LagTaps = tuple[Tensor, int]  # (R, c·H, K) and the index of lag 0

# Parameters of kernels that a CPU evaluates in one call: beyond, what is computed of them leaves its cache.
IN_CACHE = 2**18

# What was made for the forward pass that runs in this thread.
_MADE: ContextVar[Mapping[Request, LagTaps] | None] = ContextVar('made', default=None)


def lag_taps_of(requests: Sequence[Request]) -> list[LagTaps]:
    """The lag taps of each request.

    Kernels of one form that are asked for the same taps are evaluated in one call, on a CPU a few at a time.
    """
    made = _MADE.get() or {}
    found = {request: made[request] for request in requests if request in made}
    for group in _groups([request for request in requests if request not in found]):
        layer, axis, length, step, width = group[0]
        kernels = [request.layer.kernels[request.axis] for request in group]
        kernel = side_by_side(kernels) if len(group) > 1 else kernels[0]
        taps, center = layer.lag_taps(kernel(length, step, width == 1.0), layer.bidirectional[axis], width)
        each = taps.unbind() if len(group) > 1 else [taps]
        found.update({request: (taps, center) for request, taps in zip(group, each, strict=True)})
    return [found[request] for request in requests]


def _groups(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Requests that are answered in one call."""
    alike: dict[Hashable, list[Request]] = {}
    for request in requests:
        layer, axis, *asked = request
        # Devices other than CPUs and GPUs take the plain path, one kernel at a time.
        form = form_of(layer.kernels[axis]) if by_hand(layer.training_grid) else None
        kind = form and (form, layer.bidirectional[axis], layer.tensor_rank, layer.channels, *asked)
        alike.setdefault(kind or request, []).append(request)
    for group in alike.values():
        count = len(group)
        if group[0].layer.training_grid.device.type == 'cpu':
            each = sum(parameter.numel() for parameter in group[0].layer.kernels[group[0].axis].parameters())
            count = max(1, IN_CACHE // max(1, each))
        yield from (group[first : first + count] for first in range(0, len(group), count))


def untouched(module: nn.Module) -> bool:
    """Whether nothing prepares any part of a module for its forward, as sharding, offloading and pruning do."""
    return not any(part._forward_pre_hooks or 'forward' in vars(part) for part in module.modules())


@contextmanager
def made_ahead(requests: Iterable[Request]) -> Iterator[None]:
    """Make the lag taps of all requests; layers that run within the context take them."""
    requests = list(requests)
    token = _MADE.set(dict(zip(requests, lag_taps_of(requests), strict=True)))
    try:
        yield
    finally:
        _MADE.reset(token)
