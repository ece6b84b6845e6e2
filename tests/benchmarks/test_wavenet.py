"""The WaveNet baseline: causal, exactly as far-sighted as it says, the same one sample at a time, and of equal size."""

import pytest
import torch

from audio import SaShiMi
from benchmarks.wavenet import WaveNet, matched_args


@pytest.fixture
def model() -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(4, channels=8, skip_channels=6, stacks=2, layers=3).double()


def test_stepping_equals_forward(model: WaveNet) -> None:
    tokens, state = torch.randint(0, 16, (3, 40)), model.init_state(3)
    steps = torch.stack([model.step(tokens[:, t], state) for t in range(40)], 1)
    torch.testing.assert_close(steps, model(tokens))


def test_a_prediction_sees_its_receptive_field_and_nothing_else(model: WaveNet) -> None:
    assert model.receptive_field == 1 + 2 * (1 + 2 + 4)
    tokens = torch.randint(0, 16, (1, 60))
    before = model(tokens)
    tokens[0, 20] = (tokens[0, 20] + 1) % 16
    changed = (model(tokens) != before).any(-1)[0].nonzero()[:, 0].tolist()
    assert min(changed) == 20 and max(changed) == 20 + model.receptive_field - 1


@pytest.mark.parametrize('d_model', [16, 24])
def test_it_is_made_as_large_as_a_sashimi(d_model: int) -> None:
    size = sum(parameter.numel() for parameter in SaShiMi(8, d_model=d_model, n_layers=4, glu=False).parameters())
    args = matched_args(size, 8)
    found = sum(parameter.numel() for parameter in WaveNet(8, **args).parameters())
    assert abs(found / size - 1) < 0.01 and args['channels'] % 8 == 0
    assert WaveNet(8, **args).receptive_field == 4095
