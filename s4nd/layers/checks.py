"""Input checks that the layers of one axis share."""

from torch import Tensor


def check_clip(x: Tensor, d_model: int) -> None:
    """Raise ValueError unless x is (B, d_model, L) with L >= 1."""
    if x.dim() != 3 or x.shape[1] != d_model or x.shape[2] < 1:
        raise ValueError(f'expected (batch, {d_model}, length), got shape {list(x.shape)}')


def check_sample(x: Tensor, d_model: int) -> None:
    """Raise ValueError unless x is (B, d_model)."""
    if x.dim() != 2 or x.shape[1] != d_model:
        raise ValueError(f'step expects (batch, {d_model}), got shape {list(x.shape)}')
