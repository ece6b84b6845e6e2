"""The associative scan of a diagonal recurrence: all states of x_k = a x_{k-1} + b_k at once.

The maps x -> a x + b compose associatively, (a, b) then (c, d) is (ca, cb + d), so that states are prefix sums which a
tree forms in O(log L) passes. As a is the same at every k, a pass needs one power of it, and |a| <= 1 keeps powers
bounded: nothing is divided, nothing overflows at any length.
Shape legend: L = length, P = states; … = any axes before, such as the batch. A row is the P states of one sample.
"""

from typing import Any

import torch
from torch import Tensor


def diagonal_scan(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """States x_k = a x_{k-1} + b_k from x_{-1} = 0, or in reverse x_k = a x_{k+1} + b_k from x_L = 0.

    Work and memory are O(LP). Only a and the states are kept for the gradients, which are the scan from the other end
    with ā; they cannot be differentiated again.

    Args:
        a: (P,), complex, |a| <= 1. Its powers are formed in complex128.
        b: (…, L, P), complex, L >= 1.
        reverse: from the last row to the first.

    Returns:
        (…, L, P), of the dtype of b.
    """
    return _DiagonalScan.apply(a, b, reverse)


def plain_diagonal_scan(
    a_re: Tensor, a_im: Tensor, b_re: Tensor, b_im: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The same in real arithmetic by autograd, as real and imaginary parts: for compilers, exporters and TorchScript.

    Spans double without a tree (Hillis and Steele): O(LP log L), and for the gradients memory of as many passes.
    """
    length = b_re.shape[-2]
    if reverse:
        b_re, b_im = b_re.flip(-2), b_im.flip(-2)
    span = 1
    while span < length:
        c_re, c_im = a_re.to(b_re.dtype), a_im.to(b_re.dtype)
        p_re, p_im = b_re[..., :-span, :], b_im[..., :-span, :]
        q_re = b_re[..., span:, :] + (c_re * p_re - c_im * p_im)
        q_im = b_im[..., span:, :] + (c_re * p_im + c_im * p_re)
        b_re = torch.cat([b_re[..., :span, :], q_re], -2)
        b_im = torch.cat([b_im[..., :span, :], q_im], -2)
        a_re, a_im = a_re * a_re - a_im * a_im, 2 * a_re * a_im
        span *= 2
    if reverse:
        b_re, b_im = b_re.flip(-2), b_im.flip(-2)
    return b_re, b_im


class _DiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, reverse: bool) -> Tensor:
        x = b.clone(memory_format=torch.contiguous_format)
        _scan_(a, x, reverse)
        ctx.save_for_backward(a, x)
        ctx.reverse = reverse
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, x = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        _scan_(a.conj(), grad, not ctx.reverse)
        rest = x.shape[-2] - 1
        after, before = grad.narrow(-2, 1 - ctx.reverse, rest), x.narrow(-2, int(ctx.reverse), rest)
        grad_a = (after * before.conj()).flatten(0, -2).sum(0)
        return grad_a.to(a.dtype), grad, None


def _scan_(a: Tensor, x: Tensor, reverse: bool) -> None:
    """In place, by the tree of Brent and Kung: sums over blocks of 2, 4, 8 … rows at the last row of each, then what
    the middles of blocks lack of the rows before their block. `span` rows further, a row has the weight a^span."""
    length = x.shape[-2]
    span, power, levels = 1, a.to(torch.complex128), []
    while 2 * span <= length:
        _push_(x, span - 1, 2 * span - 1, 2 * span, power, reverse)
        levels.append((span, power))
        span, power = 2 * span, power * power
    for span, power in reversed(levels):
        _push_(x, 2 * span - 1, 3 * span - 1, 2 * span, power, reverse)


def _push_(x: Tensor, source: int, target: int, stride: int, power: Tensor, reverse: bool) -> None:
    """Rows target, target + stride, … += power · rows source, source + stride, …, in reverse counted from the end."""
    last = x.shape[-2] - 1
    reach = (last - target) // stride * stride  # from the first of them to the last
    if reach < 0:
        return
    if reverse:
        source, target = last - source - reach, last - target - reach
    from_, to = (x[..., first : first + reach + 1 : stride, :] for first in (source, target))
    to.addcmul_(from_, power.to(x.dtype))
