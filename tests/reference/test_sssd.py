"""SSSD-S4 against its released code: networks, blocks, S4 layers, schedule, masks, training and sampling."""

import pytest
import torch
from torch import Tensor

import s4nd
from s4nd.data.series.masks import blackout, missing_segments, parse_mask, random_missing
from s4nd.diffusion import Diffusion, step_features
from s4nd.models.sssd import SSSDS4
from tests.reference.cases import Case, check_covered, load, of_kind

FILE = 'sssd'
NET, SCHEDULE, MASK = 'SSSD-S4 imputer', 'diffusion schedule', 'mask of one series'
TRAINING, SAMPLING = 'noised network input and loss', '4-step sampler'


def model_of(case: Case, dtype: torch.dtype) -> SSSDS4:
    model = s4nd.load_published(case.param, l_max=case.meta['s4_lmax'], dtype=dtype)
    assert model.published.format == FILE
    return model


@of_kind(FILE, NET)
@torch.no_grad()
def test_reference_outputs(case: Case) -> None:
    given = case.given
    for dtype in (torch.float64, torch.float32):
        model = model_of(case, dtype)
        noise, values, mask = (given[name].to(dtype) for name in ('noise', 'conditional', 'mask'))
        y = model(noise, given['step'][:, 0], values, mask.bool())
        block = model.blocks[0]
        parts = [given[name].to(dtype).transpose(1, 2) for name in ('block_x', 'block_cond')]
        res, skip = block(*parts, given['block_embedding'].to(dtype))
        s4_y = block.s4_1(given['s4_x'].to(dtype).transpose(1, 2)).transpose(1, 2)
        kernel = block.s4_1.s4.kernels[0](given['s4_x'].shape[-1])
        found = {'y': y, 'block_res': res.transpose(1, 2), 'block_skip': skip.transpose(1, 2), 's4_y': s4_y}
        for name, value in {**found, 's4_kernel': kernel}.items():
            case.check(name, value) if dtype == torch.float64 else case.check_float32(name, value, 2e-4)
    case.check('features', step_features(given['step'][:, 0], case.meta['features']))


@of_kind(FILE, SCHEDULE)
def test_reference_schedule(case: Case) -> None:
    """Ours counts levels 0 … T, of which level t + 1 is their index t."""
    meta = case.meta
    diffusion = Diffusion(meta['T'], meta['beta_0'], meta['beta_T'])
    bar = diffusion.alpha_bar
    alpha = bar[1:] / bar[:-1]
    case.check('Alpha_bar', bar[1:])
    case.check('Alpha', alpha)
    case.check('Beta', 1 - alpha)
    sigma = ((1 - bar[:-1]) / (1 - bar[1:]) * (1 - alpha)).sqrt()
    sigma[0] = (1 - alpha[0]).sqrt()  # there too, but no noise is added at the last step
    case.check('Sigma', sigma)


@of_kind(FILE, MASK)
def test_reference_masks(case: Case) -> None:
    """The structure of a draw: theirs and ours, which are (channels, time)."""
    theirs, k = case.out['masks'].bool().transpose(1, 2), case.meta['k']
    shape = tuple(theirs.shape)
    kind = case.name.split('_')[1]
    random = torch.Generator().manual_seed(0)
    if kind == 'rm':
        ours = random_missing(shape, random, share=k / shape[2])
        assert (theirs.sum(-1) == shape[2] - k).all() and (ours.sum(-1) == shape[2] - k).all()
        return
    segments = torch.arange(shape[2]) // k
    whole = torch.stack([segments != i for i in range(int(segments.max()) + 1)])
    ours = {'mnr': missing_segments, 'bm': blackout}[kind](shape, random, length=k)
    for draws in (theirs, ours) if kind == 'mnr' else (theirs,):
        assert all(any(torch.equal(row, segment) for segment in whole) for row in draws.flatten(0, 1))
    if kind == 'bm':  # ours may begin at any sample
        assert (theirs == theirs[:, :1]).all() and (ours == ours[:, :1]).all()
        assert ((~ours).sum(-1) == k).all()
    else:
        assert not (ours == ours[:, :1]).all()
        assert torch.equal(parse_mask(f'mnr:{k}')(shape, torch.Generator().manual_seed(0)), ours)


def given_schedule(alpha_bar: Tensor) -> Diffusion:
    diffusion = Diffusion(len(alpha_bar))
    diffusion.__dict__['alpha_bar'] = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])
    return diffusion


@of_kind(FILE, TRAINING)
def test_reference_training_input(case: Case) -> None:
    """What the released training gives the network, from our noising; and the loss of a network that gives zero."""
    given, only_missing = case.given, bool(case.meta['only_generate_missing'])
    mask = given['mask'].bool()
    noise = torch.where(mask, given['audio'], given['noise']) if only_missing else given['noise']
    x_t = given_schedule(given['Alpha_bar']).noised(given['audio'], given['step'] + 1, noise)
    case.check('x_t', x_t)
    case.check('loss', (given['noise'][~mask] if only_missing else noise).square().mean())


@of_kind(FILE, SAMPLING)
def test_reference_sampling(case: Case) -> None:
    given, mask = case.given, case.given['mask'].bool()
    clean, noises = given['conditional'], given['noise_initial_then_per_step']
    diffusion = given_schedule(given['Alpha_bar'])
    x = noises[0]
    for done, t in enumerate(range(diffusion.steps, 0, -1), 1):
        x = torch.where(mask, clean, x) if case.meta['only_generate_missing'] else x
        predicted = 0.5 * torch.tanh(x) + 0.1 * (t - 1) + 0.2 * clean * given['mask']
        x = diffusion.denoised(x, predicted, t, t - 1, noises[done] if t > 1 else None)
    case.check('x', x)


@of_kind(FILE, 'trainable parameters')
def test_reference_sizes(case: Case) -> None:
    """What is trained: of S4 only C, D and the output map."""

    def trained(layers: int) -> int:
        with torch.device('meta'):
            model = SSSDS4(14, 256, layers)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    values = case.meta['values']
    assert trained(2) == values['in14_res256_layers2'] and trained(36) == values['in14_res256_layers36']
    assert trained(3) - trained(2) == values['per_residual_block']


def test_reference_is_covered() -> None:
    check_covered(FILE, {
        NET: {'y', 'features', 'block_res', 'block_skip', 's4_y', 's4_kernel'},
        SCHEDULE: {'Beta', 'Alpha', 'Alpha_bar', 'Sigma'}, MASK: {'masks'}, TRAINING: {'x_t', 'loss'}, SAMPLING: {'x'},
        'trainable parameters': set(),
    })  # fmt: skip


@pytest.mark.parametrize('edit', ['missing', 'left over', 'shape', 'Q'])
def test_reference_errors_name_the_key(edit: str) -> None:
    case = next((case for case in load(FILE).values() if case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no SSSD network')
    weights = dict(case.param)
    kernel = 'residual_layer.residual_blocks.0.S41.s4_layer.kernel.kernel.'
    name = {
        'missing': f'{kernel}B', 'left over': f'{kernel}more', 'shape': 'final_conv.2.conv.weight', 'Q': f'{kernel}Q',
    }[edit]  # fmt: skip
    if edit == 'missing':
        del weights[name]
    else:
        weights[name] = torch.zeros(1, 12, 4, 2)
    with pytest.raises(ValueError, match='leave.2.weight: expected shape' if edit == 'shape' else name):
        s4nd.load_published(weights)
