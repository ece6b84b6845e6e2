"""Every model in nn.DataParallel, as far as a CPU can tell: its replicas answer with their own weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_other_hands import EVERY, make


def replica(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """What torch.nn.parallel.replicate makes of a model on another device."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, other in copies.items():
        for name, child in module._modules.items():
            setattr(other, name, None if child is None else copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                other._parameters[name] = None
            else:
                setattr(other, name, change(parameter))
        for name, buffer in module._buffers.items():
            setattr(other, name, buffer)
    return copies[model]


@EVERY
@pytest.mark.parametrize('training', [False, True])
def test_replicas_of_data_parallel(case: str, training: bool) -> None:
    """They hold no parameters, only tensors of the same names, and are used in threads, one for each device."""
    model, inputs = make(case)
    model.train(training)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.modules.dropout._DropoutNd)):
            module.p = 0.0
    with torch.set_grad_enabled(training):
        true = model(inputs[0])
        other = replica(model, lambda value: 1.1 * value)
        edited = copy.deepcopy(model)
        for parameter in edited.parameters():
            parameter.data.mul_(1.1)
        y = other(inputs[0])
        torch.testing.assert_close(y, edited(inputs[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(replica(model, lambda value: 1.0 * value)(inputs[0]), true, atol=1e-6, rtol=1e-6)
    if training:
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found, used = (torch.autograd.grad(out.square().sum(), wanted, allow_unused=True) for out in (y, true))
        assert [gradient is None for gradient in found] == [gradient is None for gradient in used]
