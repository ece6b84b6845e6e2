"""Streams at another rate: the recurrence of the compared models is their convolution at that rate."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from s4nd import S4

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, found as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import streaming_rates

    return streaming_rates


@pytest.mark.parametrize(('name', 'step'), [('s4', 1.0), ('s4', 2.0), ('conv', 1.0)])
def test_recurrence_is_the_convolution(streaming: ModuleType, name: str, step: float) -> None:
    torch.manual_seed(0)
    model = streaming.make(name).double().eval()
    for layer in model.modules():
        if isinstance(layer, S4):
            layer.grid = (80,)
    waves = torch.randn(3, round(80 / step), 1, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(streaming.streamed(model, waves, step), model(waves), rtol=0, atol=1e-10)


def test_a_convolution_knows_no_other_rate(streaming: ModuleType) -> None:
    with pytest.raises(ValueError, match=r'expected step 1, got 2\.0'):
        streaming.make('conv').system(2.0)
