"""Taps and recurrences against golden/kernels_diag.npz and kernels_dplr.npz, every case that is in scope."""

import os

import pytest
import torch

from s4nd.interop import load_published_kernel
from s4nd.kernels import Kernel, S4DKernel, S4Kernel
from s4nd.ops import lowrank
from tests.golden_cases import load, published, tensor, transforms

DIAGONAL = {name: case for name, case in load('kernels_diag').items() if case['meta']['disc'] != 'dss'}
DPLR = load('kernels_dplr')
# Largest absolute error, values of order 1: what the golden files' README states.
FLOAT64, FLOAT64_FOUT = 1e-10, 1e-9
FLOAT32_DIAGONAL, FLOAT32_DPLR, FLOAT32_FOUT = 5e-6, 5e-5, 2e-3


def diagonal_kernel(case: dict, dtype: torch.dtype) -> S4DKernel:
    meta = case['meta']
    kernel = S4DKernel(
        meta['H'],
        channels=meta['channels'],
        d_state=meta['N'],
        init='real' if meta['is_real'] else 'lin',
        n_ssm=meta['n_ssm'],
        bandlimit=meta['bandlimit'],
        discretization=meta['disc'],
        dt_tied=meta['dt_tie'],
        dtype=dtype,
    )
    fill(kernel, case)
    return kernel


def dplr_kernel(case: dict, dtype: torch.dtype) -> S4Kernel:
    meta = case['meta']
    kernel = S4Kernel(
        meta['H'], channels=meta['channels'], d_state=meta['N'], n_ssm=meta['n_ssm'], rank=meta['rank'], dtype=dtype
    )
    fill(kernel, case)
    return kernel


def fill(kernel: Kernel, case: dict) -> None:
    before_any_call = {key: value for key, value in published(case).items() if key != 'l_kernel'}
    load_published_kernel(kernel, before_any_call, **transforms(case))


def check_taps(kernel: Kernel, case: dict, tolerance: float) -> None:
    for key in [key for key in case if key.startswith('K_true') and 'noeps' not in key]:
        taps = kernel(case[key].shape[-1], case['meta']['rate'])
        assert taps.dtype == kernel.C.dtype
        torch.testing.assert_close(taps.double(), tensor(case[key]), atol=tolerance, rtol=0)


def stepped(kernel: Kernel, case: dict, x0: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    u, state, y = tensor(case['u']).to(dtype), {'x': x0.to(dtype)}, []
    for u_k in u.unbind(-1):
        y_k, state = kernel.step(u_k, state)
        y.append(y_k)
    return torch.stack(y, -1)


@pytest.mark.parametrize('name', DIAGONAL)
def test_diagonal_taps(name: str) -> None:
    check_taps(diagonal_kernel(DIAGONAL[name], torch.float64), DIAGONAL[name], FLOAT64)
    check_taps(diagonal_kernel(DIAGONAL[name], torch.float32), DIAGONAL[name], FLOAT32_DIAGONAL)


@pytest.mark.parametrize('stepwise_up_to', [0, 1000])
@pytest.mark.parametrize('name', DPLR)
def test_dplr_taps(name: str, stepwise_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, 'STEPWISE_UP_TO', stepwise_up_to)
    fout = 'fout' in name or DPLR[name]['meta']['init'] in ('fout', 'fourier', 'hippo')
    check_taps(dplr_kernel(DPLR[name], torch.float64), DPLR[name], FLOAT64_FOUT if fout else FLOAT64)
    check_taps(dplr_kernel(DPLR[name], torch.float32), DPLR[name], FLOAT32_FOUT if fout else FLOAT32_DPLR)


@pytest.mark.parametrize('name', [n for n, c in DIAGONAL.items() if 'y_true' in c and c['meta']['rate'] == 1])
def test_diagonal_steps(name: str) -> None:
    case = DIAGONAL[name]
    x0 = tensor(case['x0'])
    if case['meta']['is_real'] and x0.dim() == 3:
        x0 = torch.stack([x0, torch.zeros_like(x0)], -1)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-5)):
        y = stepped(diagonal_kernel(case, dtype), case, x0, dtype)
        torch.testing.assert_close(y.double(), tensor(case['y_true']), atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', [n for n, c in DPLR.items() if 'y_true' in c and c['meta']['rate'] == 1])
def test_dplr_steps(name: str) -> None:
    case = DPLR[name]
    x0 = torch.cat(tensor(case['x0']).unbind(-1), -1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 5e-5)):
        y = stepped(dplr_kernel(case, dtype), case, x0, dtype)
        torch.testing.assert_close(y.double(), tensor(case['y_true']), atol=tolerance, rtol=0)


@pytest.mark.skipif('S4ND_GOLDEN' in os.environ, reason='another folder may hold only some files')
@pytest.mark.parametrize('name', ['hippo', 'kernels_diag', 'kernels_dplr', 's4nd', 'sashimi'])
def test_own_files_hold_cases(name: str) -> None:
    assert len(load(name)) > 10
