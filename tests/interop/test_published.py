"""Published state dicts, also of layers that have run, in ours. (Taps and outputs: test_golden.py, test_s4nd.py.)"""

import pytest
import torch

from s4nd import S4, S4ND
from s4nd.interop import load_published_kernel, load_published_layer
from tests.golden_cases import load, published, tensor
from tests.kernels.test_golden import DPLR, dplr_kernel

S4ND_CASES = load('s4nd')
SASHIMI = load('sashimi')
# (In the deterministic cases C (I - Ā^l) is C to 1e-8: they would show nothing.)
AFTER = [
    (name, call)
    for name, case in DPLR.items()
    for call in ('', '_call2', '_call3')
    if f'C_tilde{call}' in case and 'deterministic' not in name
]


@pytest.mark.parametrize(('name', 'call'), AFTER)
def test_a_kernel_that_has_run_gives_its_c_back(name: str, call: str) -> None:
    case = DPLR[name]
    before, after = dplr_kernel(case, torch.float64), dplr_kernel(case, torch.float64)
    weights = published(case)
    weights |= {'C': weights[f'C_tilde{call}'], 'l_kernel': weights[f'l_kernel{call}']}
    assert not torch.allclose(weights['C'], before.C, atol=1e-3, rtol=0)
    load_published_kernel(after, weights)
    # Undamped modes make I - Ā^l nearly singular.
    undamped = case['meta']['init'] in ('fout', 'legt', 'hippo', 'fourier')
    torch.testing.assert_close(after(20), before(20), atol=1e-6 if undamped else 1e-9, rtol=0)


def sashimi_layers() -> list[tuple[str, str]]:
    return [
        (name, key[3:].removesuffix('kernel.A_real'))
        for name, case in SASHIMI.items()
        for key in case
        if key.startswith('sd.') and key.endswith('layer.layer.kernel.A_real')
    ]


@pytest.mark.parametrize(('name', 'prefix'), sashimi_layers()[::6])
def test_an_s4_layer_inside_a_model(name: str, prefix: str) -> None:
    """The layer as saved before and after its first forward computes the same, whatever its length."""
    case = SASHIMI[name]
    weights = published(case, 'sd.')
    has_run = weights | published(case, 'sd_after.')
    modes, channels = weights[f'{prefix}kernel.A_real'].shape[1], weights[f'{prefix}kernel.C'].shape[0]
    outputs = []
    for state_dict in (weights, has_run):
        rank = {'rank': len(weights[f'{prefix}kernel.P'])} if f'{prefix}kernel.P' in weights else {}
        layer = S4ND(
            weights[f'{prefix}D'].shape[1],
            grid=(64,),
            kernel='s4' if f'{prefix}kernel.P' in weights else 's4d',
            d_state=2 * modes,
            bidirectional=channels == 2,
            cell='published',
            kernel_args={'n_ssm': len(weights[f'{prefix}kernel.A_real']), **rank},
            dtype=torch.float64,
        )
        left = load_published_layer(layer, state_dict, prefix)
        assert all(key.startswith(f'{prefix}output_linear') for key in left)
        x = torch.randn(1, layer.d_model, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        outputs.append(layer(x, step=[1.0]))
    # The stored numbers are float32.
    scale = outputs[0].abs().max()
    torch.testing.assert_close(outputs[1] / scale, outputs[0] / scale, atol=1e-3, rtol=0)


def test_what_the_layer_has_no_place_for_is_named() -> None:
    case = next(case for case in S4ND_CASES.values() if not case['meta']['linear'])
    meta = case['meta']
    layer = S4ND(meta['H'], tuple(meta['Ls']), d_state=meta['N'], cell='published',
                 channels=meta['channels'], kernel_args={'n_ssm': len(case['sd.kernel.0.A_real'])})  # fmt: skip
    left = load_published_layer(layer, published(case, 'sd.'))
    assert sorted(left) == ['output_linear.0.bias', 'output_linear.0.weight']
    torch.testing.assert_close(layer.D, tensor(case['sd.D']).float())


def layer(d_model: int = 3, grid: tuple[int, ...] = (7, 7), n_ssm: int = 3, **options: object) -> S4ND:
    return S4ND(d_model, grid, d_state=8, kernel_args={'n_ssm': n_ssm}, **{'cell': 'published', **options})


@pytest.mark.parametrize(('build', 'change', 'says'), [
    (lambda: layer(cell='training'), {}, "cell='published', got 'training'"),
    (lambda: layer(4, n_ssm=4), {}, r'inv_dt has shape \[3, 1\], expected \[4, 1\]'),
    (lambda: layer(n_ssm=1), {}, r'A_real has shape \[3, 4\], expected \[1, 4\]'),
    (lambda: layer(bidirectional=False), {}, r'C has shape \[2, 3, 4, 2\]'),
    (lambda: layer(grid=(7,)), {}, 'another number of axes: this one has 1'),
    (lambda: layer(grid=(7, 7, 7)), {}, r'no kernel\.2\.inv_dt'),
    (lambda: S4(3, d_state=8, kernel_args={'n_ssm': 3}), {}, 'another number of axes'),
    (lambda: layer(kernel='s4'), {}, "is a kernel 's4d'"),
    (lambda: layer(), {'D': None}, 'no D in the published weights'),
])  # fmt: skip
def test_bad_input(build: object, change: dict, says: str) -> None:
    weights = published(S4ND_CASES['bi2d'], 'sd.')
    weights = {key: value for key, value in weights.items() if key not in change}
    with pytest.raises(ValueError, match=says):
        load_published_layer(build(), weights)


def test_bad_transforms() -> None:
    weights = published(S4ND_CASES['bi2d'], 'sd.')
    with pytest.raises(ValueError, match="unknown transform 'tanh'"):
        load_published_layer(layer(), weights, dt_transform='tanh')
    with pytest.raises(ValueError, match="transform 'none' must give positive values"):
        load_published_layer(layer(), weights, dt_transform='none')
