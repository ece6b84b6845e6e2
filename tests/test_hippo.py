"""HiPPO matrices, their normal-plus-low-rank form and the diagonal initialisations, against golden/hippo.npz."""

import pytest
import torch

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
    # The published B of 'legs' is clipped; ours is not unless asked.
    torch.testing.assert_close(hippo.clip_imag(B), torch.from_numpy(case['B_true']), atol=1e-10, rtol=0)


def test_legs_entry_by_entry() -> None:
    torch.testing.assert_close(hippo.transition('legs', 6)[0], oracles.hippo_legs(6), atol=1e-13, rtol=0)


def test_default_device_is_ignored() -> None:
    with torch.device('meta'):
        assert hippo.nplr('legs', 8)[0].device.type == 'cpu'


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: hippo.transition('legz', 8), 'legz.*legs, legt'),
    (lambda: hippo.transition('legs', 7), 'even.*7'),
    (lambda: hippo.nplr('fout', 2), 'at least 4.*2'),
    (lambda: hippo.diagonal('linear', 4), 'linear.*lin, inv'),
    (lambda: hippo.diagonal('lin', 0), 'at least 1 mode, got 0'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
