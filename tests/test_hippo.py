"""HiPPO matrices, their normal-plus-low-rank form and the diagonal initializations, against golden/hippo.npz."""

import math

import pytest
import torch
from torch import Tensor

from s4nd import hippo
from tests import golden_cases, oracles

CASES = golden_cases.load('hippo')
MATRICES = [name for name in CASES if not name.startswith('s4d_')]
DIAGONALS = [name for name in CASES if name.startswith('s4d_')]


def split(name: str) -> tuple[str, int]:
    measure, size = name.rsplit('_', 1)
    return measure.removeprefix('s4d_'), int(size)


@pytest.mark.parametrize('name', MATRICES)
def test_matrices(name: str) -> None:
    case, (measure, size) = CASES[name], split(name)
    A, B = hippo.transition(measure, size)
    torch.testing.assert_close(A, torch.from_numpy(case['A']), atol=1e-10, rtol=0)
    torch.testing.assert_close(B, torch.from_numpy(case['B']), atol=1e-10, rtol=0)
    P = hippo.low_rank(measure, size)
    torch.testing.assert_close(P.T @ P, torch.from_numpy(case['P_real'].T @ case['P_real']), atol=1e-10, rtol=0)


@pytest.mark.parametrize('name', MATRICES)
def test_nplr(name: str) -> None:
    case, (measure, size) = CASES[name], split(name)
    w, P, B, V = hippo.nplr(measure, size)
    for ours, key in ((w, 'w_true'), (V, 'V_true'), (B, 'B_true'), (P, 'P_true')):
        torch.testing.assert_close(ours, torch.from_numpy(case[key]), atol=1e-10, rtol=0)
    both, p = torch.cat([V, V.conj()], 1), torch.cat([P, P.conj()], 1)
    normal = torch.diag(torch.cat([w, w.conj()]))
    A = both @ (normal - p.T @ p.conj()) @ both.conj().T
    scale = hippo.transition(measure, size)[0].abs().max()
    assert (A - hippo.transition(measure, size)[0]).abs().max() / scale < 1e-12


@pytest.mark.parametrize('name', DIAGONALS)
def test_diagonal(name: str) -> None:
    case, (init, size) = CASES[name], split(name)
    A, B = hippo.diagonal(init, size // 2)
    torch.testing.assert_close(A, torch.from_numpy(case['A_true']), atol=1e-10, rtol=0)
    clipped = torch.complex(B.real, B.imag.clamp(-2, 2))  # as the published B of 'legs' is, unlike ours
    torch.testing.assert_close(clipped, torch.from_numpy(case['B_true']), atol=1e-10, rtol=0)


def test_legs_entry_by_entry() -> None:
    torch.testing.assert_close(hippo.transition('legs', 6)[0], oracles.hippo_legs(6), atol=1e-13, rtol=0)


def test_default_device_is_ignored() -> None:
    with torch.device('meta'):
        assert hippo.nplr('legs', 8)[0].device.type == 'cpu'


def smooth(samples: int) -> Tensor:
    """A sum of slow cosines, up to six cycles."""
    t = torch.arange(samples, dtype=torch.float64) / samples
    return sum(torch.cos(2 * math.pi * c * t + p) for c, p in ((1.3, 0.1), (2.7, 1.0), (4.1, 2.0), (5.9, 3.0))) / 2


def remember(memory: hippo.Memory, u: Tensor) -> dict[str, Tensor]:
    """Feed u (B, L)."""
    state = memory.init_state(len(u))
    for sample in u.unbind(-1):
        state = memory.step(sample, state)
    return state


@pytest.mark.parametrize(('measure', 'window', 'tolerance'), [
    ('legs', None, 1e-3), ('legt', 200.0, 1e-3), ('lagt', 12.0, 2e-2), ('fout', 200.0, 7e-2)])  # fmt: skip
def test_memory_reconstructs_its_input(measure: str, window: float | None, tolerance: float) -> None:
    """Relative error over the last 200 of 400 samples; 'fout' converges slowly where the window's ends differ."""
    u = smooth(400)
    memory = hippo.Memory(measure, 64, window)
    ages = torch.arange(200) + 0.5  # a sample is the mean over a cell
    found = memory.reconstruct(remember(memory, u[None]), ages / (window or 400))[0]
    error = (found - u.flip(0)[:200]).norm() / u[200:].norm()
    assert error < tolerance
    # A smaller memory holds less.
    small = hippo.Memory(measure, 16, window)
    worse = small.reconstruct(remember(small, u[None]), ages / (window or 400))[0] - u.flip(0)[:200]
    assert worse.norm() / u[200:].norm() > 1.5 * error


@pytest.mark.parametrize(('measure', 'window', 'size'), [('legs', None, 8), ('lagt', 20.0, 8), ('legt', 150.0, 32)])
def test_memory_is_the_projection_of_the_input(measure: str, window: float | None, size: int) -> None:
    """The coefficients are integrals of the input against the basis. A sliding window forgets through what it
    reconstructs at its end, so 'legt' is so only where it can reconstruct."""
    samples = 300
    u = smooth(samples)
    state = remember(hippo.Memory(measure, size, window), u[None])
    past = u.flip(0)[: 150 if measure == 'legt' else samples].repeat_interleave(20)  # 20 points a sample
    ages = (torch.arange(len(past), dtype=torch.float64) + 0.5) / 20 / (window or samples)
    true = (past[:, None] * hippo.basis(measure, size, ages)).sum(0) / 20 / (window or samples)
    torch.testing.assert_close(state['x'][0], true, atol=1e-3, rtol=0)


def test_legs_knows_no_timescale() -> None:
    """The same signal at half the speed leaves the same memory (HiPPO, proposition 3)."""
    u = torch.randn(2, 40, dtype=torch.float64)
    memory = hippo.Memory('legs', 16)
    once, twice = remember(memory, u), remember(memory, u.repeat_interleave(2, -1))
    torch.testing.assert_close(once['x'], twice['x'], atol=1e-9, rtol=0)


def test_memory_states_are_values() -> None:
    memory = hippo.Memory('legt', 4, 10.0)
    state = remember(memory, torch.randn(2, 5))
    kept = {key: value.clone() for key, value in state.items()}
    first, second = (memory.step(torch.ones(2), state) for _ in range(2))
    assert all(torch.equal(state[key], kept[key]) and torch.equal(first[key], second[key]) for key in kept)
    assert first['seen'].tolist() == [6, 6]


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: hippo.Memory('legs', 8, 10.0), "'legs' has no window.*10.0"),
    (lambda: hippo.Memory('legt', 8), "need one.*'legt' and None"),
    (lambda: hippo.Memory('fout', 8, -1.0), 'positive.*-1.0'),
    (lambda: hippo.basis('legz', 8, torch.zeros(1)), 'legz'),
    (lambda: hippo.transition('legz', 8), 'legz.*legs, legt'),
    (lambda: hippo.transition('fout', 7), 'even.*7'),
    (lambda: hippo.nplr('fout', 2), 'at least 4.*2'),
    (lambda: hippo.diagonal('linear', 4), 'linear.*lin, inv'),
    (lambda: hippo.diagonal('lin', 0), 'at least 1 mode, got 0'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
