"""The compiled loop of `audio.generation.engine`: a list of instructions over flat arrays (Numba, float32).

An instruction is a row (operation, every, x, m, y, n, weights, state, size, rank): from the vectors of m values at x to
those of n values at y, at the samples whose number plus one is a multiple of `every`. Places are into two flat arrays:
the weights, and the memory, which holds a block (B, size) at B·place for each vector and state of a batch of B rows.
A row of the batch does not look at another, nor does its arithmetic depend on how many there are.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

EMBED, NORM, SCALAR_NORM, ADVANCE, GELU, LINEAR, GATE, COPY, ADD, PUSH, SPREAD = range(11)

# 'reassoc' lets sums run in vector registers; infinities and NaN keep their meaning.
_OPTIONS: dict[str, Any] = {'nogil': True, 'error_model': 'numpy', 'fastmath': {'reassoc', 'contract', 'nsz'}}


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the compiled code can be written, as in containers
        if function.__name__ == 'sample':
            warnings.warn('no folder can keep the compiled loop: it is compiled in every process', stacklevel=2)
        return numba.njit(**_OPTIONS)(function)


_half, _one, _eps, _sqrt_half = np.float32(0.5), np.float32(1), np.float32(1e-5), np.float32(0.5**0.5)


@_compile
def sample(program, weights, memory, logits, first, uniforms, temperature, top_p, start):
    """Draw codes (B, n) after `start` samples, the last of which is `first` (B,); one for each of uniforms (B, n).

    `logits`: the place of the logits in the memory.
    """
    batch, length = uniforms.shape
    codes, token = np.empty((batch, length), np.int64), first.copy()
    rows = block(memory, batch, logits, program[-1, 5])
    for t in range(length):
        step(program, weights, memory, token, start + t)
        for b in range(batch):
            token[b] = draw(rows[b], uniforms[b, t], temperature, top_p)
            codes[b, t] = token[b]
    return codes


@_compile
def step(program, weights, memory, token, t):
    """One sample: token (B,), after t others."""
    batch = len(token)
    for k in range(len(program)):
        op, every, at, m, to, n, w, state, size, rank = program[k]
        if (t + 1) % every:
            continue
        x, y, turn = block(memory, batch, at, m), block(memory, batch, to, n), t // every
        if op == LINEAR:
            linear(weights[w:], x, y)
        elif op == ADVANCE:
            advance(weights[w:], x, y, block(memory, batch, state, m * size), rank)
        elif op == GELU:
            gelu(y)
        elif op == NORM:
            layer_norm(weights[w:], x, y)
        elif op == SCALAR_NORM:
            scalar_norm(weights[w:], x, y)
        elif op == GATE:
            gate(x, y)
        elif op == ADD:
            y += x
        elif op == COPY:
            y[:] = x
        elif op == PUSH:
            y.reshape(batch, m, n // m)[:, :, turn % (n // m)] = x
        elif op == SPREAD:
            y += x.reshape(batch, n, m // n)[:, :, turn % (m // n)]
        else:
            embed(weights[w:], token, x, y)


@_compile
def block(memory, batch, place, width):
    """The block (B, width) at `place`."""
    return memory[batch * place : batch * (place + width)].reshape(batch, width)


@_compile
def advance(w, u, y, state, rank):
    """S4 and its skip: u, y (B, H), state (B, H·2n). Weights: D (H), then the system of `recur`."""
    batch, features = u.shape
    n, rows = state.shape[1] // (2 * features), 6 + 4 * rank
    system = w[features : features * (1 + rows * n)].reshape(features, rows, n)
    # A function of its own, since the compiler makes vector loops only of sizes that it reads off the arrays.
    recur(system, w[:features], u, y, state.reshape(batch, features, 2, n))


@_compile
def recur(system, D, u, y, state):
    """x <- Āx + B̄u, y = Cx + Du with Ā = diag(a) - Σ_r g_r q_rᵀ: u, y (B, H), state (B, H, 2, n).

    system (H, 6 + 4r, n), r >= 1: real and imaginary part (real and second half, for q and C) of a, B̄ and C, then of q
    and g in turn.
    """
    rank, n = (system.shape[1] - 6) // 4, state.shape[3]
    s = np.empty(rank, np.float32)
    for h in range(u.shape[1]):
        for b in range(u.shape[0]):
            for r in range(rank):
                q_re, q_im, along = system[h, 6 + 4 * r], system[h, 7 + 4 * r], np.float32(0)
                for i in range(n):
                    along += q_re[i] * state[b, h, 0, i] + q_im[i] * state[b, h, 1, i]
                s[r] = along
            v, first = u[b, h], s[0]
            total = D[h] * v
            for i in range(n):
                x_re, x_im = state[b, h, 0, i], state[b, h, 1, i]
                re = system[h, 0, i] * x_re - system[h, 1, i] * x_im + system[h, 2, i] * v - first * system[h, 8, i]
                im = system[h, 0, i] * x_im + system[h, 1, i] * x_re + system[h, 3, i] * v - first * system[h, 9, i]
                state[b, h, 0, i], state[b, h, 1, i] = re, im
                total += system[h, 4, i] * re + system[h, 5, i] * im
            for r in range(1, rank):
                g_re, g_im, further = system[h, 8 + 4 * r], system[h, 9 + 4 * r], s[r]
                for i in range(n):
                    re, im = further * g_re[i], further * g_im[i]
                    state[b, h, 0, i] -= re
                    state[b, h, 1, i] -= im
                    total -= system[h, 4, i] * re + system[h, 5, i] * im
            y[b, h] = total


@_compile
def _moments(x):
    """Mean and variance of x (n)."""
    mean = x.sum() / np.float32(x.size)
    variance = np.float32(0)
    for value in x:
        variance += (value - mean) ** 2
    return mean, variance / np.float32(x.size)


@_compile
def layer_norm(w, x, y):
    """Weights: scale (n), then shift (n)."""
    width = x.shape[1]
    for b in range(x.shape[0]):
        mean, variance = _moments(x[b])
        scale = _one / math.sqrt(variance + _eps)
        for i in range(width):
            y[b, i] = (x[b, i] - mean) * scale * w[i] + w[width + i]


@_compile
def scalar_norm(w, x, y):
    """One shift w[0] and one scale w[1] for all features, no epsilon."""
    width = x.shape[1]
    for b in range(x.shape[0]):
        mean, variance = _moments(x[b])
        scale = w[1] / np.float32(math.sqrt(variance)) if variance > 0 else np.float32(0)
        for i in range(width):
            y[b, i] = (x[b, i] - mean + w[0]) * scale


@_compile
def linear(w, x, y):
    """y (B, n) = bias + x (B, m) @ weight: w holds the bias (n), then the weight (m, n)."""
    m, n = x.shape[1], y.shape[1]
    weight = w[n : n + m * n].reshape(m, n)
    for b in range(len(x)):
        y[b] = w[:n]
    whole = m // 8 * 8
    # Eight rows of the weight for each pass over y, and every row of the batch while they are at hand.
    for i in range(0, whole, 8):
        w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
        w4, w5, w6, w7 = weight[i + 4], weight[i + 5], weight[i + 6], weight[i + 7]
        for b in range(len(x)):
            x0, x1, x2, x3 = x[b, i], x[b, i + 1], x[b, i + 2], x[b, i + 3]
            x4, x5, x6, x7 = x[b, i + 4], x[b, i + 5], x[b, i + 6], x[b, i + 7]
            out = y[b]
            for j in range(n):
                out[j] += (x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]) + (
                    x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
                )
    for i in range(whole, m):
        for b in range(len(x)):
            for j in range(n):
                y[b, j] += x[b, i] * weight[i, j]


@_compile
def gelu(x):
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[b, i] *= _half * (_one + math.erf(x[b, i] * _sqrt_half))


@_compile
def gate(x, y):
    """y += first half of x · sigmoid(second half)."""
    width = y.shape[1]
    for b in range(y.shape[0]):
        for i in range(width):
            y[b, i] += x[b, i] / (_one + math.exp(-x[b, width + i]))


@_compile
def embed(w, token, x, y):
    """y = row `token` of w, plus x."""
    width = y.shape[1]
    for b in range(len(token)):
        row = w[token[b] * width : (token[b] + 1) * width]
        for i in range(width):
            y[b, i] = row[i] + x[b, i]


@_compile
def draw(logits, uniform, temperature, top_p):
    """Draw for one row as `audio.generation.sampling.draw` does."""
    share = np.empty(len(logits))
    largest = logits.max()
    for i in range(len(logits)):
        share[i] = math.exp((np.float64(logits[i]) - largest) / temperature)
    if top_p < 1:
        bound, before = top_p * share.sum(), 0.0
        for i in np.argsort(-share, kind='mergesort'):
            kept = before < bound
            before += share[i]
            if not kept:
                share[i] = 0.0
    bound, code, total = uniform * share.sum(), 0, 0.0
    for i in range(len(share)):
        if share[i] > 0:
            code = i
            total += share[i]
            if total > bound:
                break
    return code
