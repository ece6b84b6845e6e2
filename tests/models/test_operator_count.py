"""Calls of ATen operators in a training step, which bound its speed where the arithmetic takes no time."""

from collections.abc import Callable

import torch

from s4nd import S4ND
from tests.models import families


def calls(run: Callable[[], torch.Tensor]) -> int:
    """Calls of ATen operators, nested ones included, in a second forward and backward pass."""
    run().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run().backward()
    return sum(event.count for event in profile.key_averages() if event.key.startswith('aten::'))


def test_kernels_of_a_layer() -> None:
    """Measured: 448, both axes at once."""
    layer = S4ND(8, (16, 16), d_state=8)
    assert calls(lambda: sum(taps.sum() for taps in layer.all_taps([16, 16], [1.0, 1.0])[0])) < 490


def test_a_model_beside_that_of_convolutions() -> None:
    """Measured: 3.7 times as many calls."""
    counts = []
    for case in ('convnext', 'convnext conv2d'):
        model = families.build(case).train()
        x = torch.randn(1, 3, *model.img_size)
        counts.append(calls(lambda model=model, x=x: model(x).sum()))
    assert counts[0] < 4.1 * counts[1]
