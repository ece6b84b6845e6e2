"""What SSSD-S4 is held against: straight lines, and a convolutional DiffWave of equal size that sees the whole clip."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def imputation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / 'benchmarks')
    return importlib.import_module('imputation')


def test_straight_lines(imputation: ModuleType) -> None:
    values = torch.tensor([[[9.0, 1.0, 9.0, 9.0, 4.0, 9.0], [2.0, 9.0, 0.0, 9.0, 9.0, 3.0]]])
    mask = values != 9
    expected = torch.tensor([[[1.0, 1.0, 2.0, 3.0, 4.0, 4.0], [2.0, 1.0, 0.0, 1.0, 2.0, 3.0]]])
    torch.testing.assert_close(imputation.interpolated(values, mask), expected)


def test_the_baseline_is_of_equal_size(imputation: ModuleType) -> None:
    sizes = [
        imputation.parameters_of(imputation.make_model(name, imputation.DEFAULTS)[0])
        for name in ('sssd-s4', 'diffwave')
    ]
    assert abs(sizes[1] / sizes[0] - 1) < 0.02


def test_the_baseline_sees_the_whole_clip(imputation: ModuleType) -> None:
    torch.manual_seed(0)
    model = imputation.make_model('diffwave', imputation.DEFAULTS)[0].eval()
    torch.nn.init.normal_(model.leave[-1].weight)
    values = torch.randn(1, 1, imputation.LENGTH, requires_grad=True)
    mask = torch.ones_like(values, dtype=torch.bool)
    y = model(values, torch.tensor([3]), values, mask)
    for place, seen in ((imputation.LENGTH // 2, slice(0, None)), (0, slice(0, imputation.LENGTH))):
        (gradient,) = torch.autograd.grad(y[0, 0, place], values, retain_graph=True)
        assert (gradient[0, 0, seen] != 0).all()


def test_picture(imputation: ModuleType) -> None:
    """Gaps at both ends of a clip are drawn, each panel with a label; the legend names the draws once."""
    values = torch.randn(3, 1, imputation.LENGTH)
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[0, 0, :16] = mask[1, 0, 100:116] = mask[2, 0, -16:] = False
    figure = imputation.picture(values, mask, [values, -values])
    assert all(panel.get_ylabel() for panel in figure.axes) and figure.axes[-1].get_xlabel()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3
