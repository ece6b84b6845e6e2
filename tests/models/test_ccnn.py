"""CCNN: the same network on one, two and three axes. (As an image model it is in every other test of this folder.)"""

import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.models import save_for_hf
from torch import Tensor

from audio.io import write_audio
from s4nd import train
from s4nd.layers import CKConv
from s4nd.models.ccnn import CCNN, CCNNBlock

CONFIGS = Path(__file__).parents[2] / 'configs' / 'ccnn'
GRIDS = {1: (40,), 2: (8, 10), 3: (3, 4, 6)}
AXES = pytest.mark.parametrize('axes', GRIDS)


def make(axes: int, **options: object) -> CCNN:
    torch.manual_seed(0)
    options = {'dim': 6, 'hidden': 4, 'num_classes': 5, 'img_size': GRIDS[axes], **options}
    return timm.create_model('s4nd_ccnn_mini', spatial_dims=axes, **options).eval()


def signal(axes: int, *size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *(size or GRIDS[axes]), generator=torch.Generator().manual_seed(1))


def test_the_parameters_are_those_of_an_image_but_for_the_coordinates() -> None:
    shapes = {axes: {name: list(p.shape) for name, p in make(axes).named_parameters()} for axes in GRIDS}
    assert shapes[1].keys() == shapes[2].keys() == shapes[3].keys()
    for name, shape in shapes[2].items():
        if name.endswith(('.mu', '.gamma', *(f'.filters.{i}.weight' for i in range(4)))):
            assert [shapes[axes][name] for axes in GRIDS] == [[4, 1], [4, 2], [4, 3]]
        elif name.endswith('log_width'):
            assert [shapes[axes][name] for axes in GRIDS] == [[1], [2], [3]]
        else:
            assert shapes[1][name] == shape == shapes[3][name]


@pytest.mark.parametrize(
    ('name', 'counts'), [('s4nd_ccnn_4_140', (199117, 201042)), ('s4nd_ccnn_6_380', (1993983, 1999366))]
)
def test_published_sizes(name: str, counts: tuple[int, int]) -> None:
    for axes, published in enumerate(counts, 1):
        model = timm.create_model(name, spatial_dims=axes, img_size=GRIDS[axes], device='meta')
        assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize('norm', ['batch', 'layer'])
@pytest.mark.parametrize('prenorm', [True, False])
@torch.no_grad()
def test_norms_before_and_after(norm: str, prenorm: bool) -> None:
    model, x = make(2, norm=norm, prenorm=prenorm), signal(2)
    assert model(x).isfinite().all()
    block, x = model.stages[0].blocks[0], signal(2, channels=6)
    after = block.norm if not prenorm else torch.nn.Identity()
    y = block.conv(block.norm(x) if prenorm else x)
    torch.testing.assert_close(block(x), after(x + F.gelu(block.out(F.gelu(block.proj(y))))))


def test_dropout_is_of_whole_channels_and_of_training() -> None:
    block, x = CCNNBlock(64, (8, 8), {'hidden': 4}, proj_drop=0.5), torch.ones(1, 64, 8, 8)
    dropped = block.drop(x)
    assert set(dropped.flatten(2).sum(-1).flatten().tolist()) == {0.0, 128.0}
    model = make(2, proj_drop_rate=0.5)
    y = model(signal(2))
    assert torch.equal(model(signal(2)), y) and not torch.equal(model.train()(signal(2)), y)


@AXES
def test_a_block_is_what_it_says(axes: int) -> None:
    """norm -> convolution -> linear -> GELU -> linear -> GELU, added to its input."""
    torch.manual_seed(0)
    block = CCNNBlock(4, GRIDS[axes], {'hidden': 4}).eval()
    block.norm.running_mean.uniform_()
    x = signal(axes, channels=4)
    mean = block.norm.running_mean.reshape(-1, *[1] * axes)
    y = block.conv((x - mean) / (1 + 1e-5) ** 0.5)
    for linear in (block.proj, block.out):
        y = F.gelu(torch.einsum('oi,bi...->bo...', linear.weight, y) + linear.bias.reshape(-1, *[1] * axes))
    torch.testing.assert_close(block(x), x + y, atol=1e-5, rtol=1e-5)


@AXES
def test_trains_on_any_number_of_axes(axes: int) -> None:
    """Every parameter learns, with and without checkpointing; the head is timm's; TorchScript agrees."""
    model, x = make(axes, drop_path_rate=0.1), signal(axes)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), atol=1e-5, rtol=1e-5)
    model.requires_grad_(True).train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
    model.eval().reset_classifier(0)
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), features.flatten(2).mean(-1))
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(7, 'max')
    torch.testing.assert_close(model(x), model.get_classifier()(features.flatten(2).amax(-1)))


@AXES
def test_features_of_any_number_of_axes(axes: int) -> None:
    model, x = make(axes), signal(axes)
    final, maps = model.forward_intermediates(x)
    assert [level.shape for level in maps] == [(2, 6, *GRIDS[axes])] * 3
    torch.testing.assert_close(final, model.forward_features(x), atol=0, rtol=0)
    levels = timm.create_model('s4nd_ccnn_mini', spatial_dims=axes, img_size=GRIDS[axes], dim=6, features_only=True)
    assert [level.shape for level in levels(x)] == [level.shape for level in maps]


@AXES
def test_saved_and_loaded_before_and_after_resizing(axes: int, tmp_path: Path) -> None:
    model, x = make(axes, in_chans=2), signal(axes, channels=2)
    finer = tuple(2 * n + 1 for n in GRIDS[axes])
    for folder, size in (('built', None), ('again', finer)):
        if size is not None:
            before = model(x)
            model.set_input_size(img_size=size)
            assert not torch.allclose(model(x), before, rtol=1e-3)
        save_for_hf(model, tmp_path / folder, safe_serialization=True)
        loaded = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True).eval()
        assert loaded.img_size == model.img_size == (size or GRIDS[axes])
        with torch.no_grad():
            for shape in (GRIDS[axes], finer):
                assert torch.equal(loaded(signal(axes, *shape, channels=2)), model(signal(axes, *shape, channels=2)))
    other = timm.create_model(f'local-dir:{tmp_path / "again"}', pretrained=False, img_size=GRIDS[axes])
    assert other.img_size == GRIDS[axes]


@AXES
@torch.no_grad()
def test_another_resolution_is_the_same_scene(axes: int) -> None:
    """A slow wave at twice as many samples per axis gives nearly the same answer; another wave does not."""
    grid = {1: (64,), 2: (24, 20), 3: (12, 14, 10)}[axes]
    model = make(axes, img_size=grid, omega_0=0.025)
    for layer in model.modules():
        if isinstance(layer, CKConv):
            layer.kernel.log_width.fill_(math.log(0.5))

    def wave(factor: int, phase: float) -> Tensor:
        x = torch.ones(1, 3, *[1] * axes)
        for axis, n in enumerate(grid):
            t = (torch.arange(n * factor) + 0.5) / (n * factor)
            x = x * torch.sin(5 * t + phase + axis).reshape(-1, *[1] * (axes - 1 - axis))
        return x

    base = model(wave(1, 0.0))
    assert (model(wave(2, 0.0)) - base).norm() < 0.1 * (model(wave(1, 1.0)) - base).norm()


@pytest.mark.parametrize('axes', [0, 4, '2', None])
def test_numbers_of_axes_that_there_are_not(axes: object) -> None:
    with pytest.raises(ValueError, match='spatial_dims must be 1, 2 or 3, got'):
        CCNN(spatial_dims=axes)


@pytest.mark.parametrize(('axes', 'shape'), [(1, (2, 3, 8, 8)), (1, (2, 4, 8)), (1, (2, 3, 0)), (3, (2, 3, 8, 8))])
def test_input_of_another_rank(axes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r'expected (signals|clips) \(batch, 3, .*\) with 1 pixels or more per side, got \['
    ) as error:
        make(axes)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(('axes', 'size'), [(1, (8, 8)), (1, 0), (3, (8, 8)), (3, (8, 8, -1)), (2, (8,)), (1, 1.5)])
def test_sizes_that_do_not_fit(axes: int, size: object) -> None:
    with pytest.raises(ValueError, match=r'must be one positive integer|Expected a positive image size'):
        make(axes, img_size=size)
    with pytest.raises(ValueError, match='img_size must be one positive integer'):
        make(axes).set_input_size(size)


@pytest.mark.parametrize('size', [(1,), (8, 1), (4, 1, 4)])
def test_an_axis_too_short_for_a_coordinate_network(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="'ckconv' needs an axis of at least 2 samples, got length 1"):
        make(len(size), img_size=size)
    assert make(len(size))(signal(len(size), *size)).isfinite().all()  # as another sampling, it runs


def test_the_configurations_differ_by_shape_only() -> None:
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob('*.yaml'))}
    assert list(configs) == ['cifar10', 'cifar10_sequential', 'digits']
    assert [config['model'].pop('args') for config in configs.values()] == [{'spatial_dims': n} for n in (2, 1, 1)]
    for config in configs.values():
        config.pop('task', None), config.pop('data')
        config['eval'].pop('sizes', None), config['eval'].pop('sample_rates', None)
    assert configs['cifar10'] == configs['cifar10_sequential'] == configs['digits']


SMALL_RUN = ['max_steps=2', 'eval.limit=8', 'model.args.dim=4', 'model.args.hidden=4', 'device=cpu']


@pytest.mark.parametrize('name', ['cifar10', 'cifar10_sequential'])
def test_the_configurations_of_images_run(name: str, tmp_path: Path) -> None:
    data = ['data.kind=shapes', 'data.size=8', 'data.batch_size=4', 'data.train_count=8', 'data.test_count=8']
    path = str(CONFIGS / f'{name}.yaml')
    report = train.main([path, f'out={tmp_path / name}', 'eval.sizes=[8,12]', *data, *SMALL_RUN])
    assert {'accuracy@8', 'accuracy@12'} <= set(report['results'])
    again = train.main(
        [path, 'eval_only=true', f'checkpoint={tmp_path / name / "last.safetensors"}', *data, *SMALL_RUN]
    )
    assert again['results']['accuracy@8'] == report['results']['accuracy@8']


def test_the_configuration_of_sound_runs(tmp_path: Path) -> None:
    for label in 'ab':
        for index in range(12):
            write_audio(tmp_path / f'{label}_x_{index}.wav', torch.randn(1, 400).clamp(-1, 1), 4000)
    data = [f'data.root={tmp_path}', 'data.clip_samples=60', 'data.batch_size=4', 'eval.sample_rates=[2000,4000]']
    report = train.main([str(CONFIGS / 'digits.yaml'), f'out={tmp_path / "run"}', *data, *SMALL_RUN])
    assert {'accuracy@2000', 'accuracy@4000'} <= set(report['results'])
    with pytest.raises(ValueError, match='a classifier needs classes'):
        train.main([str(CONFIGS / 'digits.yaml'), f'out={tmp_path / "no"}', 'data.labels=none', *data, *SMALL_RUN])
