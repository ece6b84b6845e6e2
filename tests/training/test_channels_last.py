"""Training in the memory format channels_last: another layout, the same weights."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from s4nd.training.checkpoint import load_state
from s4nd.training.loop import fit
from tests.training.test_loop import Line, settings


class Planes(Line):
    """Line, of images of 2×1 pixels and two channels."""

    def make_model(self, args: Mapping[str, object]) -> nn.Module:
        return Convolutions()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(lambda x: model(x.reshape(-1, 2, 2, 1)), batch)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        formats = {
            p.is_contiguous(memory_format=torch.channels_last)
            for p in model.parameters()
            if p.dim() == 4 and len(p[0]) > 1
        }
        model(torch.zeros(2, 2, 2, 1))
        assert formats == model.inputs == {self.config.channels_last}
        return {'error': 1.0}


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        parts = nn.Conv2d(2, 3, 2, padding=1), nn.GELU(), nn.Conv2d(3, 4, (3, 2)), nn.Flatten(), nn.Linear(4, 1)
        super().__init__(*parts)
        self.inputs: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.add(x.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


@pytest.mark.parametrize('ema', [None, 0.9])
def test_channels_last_changes_the_layout_alone(tmp_path: Path, ema: float | None) -> None:
    found = {}
    for last in (False, True):
        config = settings(channels_last=last, ema=ema)
        task = Planes()
        task.config = config
        model = Convolutions()
        fit(model, task, config, tmp_path / f'{last}')
        assert not model._forward_pre_hooks
        found[last] = load_state(tmp_path / f'{last}' / 'resume.pt')['model']
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name], atol=1e-5, rtol=1e-4)
