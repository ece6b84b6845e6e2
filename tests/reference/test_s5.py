"""S5 against its released code, in JAX and in torch: every C, rule and layout, steps per sample, initial sizes."""

import pytest
import torch

from s4nd import S5, hippo
from s4nd.interop.s5 import load_s5
from tests.reference.cases import Case, check_covered, of_kind

# Names of outputs: (step, whether from in.state).
STEPS = {'y': 1.0, 'y_rescale_half': 0.5, 'y_rescale_2': 2.0, 'y_step_half': 0.5, 'y_step_2': 2.0}
VARIED = {'y_step_variable', 'y_variable_state', 'state_final'}


def layer_of(case: Case, dtype: torch.dtype) -> S5:
    meta = case.meta
    layer = load_s5(
        case.param,
        conj_sym=meta.get('conj_sym'),
        discretization=meta['discretization'],
        clip_eigs=meta.get('clip_eigs', False),
        dtype=dtype,
    )
    assert layer.bidirectional == meta['bidirectional']
    return layer


@of_kind('s5', 'S5SSM')
@torch.no_grad()
def test_reference_jax(case: Case) -> None:
    check_steps(case)


@of_kind('s5_torch', 's5-pytorch S5SSM')
@torch.no_grad()
def test_reference_torch(case: Case) -> None:
    check_steps(case)
    layer, x, step = layer_of(case, torch.float64), case.given['x'].T[None], case.given['step']
    case.check('y_step_variable', layer(x, step=step)[0].T)
    case.check('y_step_variable', layer(torch.cat([x, x]), step=torch.stack([step, 2 * step]))[0].T)
    case.check_float32('y_step_variable', layer_of(case, torch.float32)(x.float(), step=step.float())[0].T)
    if 'state' not in case.given:
        return
    before = {'x': torch.view_as_real(case.given['state'])[None]}
    y, after = layer(x, before, step)
    case.check('y_variable_state', y[0].T)
    case.check('state_final', after['x'][0])
    state, outputs = before, []
    for x_t, step_t in zip(x.unbind(-1), step.tolist(), strict=True):
        y_t, state = layer.step(x_t, state, layer.system(step_t))
        outputs.append(y_t)
    case.check('y_variable_state', torch.stack(outputs, -1)[0].T)
    case.check('state_final', state['x'][0])


def check_steps(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        layer, x = layer_of(case, dtype), case.given['x'].T[None].to(dtype)
        for name in case.out.keys() & STEPS.keys():
            y = layer(x, step=STEPS[name])[0].T
            case.check(name, y) if dtype == torch.float64 else case.check_float32(name, y)
            if dtype == torch.float64 and not layer.bidirectional:
                y, _ = layer(x, layer.init_state(1), STEPS[name])
                case.check(name, y[0].T)


@of_kind('s5', 'eigenvalues of HiPPO-LegS')
def test_reference_spectrum(case: Case) -> None:
    """Real parts are -1/2 exactly; the imaginary ones are as exact as a solver of eigenvalues is."""
    w = hippo.nplr('legs', case.meta['N'])[0]
    case.check('Lambda', torch.cat([w, w.conj().flip(0)]))


@of_kind('s5', 'root mean square of |B| and |C| at initialisation')
@pytest.mark.parametrize('name', ['trunc_standard_normal', 'lecun_normal', 'complex_normal'])
def test_reference_initialization(case: Case, name: str) -> None:
    """Sizes of B and C within the noise of one draw."""
    torch.manual_seed(0)
    found = 0
    for key, true in case.meta['values'].items():
        features, size, kind, init = key.split('_', 3)
        if init != name:
            continue
        found += 1
        layer = S5(int(features[1:]), d_state=int(size[1:]), conj_sym=kind == 'conj', C_init=init)
        for parameter in ('B', 'C'):
            rms = getattr(layer, parameter).detach().square().sum(-1).mean().sqrt().item()
            noise = 4 / getattr(layer, parameter).numel() ** 0.5
            assert abs(rms / true[f'rms_abs_{parameter}'] - 1) < noise + 0.02, (key, parameter)
    assert found


def test_reference_is_covered() -> None:
    check_covered('s5', {
        'S5SSM': set(STEPS), 'eigenvalues of HiPPO-LegS': {'Lambda'}, 'root mean square of |B|': set(),
    })  # fmt: skip
    check_covered('s5_torch', {'s5-pytorch S5SSM': {*STEPS, *VARIED}})


def test_reference_errors_name_the_key() -> None:
    weights = {'Lambda_re': torch.tensor([0.1, -1.0]), 'Lambda_im': torch.ones(2), 'B': torch.zeros(2, 3, 2)}
    weights |= {'C': torch.zeros(3, 2, 2), 'D': torch.zeros(3), 'log_step': torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=r'Lambda: expected negative real parts, got 0\.1'):
        load_s5(weights)
    with pytest.raises(ValueError, match=r'x has no place'):
        load_s5(weights | {'x': torch.zeros(1)}, clip_eigs=True)
    del weights['D']
    with pytest.raises(ValueError, match='no D in the published weights'):
        load_s5(weights, clip_eigs=True)
