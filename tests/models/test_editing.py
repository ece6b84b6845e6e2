"""Changing a model: heads, pruning, channels, drop path, layer decay, precision. What timm's tests with fixed model
names ask, of every family."""

import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import create_optimizer_v2

from tests.models.families import SMALL, build, image, size_of

FAMILIES = ['convnext', 'vit', 'isotropic', 'ccnn batchnorm']
CASES = list(SMALL)


@pytest.mark.parametrize('case', CASES)
def test_a_new_classifier_keeps_the_pooling(case: str) -> None:
    model = build(case, global_pool='max')
    features = model.forward_features(image(size_of(case)))
    expected = model.forward_head(features, pre_logits=True)
    model.reset_classifier(7)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected, atol=0, rtol=0)
    assert model.forward_head(features).shape == (2, 7)
    model.reset_classifier(7, 'avg')
    assert not torch.allclose(model.forward_head(features, pre_logits=True), expected)


@pytest.mark.parametrize('case', CASES)
def test_a_new_classifier_keeps_device_dtype_and_mode(case: str) -> None:
    model = build(case).train().to('meta', torch.float64)
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.get_classifier().parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize('case', CASES)
def test_frozen_parameters_stay_frozen(case: str) -> None:
    model = build(case).requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(0, '')
    model.set_input_size(img_size=2 * size_of(case))
    model.init_weights()
    assert not [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize('family', FAMILIES)
def test_head_hidden_size_is_the_width_before_the_classifier(family: str) -> None:
    model = build(family, num_classes=0)

    def check(num_classes: int) -> None:
        features = model.forward_features(image(size_of(family)))
        assert model.forward_head(features, pre_logits=True).shape[1] == model.head_hidden_size
        assert model.forward_head(features).shape[1] == (num_classes or model.head_hidden_size)

    check(0)
    model.reset_classifier(7, 'avg')
    check(7)
    if family == 'convnext':
        # Its norm comes after the pooling and has the width of one.
        with pytest.raises(AssertionError):
            model.reset_classifier(7, 'catavgmax')
        with pytest.raises(AssertionError):
            build(family, global_pool='catavgmax')
    else:
        model.reset_classifier(7, 'catavgmax')
        check(7)
    index = len(model.feature_info) - 2
    width = model.feature_info[index]['num_chs']
    model.prune_intermediate_layers([index], prune_norm=True)
    model.reset_classifier(7, 'avg')
    check(7)
    assert model.head_hidden_size == width


@pytest.mark.parametrize('case', CASES)
def test_pruning_leaves_no_unused_parameter(case: str) -> None:
    model = build(case, drop_rate=0.5)
    x = image(size_of(case))
    levels = len(model.feature_info)
    for indices, prune_norm in (([0], False), ([levels - 1], False), (list(range(levels)), True)):
        pruned = copy.deepcopy(model).train()
        take = pruned.prune_intermediate_layers(indices, prune_norm=prune_norm)
        maps = pruned.forward_intermediates(x, indices=take, norm=not prune_norm, intermediates_only=True)
        sum(level.square().sum() for level in maps).backward()
        assert not [name for name, p in pruned.named_parameters() if p.grad is None]
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers(indices, prune_norm=prune_norm)
        with torch.no_grad():
            assert torch.equal(pruned(x), pruned(x))


@pytest.mark.parametrize('family', FAMILIES)
def test_features_with_checkpointing_have_the_same_gradients(family: str) -> None:
    name, options = SMALL[family]
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, **options, features_only=True).train()
        model.set_grad_checkpointing(enable)
        sum(level.square().mean() for level in model(image(size_of(family)))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain)


@pytest.mark.parametrize('output_stride', [8, 16])
def test_features_at_a_smaller_output_stride(output_stride: int) -> None:
    name, options = SMALL['convnext']
    model = timm.create_model(name, **options, features_only=True, output_stride=output_stride).eval()
    maps = model(image((64, 96)))
    assert max(model.feature_info.reduction()) == output_stride
    assert [level.shape[-2:] for level in maps] == [(64 // r, 96 // r) for r in model.feature_info.reduction()]


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('in_chans', [1, 4])
def test_other_numbers_of_channels(case: str, in_chans: int) -> None:
    model = build(case, in_chans=in_chans).train()
    assert model.in_chans == in_chans
    model(image(size_of(case), channels=in_chans)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with pytest.raises(ValueError, match=rf'expected images \(batch, {in_chans}, height, width\)'):
        model(image(size_of(case)))
    name, options = SMALL[case]
    features = timm.create_model(name, **{**options, 'in_chans': in_chans}, features_only=True)
    assert len(features(image(size_of(case), channels=in_chans))) >= 3


@pytest.mark.parametrize('case', CASES)
def test_drop_path_skips_samples_in_training_only(case: str) -> None:
    model, plain = build(case, drop_path_rate=0.5), build(case)
    x = image(size_of(case))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=0, rtol=0)
        model.train()
        # BatchNorm would see the other samples.
        if 'batchnorm' not in case:
            many = model(x[:1].expand(64, -1, -1, -1))
            assert len(many.unique(dim=0)) > 1
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)


def test_isotropic_dropout_is_tied_over_positions() -> None:
    """As published, whole channels are lost after the GELU and after the GLU, in training only."""
    model, plain = build('isotropic', proj_drop_rate=0.5), build('isotropic')
    x = image(size_of('isotropic'))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=0, rtol=0)
        out = model.stages[0].blocks[0].out.train()
        y = out(torch.rand(8, out.proj.in_channels, 5, 6)).flatten(2)
        lost = y == 0
        assert torch.equal(lost.all(-1), lost.any(-1)) and 0 < lost[..., 0].float().mean() < 1
        out.proj = torch.nn.Identity()
        out.gated = False
        rows = out(torch.ones(400, 1, 2, 2)).flatten(1)
        assert 0.15 < (rows > 0).all(1).float().mean() < 0.35  # kept twice
    video = timm.create_model('s4nd_isotropic3d_mini', img_size=16, num_frames=4, dim=8, d_state=4, proj_drop_rate=0.5)
    assert video.train()(torch.randn(2, 3, 4, 16, 16)).isfinite().all()


@pytest.mark.parametrize('case', CASES)
def test_layer_decay(case: str) -> None:
    """Every parameter in one group; the deeper, the larger its rate; no decay on state-space parameters and norms."""
    model = build(case)
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    names = dict(model.named_parameters())
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(names) == len(scale)

    def scales(prefix: str) -> set[float]:
        return {scale[id(p)] for name, p in names.items() if name.startswith(prefix)}

    blocks = [f'stages.{i}.blocks.{j}.' for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]
    for shallow, deep in zip(['stem.', *blocks], [*blocks, 'head.'], strict=True):
        assert max(scales(shallow)) < min(scales(deep))
    assert scales('head.') == {1.0}
    assert scales('stem.') == {min(scale.values())}
    for name, p in names.items():
        ssm = name.rsplit('.', 1)[-1] in ('log_dt', 'log_A_real', 'A_imag', 'B', 'P') or '.conv.kernel.' in name
        assert decay[id(p)] == (0.0 if ssm or p.dim() < 2 else 0.05)
    optimizer.zero_grad()
    model(image(size_of(case))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize('case', CASES)
def test_bfloat16_training_step(case: str) -> None:
    model = build(case).to(torch.bfloat16).train()
    y = model(image(size_of(case)).bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    maps = model.forward_intermediates(image(size_of(case)).bfloat16(), intermediates_only=True)
    assert all(level.dtype == torch.bfloat16 for level in maps)


@pytest.mark.parametrize('case', CASES)
def test_weights_made_from_nothing_are_those_of_a_constructor(case: str) -> None:
    name, options = SMALL[case]
    model = timm.create_model(name, **options, device='meta').to_empty(device='cpu')
    torch.manual_seed(0)
    model.init_weights()
    fresh = timm.create_model(name, **options)
    for (key, got), expected in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        drawn = key.endswith(('.weight', '.C', '.D', '.log_dt', '.P')) or '.conv.kernel.' in key
        if drawn and (expected.dim() == 0 or expected.std() != 0):
            # Of the same distribution.
            assert got.numel() < 64 or float(got.std() / expected.std()) == pytest.approx(1.0, abs=0.4), key
        else:
            torch.testing.assert_close(got, expected, atol=0, rtol=0, msg=key)
