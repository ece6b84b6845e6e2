"""The associative scan of a diagonal recurrence: all states of x_k = a x_{k-1} + b_k at once.

The maps x -> a x + b compose associatively, (a, b) then (c, d) is (ca, cb + d), so that states are prefix sums which a
tree forms in O(log L) passes. As a is the same at every k, a pass needs one power of it, and |a| <= 1 keeps powers
bounded: nothing is divided, nothing overflows at any length.
Shape legend: L = length, P = states; … = any axes before, such as the batch. A row is the P states of one sample.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.ops.dispatch import by_hand, wants_graph, wide_dtype


def diagonal_scan(a_re: Tensor, a_im: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """States x_k = a x_{k-1} + b_k from x_{-1} = 0, or in reverse x_k = a x_{k+1} + b_k from x_L = 0.

    Work and memory are O(LP). Only a and the states are kept for the gradients, which are the scan from the other end
    with ā.

    Args:
        a_re, a_im: (P,), real and imaginary part of a, |a| <= 1. Powers are formed in complex128.
        b: (…, L, P, 2), real and imaginary part, L >= 1.
        reverse: from the last row to the first.

    Returns:
        (…, L, P, 2), of the dtype of b.
    """
    if by_hand(b):
        return _complex_scan(a_re, a_im, b, reverse)
    x_re, x_im = plain_diagonal_scan(a_re, a_im, b[..., 0], b[..., 1], reverse)
    return torch.stack([x_re, x_im], -1)


@torch.jit.unused
def _complex_scan(a_re: Tensor, a_im: Tensor, b: Tensor, reverse: bool) -> Tensor:
    pairs = torch.view_as_complex(b.contiguous())
    return torch.view_as_real(_DiagonalScan.apply(torch.complex(a_re, a_im), pairs, reverse))


def plain_diagonal_scan(
    a_re: Tensor, a_im: Tensor, b_re: Tensor, b_im: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the same in real arithmetic by autograd, as real and imaginary parts.

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


def varying_scan(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """States of the recurrence whose factor varies, x_k = a_k x_{k-1} + b_k, or in reverse x_k = a_k x_{k+1} + b_k.

    Work and memory are O(LP); the gradients are the scan from the other end with the conjugate factors. Where plain
    arithmetic is needed, spans double without a tree, in O(LP log L).

    Args:
        a: (…, L, P, 2), real and imaginary part, |a| <= 1; axes before L are broadcast against those of b.
        b: (…, L, P, 2), L >= 1.
        reverse: from the last row to the first.

    Returns:
        (…, L, P, 2), of the dtype of b.
    """
    if reverse:
        a, b = a.flip(-3), b.flip(-3)
    a = a.to(b.dtype)
    x = _complex_varying_scan(a, b) if by_hand(b) else _plain_varying_scan(a, b)
    return x.flip(-3) if reverse else x


@torch.jit.unused
def _complex_varying_scan(a: Tensor, b: Tensor) -> Tensor:
    pairs = [torch.view_as_complex(t.contiguous()) for t in torch.broadcast_tensors(a, b)]
    return torch.view_as_real(_VaryingScan.apply(*pairs))


def _plain_varying_scan(a: Tensor, b: Tensor) -> Tensor:
    a_re, a_im = a.unbind(-1)
    b_re, b_im = b.unbind(-1)
    length, span = b.shape[-3], 1
    while span < length:
        c_re, c_im = a_re[..., span:, :], a_im[..., span:, :]
        p_re, p_im = b_re[..., :-span, :], b_im[..., :-span, :]
        q_re = b_re[..., span:, :] + (c_re * p_re - c_im * p_im)
        q_im = b_im[..., span:, :] + (c_re * p_im + c_im * p_re)
        b_re, b_im = torch.cat([b_re[..., :span, :], q_re], -2), torch.cat([b_im[..., :span, :], q_im], -2)
        d_re, d_im = a_re[..., :-span, :], a_im[..., :-span, :]
        e_re, e_im = c_re * d_re - c_im * d_im, c_re * d_im + c_im * d_re
        a_re, a_im = torch.cat([a_re[..., :span, :], e_re], -2), torch.cat([a_im[..., :span, :], e_im], -2)
        span *= 2
    return torch.stack([b_re, b_im], -1)


class _VaryingScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        x = b.clone(memory_format=torch.contiguous_format)
        _varying_scan_(a.clone(memory_format=torch.contiguous_format), x)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, x = ctx.saved_tensors
        # λ_k = g_k + ā_{k+1} λ_{k+1}; the states are an output of this function, so that all of it is differentiable.
        turned = F.pad(a[..., 1:, :].conj(), (0, 0, 0, 1)).flip(-2)
        back = (_VaryingScan.apply if by_hand(grad) else _plain_complex)(turned, grad.flip(-2)).flip(-2)
        return back * F.pad(x[..., :-1, :].conj(), (0, 0, 1, 0)), back


def _plain_complex(a: Tensor, b: Tensor) -> Tensor:
    a, b = (torch.view_as_real(t.resolve_conj()) for t in (a, b))
    return torch.view_as_complex(_plain_varying_scan(a, b))


def _varying_scan_(a: Tensor, x: Tensor) -> None:
    """The tree of `_scan_` for factors that vary, in place: row k of `a` becomes the product of the block before it."""
    length, span = x.shape[-2], 1
    levels = []
    while 2 * span <= length:
        to, from_ = slice(2 * span - 1, None, 2 * span), slice(span - 1, length - span, 2 * span)
        x[..., to, :] += a[..., to, :] * x[..., from_, :]
        a[..., to, :] *= a[..., from_, :].clone()
        levels.append(span)
        span *= 2
    for span in reversed(levels):
        to, from_ = slice(3 * span - 1, None, 2 * span), slice(2 * span - 1, length - span, 2 * span)
        x[..., to, :] += a[..., to, :] * x[..., from_, :]


class _DiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, reverse: bool) -> Tensor:
        x = b.clone(memory_format=torch.contiguous_format)
        _scan_(a, x, reverse)
        ctx.save_for_backward(a, x)
        ctx.reverse = reverse
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, x = ctx.saved_tensors
        if wants_graph(grad):
            # The states are an output of this function, so what follows is differentiable in a, b and the gradient.
            back = _again(a.conj(), grad, not ctx.reverse)
            rest = x.shape[-2] - 1
            after, before = back.narrow(-2, 1 - ctx.reverse, rest), x.narrow(-2, int(ctx.reverse), rest)
            return (after * before.conj()).flatten(0, -2).sum(0).to(a.dtype), back, None
        grad = grad.clone(memory_format=torch.contiguous_format)
        _scan_(a.conj(), grad, not ctx.reverse)
        rest = x.shape[-2] - 1
        after, before = grad.narrow(-2, 1 - ctx.reverse, rest), x.narrow(-2, int(ctx.reverse), rest)
        grad_a = (after * before.conj()).flatten(0, -2).sum(0)
        return grad_a.to(a.dtype), grad, None


def _again(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """The scan of a complex b, differentiable and, under a transform, by plain arithmetic."""
    if by_hand(b):
        return _DiagonalScan.apply(a, b, reverse)
    return torch.complex(*plain_diagonal_scan(a.real, a.imag, b.real, b.imag, reverse))


def _scan_(a: Tensor, x: Tensor, reverse: bool) -> None:
    """In place, by the tree of Brent and Kung: sums over blocks of 2, 4, 8 … rows at the last row of each, then what
    the middles of blocks lack of the rows before their block. `span` rows further, a row has the weight a^span."""
    length = x.shape[-2]
    span, power, levels = 1, a.to(wide_dtype(a.device).to_complex()), []
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
