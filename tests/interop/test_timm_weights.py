"""Weights of timm's ConvNeXt and ViT in their S4ND counterparts."""

import pytest
import timm
import torch
from torch import nn

from s4nd import load_timm_weights

CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), num_classes=7)
VIT = dict(embed_dim=16, num_classes=7)
OURS = {
    'convnext': ('s4nd_convnext_tiny', dict(CONVNEXT, img_size=64)),
    'vit': ('s4nd_vit_tiny_patch16', dict(VIT, img_size=64, d_state=4, depths=(2, 1, 1))),
}


def noisy(name: str, **options) -> nn.Module:
    """A timm model whose every parameter is noise, so that each one shows in the output."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def source(family: str) -> nn.Module:
    if family == 'convnext':
        return noisy('convnext_tiny', **CONVNEXT)
    return noisy('vit_tiny_patch16_224', **VIT, img_size=64, depth=4, num_heads=2)


def ours(family: str, **options) -> nn.Module:
    torch.manual_seed(1)
    name, base = OURS[family]
    return timm.create_model(name, **{**base, **options}).eval()


@pytest.mark.parametrize('options', [{}, dict(output_stride=16), dict(ls_init_value=None)], ids=str)
def test_a_convnext_with_its_own_mixers_computes_the_same(options: dict) -> None:
    theirs = noisy('convnext_tiny', **CONVNEXT, **options)
    model = ours('convnext', mixer='conv2d', **options)
    report = load_timm_weights(model, theirs)
    assert not report.not_taken
    assert not report.left
    for size in ((64, 64), (96, 64)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(x), theirs(x), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(model.forward_features(x), theirs.forward_features(x), atol=1e-6, rtol=1e-6)


def test_a_vit_without_its_attention_computes_the_same() -> None:
    """Both mixers switched off, no position and no token: what is left of the two models is one function."""
    theirs, model = source('vit'), ours('vit')
    load_timm_weights(model, theirs)
    with torch.no_grad():
        theirs.pos_embed.zero_()
        for block in theirs.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
        for stage in model.stages:
            for block in stage.blocks:
                block.out.proj.weight.zero_()
                block.out.proj.bias.zero_()
        x = torch.randn(2, 3, 64, 64)
        patches = theirs.forward_features(x)[:, 1:]
        torch.testing.assert_close(model.forward_features(x).flatten(2).mT, patches, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x), theirs.head(patches.mean(1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('family', OURS)
def test_every_tensor_is_accounted_for(family: str) -> None:
    theirs, model = source(family), ours(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_timm_weights(model, theirs)
    after, given = model.state_dict(), theirs.state_dict()
    assert sorted([*report.taken.values(), *report.not_taken]) == sorted(given)
    weights = [name for name in after if not name.endswith('training_grid')]
    assert sorted([*report.taken, *report.left]) == sorted(weights)
    for name, origin in report.taken.items():
        assert torch.equal(after[name], given[origin])
    for name in report.left:
        assert torch.equal(after[name], before[name])
    # Everything that is not the mixer or what belongs to it (`out`, after the mixer of a ViT).
    assert all('.mixer.' in name or '.out.' in name for name in report.left)
    reasons = set(report.not_taken.values())
    if family == 'convnext':
        assert reasons == {'replaced by S4ND'}
    else:
        assert report.not_taken['pos_embed'] == 'not needed: the kernels depend on position'
        assert report.not_taken['cls_token'] == 'the head pools the mean of the patches'
        assert report.not_taken['blocks.3.attn.qkv.weight'] == 'attention, replaced by S4ND'


def test_state_dicts_with_wrappers() -> None:
    theirs = source('convnext')
    plain, wrapped = ours('convnext'), ours('convnext')
    load_timm_weights(plain, theirs.state_dict())
    load_timm_weights(wrapped, {'state_dict': {f'module.{k}': v for k, v in theirs.state_dict().items()}})
    for name, value in plain.state_dict().items():
        assert torch.equal(value, wrapped.state_dict()[name])


@pytest.mark.parametrize('family', OURS)
def test_other_sizes_classes_and_channels(family: str) -> None:
    theirs = source(family)
    head = 'head.fc' if family == 'convnext' else 'head'
    for channels in (1, 4):
        model = ours(family, num_classes=3, in_chans=channels)
        report = load_timm_weights(model, theirs)
        assert f'{head}.weight' in report.not_taken
        assert 'its shape [7,' in report.not_taken[f'{head}.weight']
        assert report.normalization is None
        # One picture in all channels gives the same patches, as timm adapts them.
        conv = theirs.stem[0] if family == 'convnext' else theirs.patch_embed.proj
        gray = torch.randn(1, 1, 64, 64)
        if channels == 1:
            expected = conv(gray.expand(1, 3, 64, 64))
            torch.testing.assert_close(model.stem.proj(gray), expected, atol=1e-5, rtol=1e-5)
    depths, extra = ((1, 1, 3, 1), 'stages.2.blocks.2.') if family == 'convnext' else ((2, 1, 2), 'stages.2.blocks.1.')
    report = load_timm_weights(ours(family, depths=depths), theirs)
    assert {name for name in report.left if '.mlp.' in name} == {n for n in report.sizes if n.startswith(f'{extra}mlp')}
    shorter = (1, 1, 1, 1) if family == 'convnext' else (1, 1, 1)
    report = load_timm_weights(ours(family, depths=shorter), theirs)
    assert 'no such part' in report.not_taken.values()
    report = load_timm_weights(ours(family, stem='s4nd'), theirs)
    assert 'stem.proj.weight' in report.left
    assert any(why.startswith('its shape') for why in report.not_taken.values())


def test_normalization_follows_the_weights() -> None:
    theirs, model = source('vit'), ours('vit')
    theirs.pretrained_cfg = {**theirs.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6)}
    registered = timm.get_pretrained_cfg('s4nd_vit_tiny_patch16').mean
    report = load_timm_weights(model, theirs)
    assert report.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert timm.data.resolve_data_config(model=model)['mean'] == (0.1, 0.2, 0.3)
    assert timm.get_pretrained_cfg('s4nd_vit_tiny_patch16').mean == registered


def test_the_report_reads_well() -> None:
    text = str(load_timm_weights(ours('vit'), source('vit')))
    assert '4 x blocks.*.attn.qkv.weight  (attention, replaced by S4ND)' in text
    assert '4 x stages.*.blocks.*.mlp.mlp.fc1.weight' in text
    assert text.startswith('taken: 38 tensors, ')
    assert 'left as initialized: ' in text
    assert len(text.splitlines()) < 45


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match='nothing agrees: expected weights of a timm ViT'):
        load_timm_weights(ours('vit'), timm.create_model('resnet10t', num_classes=7))
    with pytest.raises(ValueError, match='expected an S4NDConvNeXt or S4NDViT'):
        load_timm_weights(timm.create_model('s4nd_isotropic_mini'), source('vit'))
    with pytest.raises(RuntimeError, match='Unknown model'):
        load_timm_weights(ours('vit'), 'no_such_model')
