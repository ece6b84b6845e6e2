"""DiffWave-SaShiMi against its released code: outputs, blocks, kernels, features, vocoder, sizes."""

import pytest
import torch

import s4nd
from audio.generation.sampling import Sampling, sample_diffusion
from audio.models.denoiser import DiffusionSaShiMi
from s4nd.diffusion import step_features
from tests.reference.cases import Case, check_covered, load, of_kind

FILE = 'diffwave_sashimi'
KIND = 'DiffWave-SaShiMi'


def model_of(case: Case, dtype: torch.dtype) -> DiffusionSaShiMi:
    return s4nd.load_published(case.param, length=case.meta['L'], dtype=dtype)


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_outputs(case: Case) -> None:
    """The whole network, at the length of training, below and above it."""
    for dtype in (torch.float64, torch.float32):
        model, step = model_of(case, dtype), case.given['step'][:, 0].to(dtype)
        mel = case.given['mel'].to(dtype) if 'mel' in case.given else None
        for name in ('y', 'y_short', 'y_long'):
            if name in case.out:
                y = model(case.given[name.replace('y', 'x')][:, 0].to(dtype), step, mel=mel)[:, None]
                case.check(name, y) if dtype == torch.float64 else case.check_float32(name, y, 2e-4)


@of_kind(FILE, KIND)
def test_reference_features(case: Case) -> None:
    case.check('features', step_features(case.given['step'][:, 0]))


@of_kind(FILE, KIND)
@torch.no_grad()
def test_reference_first_block(case: Case) -> None:
    """The first block alone: an S4 block and a feed-forward with one embedding, and the kernel of both directions."""
    if 'block_y' not in case.out:
        assert 'block_x' not in case.given and 'block_kernel' not in case.out
        return
    block = model_of(case, torch.float64).backbone.levels[0].down[0]
    y = block(case.given['block_x'].transpose(1, 2), case.given['block_embedding'])
    case.check('block_y', y.transpose(1, 2))
    case.check('block_kernel', block.s4.s4.kernels[0](case.out['block_kernel'].shape[-1]))


@of_kind(FILE, KIND)
def test_reference_parameters(case: Case) -> None:
    """As many as released, under weight norms too, and the length that kernels have stored is found."""
    model = s4nd.load_published(case.param)
    stored = ('kernel.L',)
    published = sum(value.numel() for name, value in case.param.items() if not name.endswith(stored))
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert model.published.format == FILE
    layer = model.backbone.levels[0].up[0].s4.s4
    assert layer._l_max == [case.meta['L']]


@of_kind(FILE, KIND)
def test_reference_generation(case: Case) -> None:
    """A loaded model draws waveforms."""
    model = model_of(case, torch.float32)
    mel = case.given['mel'].float()[:1] if 'mel' in case.given else None
    drawn = sample_diffusion(model, Sampling(length=case.meta['L'], steps=2, mel=mel))
    assert drawn.shape == (1, case.meta['L']) and drawn.isfinite().all() and drawn.std() > 0


@of_kind(FILE, 'parameters of the released configurations')
def test_reference_sizes(case: Case) -> None:
    for name, count in case.meta['values'].items():
        width, layers, condition = name.split('_')
        with torch.device('meta'):
            model = DiffusionSaShiMi(
                d_model=int(width[1:]), n_layers=int(layers[1:]), mel=(16, 16) if condition == 'mel' else None
            )
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name


def test_reference_is_covered() -> None:
    outputs = {'y', 'y_short', 'y_long', 'features', 'block_y', 'block_kernel'}
    check_covered(FILE, {KIND: outputs, 'parameters of the released configurations': set()})


@pytest.mark.parametrize('edit', ['missing', 'left over', 'shape'])
def test_reference_errors_name_the_key(edit: str) -> None:
    case = next((case for case in load(FILE).values() if case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no DiffWave-SaShiMi')
    weights = dict(case.param)
    name = {'missing': 'norm.s', 'left over': 'c_layers.0.more', 'shape': 'backbone.norm.m'}[edit]
    if edit == 'missing':
        del weights[name]
    else:
        weights[name.removeprefix('backbone.')] = torch.zeros(2)
    with pytest.raises(ValueError, match=name):
        s4nd.load_published(weights)
