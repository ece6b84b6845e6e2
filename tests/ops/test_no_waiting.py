"""A training step reads no value back: on a GPU each such read would wait for the device."""

import pytest
import torch

from tests.models import families

READS = {'aten::item', 'aten::_local_scalar_dense', 'aten::nonzero', 'aten::is_nonzero', 'aten::equal'}


def names(model: torch.nn.Module, x: torch.Tensor) -> set[str]:
    """Operators of a forward and a backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x).square().sum().backward()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize('case', ['convnext', 'convnext s4', 'vit', 'isotropic', 'convnext3d'])
def test_a_training_step_reads_no_value(case: str) -> None:
    model = families.build(case).train()
    grid = model.img_size if model.num_frames is None else (model.num_frames, *model.img_size)
    found = names(model, torch.randn(2, model.in_chans, *grid))
    assert not found & READS
    assert 'aten::mul' in found


def test_a_read_is_seen() -> None:
    class Reads(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float(x.detach().sum())

    assert names(Reads(2, 2), torch.randn(1, 2)) & READS
