"""Truncated backpropagation: exact in one chunk, the cut gradients in several, memory carried from chunk to chunk."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.audio import SaShiMi
from s4nd.models.sequence import SequenceModel
from s4nd.training.chunks import backward_in_chunks, detached


def make(layer: str = 's4d') -> tuple[SequenceModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = SequenceModel(3, 2, layer, d_model=6, n_layers=2, layer_args={'d_state': 8}, dtype=torch.float64)
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    return model, x, torch.randn(2, 11, 2, dtype=torch.float64)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize('layer', ['s4d', 's4', 's5'])
def test_one_chunk_is_exact_and_more_are_cut(layer: str) -> None:
    model, x, target = make(layer)
    loss = F.mse_loss(model(x), target)
    loss.backward()
    whole = gradients(model)
    total, last = backward_in_chunks(model, x, target, F.mse_loss, 11)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    # In chunks of 4: the loss is the same, the gradients are those of a graph that is cut twice.
    state, cut = model.init_state(2), torch.zeros((), dtype=torch.float64)
    for part, goal in zip(x.split(4, 1), target.split(4, 1), strict=True):
        y, state = model(part, detached(state))
        cut = cut + (y - goal).square().sum() / target.numel()
    cut.backward()
    true = gradients(model)
    total, after = backward_in_chunks(model, x, target, F.mse_loss, 4)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    found = gradients(model)
    for ours, theirs in zip(found, true, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    assert not all(torch.allclose(ours, theirs) for ours, theirs in zip(found, whole, strict=True))
    for name, value in last.items():
        torch.testing.assert_close(after[name], value, atol=1e-10, rtol=0)
        assert not after[name].requires_grad


def test_a_model_of_sound_in_chunks() -> None:
    torch.manual_seed(0)
    model = SaShiMi(bits=3, d_model=8, n_layers=1, pool=(2, 2), d_state=4).double()
    codes = torch.randint(0, 8, (2, 21))

    def loss(logits: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    expected = loss(model(codes), codes).item()
    first, state = backward_in_chunks(model, codes[:, :10], codes[:, :10], loss, 3)
    second, _ = backward_in_chunks(model, codes[:, 10:], codes[:, 10:], loss, 4, state)
    assert (10 * first + 11 * second) / 21 == pytest.approx(expected, rel=1e-5)


def test_bad_input() -> None:
    model, x, target = make()
    with pytest.raises(ValueError, match='chunk must be at least 1, got 0'):
        backward_in_chunks(model, x, target, F.mse_loss, 0)
    with pytest.raises(ValueError, match=r'a target per sample, \[2, 11\], got \[2, 10\]'):
        backward_in_chunks(model, x, target[:, :10], F.mse_loss, 4)
