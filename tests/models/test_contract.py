"""What timm and its clients ask of a backbone, on a small member of every family. (Editing: test_editing.py.)"""

import copy
import fnmatch
import importlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models._manipulate import group_parameters

from s4nd.weights import FOLDER, shipped_names
from tests.models.families import REGISTERED, SMALL, build, check_training, image, size_of

CASES = list(SMALL)
SHIPPED = [FOLDER / f'{name}.safetensors' for name in shipped_names() if timm.is_model(name.split('.')[0])]
FAMILIES = ['convnext', 'vit', 'isotropic', 'ccnn batchnorm']


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_registered_under_unique_module_names() -> None:
    for module in ('s4nd_convnext', 's4nd_vit', 's4nd_isotropic'):
        assert set(timm.list_models(module=module)) <= set(REGISTERED)
        assert timm.list_models(module=module)


def test_unknown_keyword_raises(case: str) -> None:
    name, options = SMALL[case]
    with pytest.raises(TypeError, match='not_a_keyword'):
        timm.create_model(name, **options, not_a_keyword=1)


@pytest.mark.parametrize('name', sorted(set(REGISTERED) - {path.stem.split('.')[0] for path in SHIPPED}))
def test_no_weights_are_promised_but_those_that_ship(name: str) -> None:
    with pytest.raises(RuntimeError, match=r'[Pp]retrained'):
        timm.create_model(name, pretrained=True, device='meta')


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_weights_that_ship_need_no_network_and_are_small(path: Path) -> None:
    model = timm.create_model(path.stem, pretrained=True).eval()
    assert path.stat().st_size < 4e6 and path.with_suffix('.md').is_file()
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, check_dtype=False, atol=0, rtol=0)
    short = timm.create_model(path.stem.split('.')[0], pretrained=True).eval()
    frames = (model.num_frames,) if model.num_frames else ()
    for size in (16, 33):
        x = torch.randn(2, model.in_chans, *frames, size, size)
        assert torch.equal(short(x), model(x)) and model(x).isfinite().all()
    x = torch.randn(2, model.in_chans, *frames, *model.img_size)
    assert tuple(model.forward_features(x).shape[-2:]) == model.pretrained_cfg['pool_size']
    other = timm.create_model(path.stem, pretrained=True, num_classes=3, in_chans=5)
    assert other(x[:, :1].expand(-1, 5, *x.shape[2:])).shape == (2, 3)
    prepared = timm.data.resolve_model_data_config(model)
    assert prepared['input_size'] == (model.in_chans, *model.img_size) and len(prepared['mean']) == model.in_chans
    assert timm.create_model(path.stem).state_dict().keys() == model.state_dict().keys()


def test_training_and_checkpointing(case: str) -> None:
    check_training(build(case).train(), image(size_of(case)))


def test_head_surgery(case: str) -> None:
    model = build(case)
    x = image(size_of(case))
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    torch.testing.assert_close(model(x), model.forward_head(features), atol=0, rtol=0)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits, atol=0, rtol=0)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model.get_classifier().out_features == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
@pytest.mark.parametrize('family', FAMILIES)
def test_features_only(family: str, feature_cls: str) -> None:
    name, options = SMALL[family]
    size = size_of(family)
    levels = range(len(options['depths']))
    model = timm.create_model(name, **options, features_only=True, feature_cls=feature_cls, out_indices=tuple(levels))
    maps = model.eval()(image(size))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert len(maps) == len(levels) >= 3
    for level, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert level.shape == (2, channels, size // reduction, size // reduction)


def test_intermediates_and_pruning(case: str) -> None:
    model = build(case)
    x = image(size_of(case))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x), atol=0, rtol=0)
        normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(normed[-1], final, atol=0, rtol=0)
        for index, expected in enumerate(maps):
            early = model.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([index], prune_norm=True) == [index]
            for got in (early[0], pruned.forward_features(x)):
                torch.testing.assert_close(got, expected, atol=0, rtol=0)
            assert pruned.num_features == expected.shape[1]
    pruned.train()
    pruned.forward_features(x).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    with pytest.raises(ValueError, match='NCHW'):
        model.forward_intermediates(x, output_fmt='NLC')


@pytest.mark.parametrize('case', ['convnext', 'convnext s4nd everywhere', 'convnext conv2d'])
@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_output_stride(case: str, output_stride: int) -> None:
    model = build(case, output_stride=output_stride)
    maps = model.forward_intermediates(image(64), intermediates_only=True)
    expected = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [64 // level.shape[-1] for level in maps] == expected
    assert [info['reduction'] for info in model.feature_info] == expected


def test_optimizer_patterns_match(case: str) -> None:
    model = build(case)
    names = [name for name, _ in model.named_parameters()]
    for pattern in model.no_weight_decay():
        assert fnmatch.filter(names, pattern)
    spared = [name for name in names if any(fnmatch.fnmatch(name, p) for p in model.no_weight_decay())]
    assert bool(spared) == any('kernel' in name for name in names)
    ssm = ('log_dt', 'log_A_real', 'A_imag', 'B', 'P')
    assert all(name.rsplit('.', 1)[-1] in ssm or '.conv.kernel.' in name for name in spared)
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(layers) == set(names)
        assert layers['stem.' + next(n for n in names if n.startswith('stem.'))[5:]] == 0
        assert layers[names[-1]] == max(layers.values()) > len(model.stages) - 1


def test_weights_can_be_made_from_nothing(case: str) -> None:
    name, options = SMALL[case]
    model = timm.create_model(name, **options, device='meta', dtype=torch.float64)
    assert all(t.is_meta and t.dtype == torch.float64 for t in model.parameters())
    model = model.to_empty(device='cpu').eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else 0)
    model.init_weights()
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values())
    assert model(image(size_of(case)).double()).isfinite().all()


def test_bfloat16_after_a_float32_forward(case: str) -> None:
    model = build(case)
    x = image(size_of(case))
    with torch.no_grad():
        expected = model(x)
        got = model.to(torch.bfloat16)(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() < 0.2 * expected.norm()


def test_script_agrees_with_eager(case: str) -> None:
    model = build(case, scriptable=True)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for size in (size_of(case), (size_of(case) * 2, size_of(case) + 32)):
            torch.testing.assert_close(scripted(image(size)), model(image(size)), atol=1e-5, rtol=1e-4)


def test_checkpoints_without_a_head_reload(case: str) -> None:
    model = build(case, num_classes=0)
    name, options = SMALL[case]
    filter_fn = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    for wrapped in (
        dict(sorted(model.state_dict().items())),
        {'state_dict': {f'module.{key}': value for key, value in model.state_dict().items()}},
    ):
        fresh = timm.create_model(name, **{**options, 'num_classes': 0}).eval()
        fresh.load_state_dict(filter_fn(wrapped, fresh))
        x = image(size_of(case))
        torch.testing.assert_close(fresh(x), model(x), atol=0, rtol=0)
