"""CCNN against its released code: coordinate networks, kernels, convolutions, blocks, networks, how they start."""

import re
from typing import Any

import pytest
import timm
import torch

import s4nd
from s4nd.interop.ccnn import load_ccnn_block, load_ckconv, load_network
from s4nd.kernels.ckconv import SIREN, MAGNet
from s4nd.layers import CKConv
from tests.reference.cases import Case, check_covered, load, of_kind

FILE = 'ccnn'
NETWORKS = ('MAGNet', 'SIREN')
CONVS = ('SeparableFlexConv', 'FlexConv', 'SeparableCKConv', 'CKConv')


def options(case: Case) -> dict[str, Any]:
    """What the weights do not tell. Lags are in samples of the input, as released: it is the grid."""
    return {'img_size': tuple(case.given['x'].shape[2:]), 'causal': case.meta['causal']}


def check(case: Case, dtype: torch.dtype, y: torch.Tensor, tolerance: float = 2e-5) -> None:
    case.check('y', y) if dtype == torch.float64 else case.check_float32('y', y, tolerance)


@of_kind(FILE, *NETWORKS)
@torch.no_grad()
def test_reference_coordinate_networks(case: Case) -> None:
    positions, meta = case.given['positions'][0], case.meta
    for dtype in (torch.float64, torch.float32):
        network = load_network(case.param, dtype=dtype)
        if meta['kind'] == 'MAGNet':
            assert (len(network.filters), len(network.linears)) == (meta['filters'], meta['hidden_maps'])
        y = network(positions.flatten(1).T.double()).T.reshape(1, -1, *positions.shape[1:])
        case.check('y', y) if dtype == torch.float64 else case.check_float32('y', y.float())


@of_kind(FILE, *CONVS)
@torch.no_grad()
def test_reference_convolutions(case: Case) -> None:
    """Kernels, their cut, and outputs: causal and centered, separable or not, masked or not, cut or not."""
    meta, x = case.meta, case.given['x']
    for dtype in (torch.float64, torch.float32):
        layer = load_ckconv(case.param, crop=meta['crop'], **options(case), dtype=dtype)
        check(case, dtype, layer(x.to(dtype)))
        conv = layer if isinstance(layer, CKConv) else layer[0]
        assert conv.kernel.causal == meta['causal'] and (conv.kernel.log_width is not None) == meta['mask']
        assert isinstance(conv.kernel.network, SIREN if meta['net'] == 'SIREN' else MAGNet)
        lags = [max(meta['kernel_size'], n) for n in x.shape[2:]]
        taps = conv.kernel(lags, [1.0] * len(lags))
        if meta['causal']:
            taps = taps[:, taps.shape[1] // 2 :]
        assert list(taps.shape[1:]) == meta['taps_after_crop']
        # There the last tap acts on the latest sample.
        kernel = taps.flip(list(range(1, taps.dim()))).reshape(case.out['kernel'].shape)
        case.check('kernel', kernel) if dtype == torch.float64 else case.check_float32('kernel', kernel)


@of_kind(FILE, 'CCNN block')
@torch.no_grad()
def test_reference_blocks(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        block = load_ccnn_block(case.param, prenorm=case.meta['prenorm'], **options(case), dtype=dtype).eval()
        check(case, dtype, block(case.given['x'].to(dtype)), 2e-4)


@of_kind(FILE, 'CCNN network')
@torch.no_grad()
def test_reference_networks(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        model = s4nd.load_published(case.param, prenorm=case.meta['prenorm'], **options(case), dtype=dtype)
        assert model.published.format == FILE and len(model.stages[0].blocks) == case.meta['no_blocks']
        check(case, dtype, model(case.given['x'].to(dtype)), 2e-4)
    buffers = ('length', 'initialized', 'mean_param', 'threshold', 'running_mean', 'running_var', 'tracked', 'omega_0')
    published = sum(value.numel() for name, value in case.param.items() if not name.endswith(buffers))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@of_kind(FILE, 'published sizes')
def test_reference_initialization(case: Case) -> None:
    """Sizes, and the range, mean and deviation of each kind of weight."""
    torch.manual_seed(0)
    for name, values in case.meta['values'].items():
        if name.startswith('siren'):
            axes, hidden, outputs, omega = re.fullmatch(r'siren_(\d)d_(\d+)_(\d+)_omega(\d+)', name).groups()
            net = SIREN(int(axes), int(hidden), int(outputs), float(omega))
            assert sum(p.numel() for p in net.parameters()) == values['params']
            found = {
                'kernel_net.0': net.linears[0], 'kernel_net.2': net.linears[1], 'output_linear': net.out,
            }  # fmt: skip
            found = {
                f'{key}.{part}': getattr(layer, part) for key, layer in found.items() for part in ('weight', 'bias')
            }
        else:
            axes, width, blocks, hidden = re.fullmatch(r'(\d)d_hidden(\d+)_blocks(\d+)_kernel(\d+)', name).groups()
            variant, axes = f's4nd_ccnn_{blocks}_{width}', int(axes)
            model = timm.create_model(
                variant, spatial_dims=axes, img_size=(33,) * axes, omega_0=values['omega_0'], causal=axes == 1
            )
            assert sum(p.numel() for p in model.parameters()) == values['params_3in_10out']
            kernel = model.stages[0].blocks[0].conv.kernel
            net = kernel.network
            assert sum(p.numel() for p in net.parameters()) == values['kernel_net_params']
            assert (len(net.filters), len(net.linears)) == (values['filters'], values['hidden_maps'])
            assert kernel.log_width.exp().detach().tolist() == pytest.approx([values['mask_init']] * axes)
            found = {
                'linears.0.weight': net.linears[0].weight, 'linears.0.bias': net.linears[0].bias,
                'output_linear.bias': net.out.bias, 'channel_mixer.weight': model.stages[0].blocks[0].proj.weight,
            }  # fmt: skip
            lags = kernel([33] * axes, [1.0] * axes).shape[1:]
            taps = (lags[0] + 1) // 2 if kernel.causal else lags.numel()
            found['output_linear.weight_before_scaling'] = net.out.weight * taps**0.5
            for i, gabor in enumerate(net.filters):
                found |= {f'filters.{i}.mu': gabor.mu, f'filters.{i}.gamma': gabor.gamma}
                relative = gabor.weight / (2 * torch.pi * values['omega_0'] * gabor.gamma)
                found[f'filters.{i}.linear.weight_over_2pi_omega_gamma'] = relative
        for key, (low, high, mean, std) in values['stats_min_max_mean_std'].items():
            value = found[key].detach()
            # Both are samples: four deviations of a difference of means, and of deviations.
            order = int(key.split('.')[1]) + 1 if key.endswith('gamma') else 0
            kurtosis = 3.0 + order if order else 3.0 if key == 'channel_mixer.weight' else 1.8
            count = value.numel()
            assert abs(value.mean() - mean) <= 4 * std * (2 / count) ** 0.5 + 1e-9, (name, key)
            assert abs(value.std(correction=0) - std) <= 4 * std * ((kurtosis - 1) / (2 * count)) ** 0.5 + 1e-9, (
                name,
                key,
            )
            if kurtosis == 1.8:
                slack = 0.15 * (high - low) + 1e-9
                assert low - slack <= value.min() <= value.max() <= high + slack, (name, key)


def test_reference_is_covered() -> None:
    check_covered(FILE, {
        **{kind: {'y'} for kind in (*NETWORKS, 'CCNN block', 'CCNN network')},
        **{kind: {'y', 'kernel'} for kind in CONVS}, 'published sizes': set(),
    })  # fmt: skip


@pytest.mark.parametrize('edit', ['missing', 'left over', 'shape', 'mean'])
def test_reference_errors_name_the_key(edit: str) -> None:
    case = next((case for case in load(FILE).values() if 'out_layer.bias' in case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no CCNN network')
    weights = dict(case.param)
    name = {
        'missing': 'norm1.bias', 'left over': 'blocks.0.more', 'shape': 'linear1.bias', 'mean': 'conv1.mask_mean_param',
    }[edit]  # fmt: skip
    if edit == 'missing':
        del weights[name]
    elif edit == 'shape':
        weights['blocks.0.linear1.bias'] = torch.zeros(1)
        name = 'stages.0.blocks.0.out.bias: expected shape'
    else:
        weights[name] = torch.full((1,), 0.5)
    with pytest.raises(ValueError, match=name.replace('norm1.bias', 'norm.bias')):
        s4nd.load_published(weights)
