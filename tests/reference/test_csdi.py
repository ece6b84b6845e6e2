"""CSDI-S4 against the released network, whose S4 layers were ours (which test_sssd.py holds to the release)."""

import pytest
import torch

from s4nd.diffusion import step_network
from s4nd.layers import S4
from s4nd.models.csdi import CSDIS4
from s4nd.models.sssd import impute
from s4nd.tasks.series import MODELS
from tests.reference.cases import Case, check_covered, of_kind

SMALL = {
    'd_model': 8, 'n_layers': 2, 'heads': 2, 'time_features': 6, 'channel_features': 3, 'condition': 8,
    'mixer_args': {'d_state': 4}, 'diffusion': {'steps': 10},
}  # fmt: skip


def model_of(case: Case, dtype: torch.dtype) -> CSDIS4:
    model = CSDIS4(case.meta['K'], **SMALL)
    model.step_embedding = step_network(8, features=8)
    model.double().load_state_dict(case.param)
    return model.to(dtype).eval()


@of_kind('csdi', 'CSDI_base.diffmodel')
@torch.no_grad()
def test_reference_networks(case: Case) -> None:
    given = case.given
    for dtype in (torch.float64, torch.float32):
        y = model_of(case, dtype)(given['x'].to(dtype), given['t'], given['values'].to(dtype), given['mask'])
        case.check('y', y) if dtype == torch.float64 else case.check_float32('y', y)


def test_reference_is_covered() -> None:
    check_covered('csdi', {'CSDI_base.diffmodel': {'y'}})


def test_it_imputes_and_trains_what_is_released() -> None:
    model = MODELS['csdi_s4'](3, **SMALL).eval()
    values, mask = torch.randn(2, 3, 9), torch.rand(2, 3, 9) < 0.5
    mask[:, 0, 0] = True
    values[~mask] = torch.nan
    drawn = impute(model, values, mask, steps=3)
    assert torch.equal(drawn[mask], values[mask]) and drawn.isfinite().all()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    kernels = {name for name, _ in model.named_parameters() if '.kernels.' in name}
    assert {name.rsplit('.', 1)[1] for name in trained & kernels} == {'C'}
    assert all(p.requires_grad for layer in CSDIS4(2, **SMALL, freeze=False).modules() if isinstance(layer, S4)
               for p in layer.parameters())  # fmt: skip


def test_bad_input() -> None:
    with pytest.raises(ValueError, match='time_features must be even and at least 2, got 3'):
        CSDIS4(2, **SMALL | {'time_features': 3})
    with pytest.raises(ValueError, match=r'expected two series \(batch, 2, length\)'):
        CSDIS4(2, **SMALL)(torch.zeros(1, 3, 4), torch.zeros(1), torch.zeros(1, 3, 4), torch.ones(1, 3, 4) > 0)
