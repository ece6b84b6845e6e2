"""Parameter groups: every parameter once, SSM parameters apart, by name."""

import pytest
import torch
from torch import nn

from s4nd import S4, S4ND, param_groups, ssm_parameter_patterns


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), S4ND(4, (8, 8), kernel='s4'), nn.LayerNorm(4), nn.Linear(4, 2))


def test_groups(model: nn.Module) -> None:
    groups = param_groups(model, lr=0.01, weight_decay=0.05, ssm_lr=0.001)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for group in groups for p in group['params']]
    assert sorted(found) == sorted(names.values())
    by_name = {names[id(p)]: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    assert all('lr_scale' not in group for group in groups)
    assert by_name['1.kernels.0.C'] == by_name['1.D'] == by_name['0.weight'] == (0.01, 0.05)
    assert by_name['0.bias'] == by_name['2.weight'] == (0.01, 0.0)
    for leaf in ('log_dt', 'log_A_real', 'A_imag', 'B', 'P'):
        assert by_name[f'1.kernels.1.{leaf}'] == (0.001, 0.0)


def test_frozen_parameters_are_left_out_and_overrides_win(model: nn.Module) -> None:
    model[0].requires_grad_(False)
    groups = param_groups(model, 0.01, 0.05, overrides={'*.log_dt': {'lr': 1e-5}})
    names = {id(p): name for name, p in model.named_parameters()}
    by_name = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
    assert '0.weight' not in by_name
    assert by_name['1.kernels.0.log_dt'] == 1e-5
    assert by_name['1.kernels.0.A_imag'] == 1e-3
    with pytest.raises(ValueError, match=r"'\*\.log_dx'"):
        param_groups(model, 0.01, overrides={'*.log_dx': {'lr': 1.0}})


def test_the_ssm_rate_never_exceeds_the_rate(model: nn.Module) -> None:
    assert max(group['lr'] for group in param_groups(model, 1e-4)) == 1e-4


def test_a_lone_layer_and_an_optimizer() -> None:
    groups = param_groups(S4(4), 0.01)
    torch.optim.AdamW(groups).step()
    assert {group['lr'] for group in groups} == {0.01, 0.001}


def test_patterns(model: nn.Module) -> None:
    from fnmatch import fnmatch

    patterns = ssm_parameter_patterns(model)
    names = [name for name, _ in model.named_parameters()]
    assert all(any(fnmatch(name, pattern) for name in names) for pattern in patterns)
    assert not any(fnmatch('1.kernels.0.C', pattern) or fnmatch('0.weight', pattern) for pattern in patterns)
    assert ssm_parameter_patterns(nn.Linear(2, 2)) == set()
