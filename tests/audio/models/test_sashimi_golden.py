"""SaShiMi against golden/sashimi.npz: forward, stepping and gradients of every case in the file."""

import numpy as np
import pytest
import torch
from torch import Tensor

from audio.models.backbone import SaShiMiBackbone
from audio.models.keywords import model_keywords
from s4nd.layers import S4
from tests.golden_cases import load

CASES = load('sashimi')


def build(items: dict[str, np.ndarray]) -> tuple[SaShiMiBackbone, dict[str, str]]:
    """The float64 model of a case, its published parameters loaded, and the map our name -> published name."""
    meta = items['meta']
    published = {key[3:]: value for key, value in items.items() if key.startswith('sd.')}
    layers = sorted(key.removesuffix('.kernel.A_real') for key in published if key.endswith('.kernel.A_real'))
    rows = [len(published[f'{layer}.kernel.A_real']) for layer in layers]
    widths = [published[f'{layer}.D'].shape[1] for layer in layers]
    rank = len(published.get(f'{layers[0]}.kernel.P', [0]))
    output = next(value for key, value in published.items() if key.endswith('output_linear.0.weight'))
    given = {name: meta[name] for name in ('expand', 'ff', 'unet', 'bidirectional') if name in meta} | {
        'd_model': meta['d_model'],
        'n_layers': meta['n_layers'],
        'pool': meta['pool'],
        'kernel': 's4d' if meta.get('mode') == 's4d' else 's4',
        'd_state': 2 * published[f'{layers[0]}.kernel.A_real'].shape[1],
        'init': 'legt' if rank == 2 else None,
        'n_ssm': 'd_model' if rows == widths else rows[0],
        'glu': output.shape[0] == 2 * output.shape[1],
    }
    model = SaShiMiBackbone(
        **model_keywords(SaShiMiBackbone, given, owner='the published model', layer=S4), dtype=torch.float64
    )
    names = dict(zip(own_parameters(model), published_parameters(model, published), strict=True))
    own = model.state_dict()
    for ours, theirs in names.items():
        own[ours].copy_(torch.from_numpy(published[theirs].astype(np.float64)).reshape(own[ours].shape))
    return model, names


def own_parameters(model: SaShiMiBackbone) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def published_parameters(model: SaShiMiBackbone, published: dict[str, np.ndarray]) -> list[str]:
    """The published name of each of our parameters, in our order; fails unless every published one is used once."""
    where = {}
    position = 0
    for i, level in enumerate(model.levels):
        for j in range(len(level.down)):
            where[f'levels.{i}.down.{j}'] = f'd_layers.{position + j}'
        position += len(level.down) + 1
        where[f'levels.{i}.pool'] = f'd_layers.{position - 1}.linear'
        mirrored = len(model.levels) - 1 - i
        where[f'levels.{i}.unpool'] = f'u_layers.{mirrored}.0.linear'
        where |= {f'levels.{i}.up.{j}': f'u_layers.{mirrored}.{j + 1}' for j in range(len(level.up))}
    where |= {f'center.{j}': f'c_layers.{j}' for j in range(len(model.center))}
    where['norm'] = 'norm'
    names = [published_name(name, where) for name in own_parameters(model)]
    buffers = ('l_kernel',)
    assert sorted(names) == sorted(key for key in published if not key.endswith(buffers))
    return names


def published_name(name: str, where: dict[str, str]) -> str:
    block = max((key for key in where if name.startswith(f'{key}.')), key=len)
    rest = name[len(block) + 1 :].split('.')
    if rest[0] == 's4':
        special = {'log_dt': 'kernel.inv_dt', 'log_A_real': 'kernel.A_real', 'D': 'D'}
        return f'{where[block]}.layer.layer.{special.get(rest[-1], f"kernel.{rest[-1]}")}'
    inner = {'linear': 'layer.output_linear.0', 'linear1': 'layer.ff.0.0', 'linear2': 'layer.ff.2', 'norm': 'norm'}
    return '.'.join([where[block], inner[rest[0]], rest[1]] if len(rest) == 2 else [where[block], rest[0]])


def run_steps(model: SaShiMiBackbone, x: Tensor) -> Tensor:
    state, system, out = model.init_state(len(x)), model.system(), []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state, system)
        out.append(y)
    return torch.stack(out, 1)


@pytest.mark.parametrize('case', CASES)
def test_forward(case: str) -> None:
    items = CASES[case]
    model, _ = build(items)
    x = torch.from_numpy(items['x'])
    expected = items['y_forward_ref64']
    with torch.no_grad():
        torch.testing.assert_close(model(x.double()).numpy(), expected, atol=1e-10, rtol=0)
        single = model.float()(x).numpy()
    np.testing.assert_allclose(single, expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(single, items['y_forward_ref32'], atol=2e-5, rtol=0)


@pytest.mark.parametrize('case', [case for case, items in CASES.items() if not items['meta'].get('bidirectional')])
def test_step(case: str) -> None:
    items = CASES[case]
    model, _ = build(items)
    x = torch.from_numpy(items['x'])
    with torch.no_grad():
        stepped = run_steps(model, x.double())
        torch.testing.assert_close(stepped, model(x.double()), atol=1e-10, rtol=0)
        single = run_steps(model.float(), x)
        torch.testing.assert_close(single, model(x), atol=1e-4, rtol=0)
    for mode in ('dense', 'linear', 'manual'):
        for suffix, ours, tolerance in (('64', stepped, 1e-10), ('32', single, 2e-5)):
            if f'y_step_{mode}_ref{suffix}' in items:
                np.testing.assert_allclose(ours.numpy(), items[f'y_step_{mode}_ref{suffix}'], atol=tolerance, rtol=0)


def decay(A_real: Tensor, A_imag: Tensor, P: Tensor, inv_dt: Tensor, length: int) -> Tensor:
    """(I - Abar^length)ᵀ (H, N, N) of a DPLR kernel, bilinear, densely; feature h uses row h % S of A and P."""
    rows = torch.arange(len(inv_dt)) % len(A_real)
    A, low = (-A_real.exp() - 1j * A_imag)[rows], torch.view_as_complex(P)[:, rows]  # (H, n), (rank, H, n)
    A, low = torch.cat([A, A.conj()], -1), torch.cat([low, low.conj()], -1)
    A = torch.diag_embed(A) - torch.einsum('rhn,rhm->hnm', low, low.conj())
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    half = inv_dt.exp()[..., None] / 2 * A
    a_bar = torch.linalg.solve(eye - half, eye + half)
    return (eye - torch.linalg.matrix_power(a_bar, length)).transpose(1, 2)


def apply_to_half(matrix: Tensor, C: Tensor) -> Tensor:
    """matrix (H, N, N) times (C, conj C), its first half again: C (1, H, N/2, 2) -> the same shape."""
    C = torch.view_as_complex(C)
    product = (matrix @ torch.cat([C, C.conj()], -1)[..., None])[..., 0]
    return torch.view_as_real(product[..., : C.shape[-1]].contiguous())


def published_leaves(
    items: dict[str, np.ndarray], names: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves in the published parameterization, by published name, and our parameters as functions of them.

    The published DPLR kernel replaces C by (I - Abar^l)ᵀ C in its first call and differentiates with that held fixed.
    """
    leaves = {theirs: torch.from_numpy(items[f'sd.{theirs}']).double() for theirs in names.values()}
    kernels = {name.rpartition('.')[0] for name in leaves if name.endswith('kernel.P')}
    for kernel in kernels:
        length = int(items[f'sd_after.{kernel}.l_kernel'])
        others = [leaves[f'{kernel}.{key}'] for key in ('A_real', 'A_imag', 'P', 'inv_dt')]
        leaves[f'{kernel}.C'] = apply_to_half(decay(*others, length), leaves[f'{kernel}.C'])
    for leaf in leaves.values():
        leaf.requires_grad_()
    parameters = {ours: leaves[theirs] for ours, theirs in names.items()}
    for ours, theirs in names.items():
        kernel, _, tensor = theirs.rpartition('.')
        if tensor == 'C' and kernel in kernels:
            others = [leaves[f'{kernel}.{key}'] for key in ('A_real', 'A_imag', 'P', 'inv_dt')]
            length = int(items[f'sd_after.{kernel}.l_kernel'])
            parameters[ours] = apply_to_half(torch.linalg.inv(decay(*others, length)), leaves[theirs])
    return leaves, parameters


@pytest.mark.parametrize('case', [case for case, items in CASES.items() if 'grad.w' in items])
def test_gradients(case: str) -> None:
    items = CASES[case]
    model, names = build(items)
    leaves, parameters = published_leaves(items, names)
    shaped = {name: parameters[name].reshape(p.shape) for name, p in model.named_parameters()}
    x = torch.from_numpy(items['x']).double().requires_grad_()
    y = torch.func.functional_call(model, shaped, (x,))
    (y * torch.from_numpy(items['grad.w']).double()).sum().backward()
    checked = {'grad.x': x.grad} | {f'grad.{name}': leaf.grad for name, leaf in leaves.items()}
    assert checked.keys() == {key for key in items if key.startswith('grad.')} - {'grad.w'}
    for key, gradient in checked.items():
        scale = max(1.0, np.abs(items[key]).max())
        np.testing.assert_allclose(gradient.numpy(), items[key], atol=1e-8 * scale, rtol=0, err_msg=key)
