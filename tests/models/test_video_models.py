"""Models of clips: the direct definition, causality, frame rate and size, timm's contract, bad input."""

import copy
import itertools
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf

from s4nd import S4ND
from s4nd.models._clip_conv import I3DConv, S3DConv
from s4nd.models._mixers import ClipS4ND
from s4nd.models.s4nd_convnext import ConvNeXtBlock
from tests import oracles
from tests.models.families import CLIPS, build, check_training, clip

CASES = list(CLIPS)
DOUBLE = torch.float64


def count(name: str, **options) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta', **options).parameters())


def test_published_sizes() -> None:
    """ConvNeXt-T, S4ND in the blocks only, 51 classes, two frames a patch (papers: HMDB-51)."""
    hmdb = dict(num_classes=51, num_frames=30, time_patch=2, kernel='s4')
    recipe = dict(init=('hippo', 'fout', 'fout'), dt_min=(2.0, 0.1, 0.1), dt_max=(2.0, 1.0, 1.0), time_tied=False)
    assert count('s4nd_convnext3d_tiny', **hmdb, **recipe) == 31_381_587
    assert count('s4nd_convnext3d_tiny', **hmdb, init='fout') == 30_113_235
    # The published baselines have 28.5 M and 27.9 M.
    del hmdb['kernel']
    assert count('s4nd_convnext3d_tiny', **hmdb, mixer='i3d') == 28_513_107
    assert count('s4nd_convnext3d_tiny', **hmdb, mixer='s3d') == 27_883_827


# -- The mixers against the definition


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('padding', ['zeros', 'replicate'])
def test_a_block_equals_its_definition(causal: bool, padding: str) -> None:
    torch.manual_seed(0)
    mixer = ClipS4ND(3, (4, 3, 2), d_state=4, causal=causal, time_padding=padding, dtype=DOUBLE)
    block = ConvNeXtBlock(3, mixer, layer_scale=1.0, dtype=DOUBLE)
    x = torch.randn(2, 3, 4, 3, 2, dtype=DOUBLE)
    lags = [mixer.reach(4, 1.0) if padding == 'replicate' else 4, 3, 2]
    taps, centers = mixer.all_taps(lags, [1.0] * 3)
    # Held at both ends for as long as the kernel reaches, x is convolved with zeros beyond that.
    reach = taps[0].shape[-1] if padding == 'replicate' else 0
    held = x[:, :, torch.arange(-reach, 4 + reach).clamp(0, 3)]
    y = oracles.direct_conv(held, oracles.full_kernel(taps), centers)[:, :, reach : reach + 4]
    y = (y + mixer.D.reshape(-1, 1, 1, 1) * x).movedim(1, -1)
    mlp = block.mlp.mlp
    y = F.linear(F.gelu(F.linear(F.layer_norm(y, [3], eps=1e-6), mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight)
    expected = x + (y + mlp.fc2.bias).movedim(-1, 1)
    torch.testing.assert_close(block(x), expected, atol=1e-11, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize('padding', ['zeros', 'replicate'])
@pytest.mark.parametrize(('time_size', 'causal'), [(3, False), (3, True), (2, False), (1, False)])
def test_convolutions_equal_conv3d(time_size: int, causal: bool, padding: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6, 7, dtype=DOUBLE)
    before = time_size - 1 if causal else time_size // 2
    held = x[:, :, torch.arange(-before, 5 + time_size - 1 - before).clamp(0, 4)]
    if padding == 'zeros':
        held[:, :, :before], held[:, :, before + 5 :] = 0, 0
    options = dict(kernel_size=3, time_kernel_size=time_size, causal=causal, time_padding=padding)
    full = I3DConv(4, **options, dtype=DOUBLE)
    conv = full.conv
    expected = F.conv3d(F.pad(held, (1, 1, 1, 1)), conv.weight, conv.bias, groups=4)
    torch.testing.assert_close(full(x), expected)
    parts = S3DConv(4, **options, dtype=DOUBLE)
    assert (parts.time.weight == 1 / time_size).all()
    torch.nn.init.normal_(parts.time.weight)
    frames = F.conv3d(F.pad(held, (1, 1, 1, 1)), parts.conv.weight.unsqueeze(2), parts.conv.bias, groups=4)
    if padding == 'zeros':  # what is beyond the clip has no bias either
        frames[:, :, :before], frames[:, :, before + 5 :] = 0, 0
    weight = parts.time.weight.permute(1, 2, 0, 3).unsqueeze(-1)
    torch.testing.assert_close(parts(x), F.conv3d(frames, weight, groups=4))


# -- Time


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('causal', [False, True])
def test_no_frame_sees_a_later_one(case: str, causal: bool) -> None:
    model = build(case, causal=causal)
    x = clip(case).requires_grad_()
    features = model.forward_features(x)
    patch = model.stem.time_patch
    assert features.shape[2] == 6 // patch
    (gradient,) = torch.autograd.grad(features[:, :, 1].square().sum(), x)
    seen = gradient.abs().amax((0, 1, 3, 4)) > 0
    assert seen[: 2 * patch].all()
    assert seen[2 * patch :].any() != causal


def scene(frames: int, size: int) -> torch.Tensor:
    """A smooth moving scene (2, 3, frames, size, size), sampled at the centers of its cells."""
    generator = torch.Generator().manual_seed(3)
    amplitude, phase = torch.randn(2, 3, 4, 4, 4, generator=generator), torch.rand(3, 4, generator=generator)
    waves = []
    for n, offset in zip((frames, size, size), phase, strict=True):
        angle = torch.arange(4)[:, None] * (torch.arange(n) + 0.5) / n + 2 * offset[:, None]
        waves.append(torch.cos(torch.pi * angle))
    return torch.einsum('bcuvw,ut,vh,wx->bcthx', amplitude, *waves)


def drift(case: str, frames: int, size: int, **options) -> float:
    """How much the logits change when the scene is sampled otherwise than in training."""
    model = build(case, num_frames=8, **options)
    with torch.no_grad():
        expected, got = model(scene(8, 8)), model(scene(frames, size))
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(('frames', 'size'), [(16, 8), (32, 8), (12, 8), (8, 16), (16, 12)])
def test_isotropic_follows_the_scene(frames: int, size: int) -> None:
    assert drift('isotropic3d', frames, size) < 0.1


def test_a_convolution_does_not_follow_the_scene() -> None:
    for frames, size in ((4, 8), (8, 16), (32, 32)):
        assert drift('isotropic3d i3d', frames, size, causal=False) > 2 * drift('isotropic3d', frames, size)


def test_a_longer_clip_at_the_same_rate() -> None:
    """`set_input_size(num_frames=12)` reads 12 frames as a model built for 12 does; else they are 6 frames' time."""
    for case in ('convnext3d', 'isotropic3d', 'convnext3d s4nd everywhere'):
        model = build(case)
        longer = build(case, num_frames=12)
        for theirs, ours in zip(longer.parameters(), model.parameters(), strict=True):
            theirs.data.copy_(ours)
        x = clip(case, frames=12)
        with torch.no_grad():
            finer = model(x)
            model.set_input_size(num_frames=12)
            assert (model.num_frames, model.img_size) == (12, longer.img_size)
            torch.testing.assert_close(model(x), longer(x))
            assert not torch.allclose(model(x), finer, rtol=1e-3)
            model.set_input_size(num_frames=6)
            torch.testing.assert_close(model(x), finer, atol=0, rtol=0)
    with pytest.raises(ValueError, match='num_frames must be a positive integer, got 0'):
        model.set_input_size(num_frames=0)
    with pytest.raises(ValueError, match='num_frames=4: this is a model of images'):
        build('vit').set_input_size(num_frames=4)


@pytest.mark.parametrize('case', CASES)
def test_any_size_and_length(case: str) -> None:
    model = build(case)
    for frames, size in ((1, (32, 32)), (3, (37, 50)), (7, (32, 45))):
        y = model(clip(case, frames, size))
        assert y.shape == (2, 5)
        assert y.isfinite().all()


def test_frames_that_do_not_divide_repeat_the_last() -> None:
    model = build('convnext3d s4 untied')
    x = clip('convnext3d s4 untied', frames=5)
    torch.testing.assert_close(model(x), model(torch.cat([x, x[:, :, -1:]], 2)), atol=0, rtol=0)


def test_hub_round_trip(tmp_path: object) -> None:
    model = build('convnext3d s4nd everywhere')
    model.set_input_size(40, num_frames=9)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.num_frames == 9
    x = clip('convnext3d', 7, (40, 33))
    torch.testing.assert_close(loaded(x), model(x), atol=0, rtol=0)


# -- timm's contract


@pytest.mark.parametrize('case', CASES)
def test_training_and_checkpointing(case: str) -> None:
    check_training(build(case).train(), clip(case))


@pytest.mark.parametrize('case', CASES)
def test_heads_and_feature_maps(case: str) -> None:
    model = build(case)
    x = clip(case)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x), atol=0, rtol=0)
        torch.testing.assert_close(model(x), model.forward_head(final), atol=0, rtol=0)
        pooled = model.forward_head(final, pre_logits=True)
        if 'isotropic' in case:
            torch.testing.assert_close(pooled, final.mean((2, 3, 4)), atol=1e-5, rtol=1e-5)
        tokens = 6 // model.stem.time_patch
        for level, info in zip(maps, model.feature_info, strict=True):
            side = model.img_size[0] // info['reduction']
            assert level.shape == (2, info['num_chs'], tokens, side, side)
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([1], prune_norm=True) == [1]
        torch.testing.assert_close(pruned.forward_features(x), maps[1], atol=0, rtol=0)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled, atol=0, rtol=0)
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        model.reset_classifier(0, '')
        assert model(x).shape == final.shape


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
def test_features_only(feature_cls: str) -> None:
    for case in ('convnext3d s4 untied', 'isotropic3d', 'isotropic3d i3d', 'convnext3d s3d'):
        name, options = CLIPS[case]
        model = timm.create_model(name, **options, features_only=True, feature_cls=feature_cls, out_indices=(0, 2))
        maps = model.eval()(clip(case))
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert all(m.dim() == 5 for m in maps)


@pytest.mark.parametrize('case', CASES)
def test_made_from_nothing_and_in_half_precision(case: str) -> None:
    name, options = CLIPS[case]
    model = timm.create_model(name, **options, device='meta', drop_path_rate=0.5).to_empty(device='cpu')
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else 0)
        model.init_weights()
        x = clip(case)
        torch.manual_seed(0)
        first, second = model(x), model(x)
        assert not torch.equal(first, second)  # paths are dropped in training only
        model.eval()
        expected = model(x)
        assert expected.isfinite().all()
        torch.testing.assert_close(model(x), expected, atol=0, rtol=0)
        half = model.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize('case', CASES)
def test_optimizer_groups(case: str) -> None:
    model = build(case)
    names = [name for name, _ in model.named_parameters()]
    groups = timm.models._manipulate.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == set(names)
    assert bool(model.no_weight_decay()) == any(isinstance(m, S4ND) for m in model.modules())


@pytest.mark.parametrize('case', ['convnext3d s3d', 'isotropic3d'])
def test_script_agrees_with_eager(case: str) -> None:
    model = build(case) if case != 'isotropic3d' else build(case, depths=(1,))
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for frames in (6, 9):
            torch.testing.assert_close(scripted(clip(case, frames)), model(clip(case, frames)), atol=1e-5, rtol=1e-4)


# -- Bad input


@pytest.mark.parametrize('case', ['convnext3d', 'isotropic3d'])
def test_clips_of_another_shape(case: str) -> None:
    model = build(case)
    says = re.escape('[2, 8, 3, 32, 32] looks like (B, T, C, H, W): expected (B, C, T, H, W)')
    with pytest.raises(ValueError, match=says):
        model(torch.zeros(2, 8, 3, 32, 32))
    for shape in ((2, 3, 32, 32), (3, 8, 32, 32), (2, 4, 8, 32, 32), (2, 3, 0, 32, 32), (2, 3, 8, 32, 0)):
        with pytest.raises(ValueError, match=r'expected clips \(batch, 3, frames, height, width\).*got') as error:
            model(torch.zeros(shape))
        assert str(list(shape)) in str(error.value)


def test_as_many_stages_as_wanted() -> None:
    model = build('convnext3d', depths=(1, 2), dims=(8, 12))
    assert [info['reduction'] for info in model.feature_info] == [4, 8]
    assert model(clip('convnext3d', 3, (8, 10))).shape == (2, 5)
    with pytest.raises(ValueError, match='8 pixels or more per side'):
        model(clip('convnext3d', 3, (7, 10)))
    with pytest.raises(ValueError, match=r'got \(1,\) and \(0,\)'):
        build('convnext3d', depths=(1,), dims=(0,))


def test_frames_smaller_than_the_model_sees() -> None:
    with pytest.raises(ValueError, match=r'32 pixels or more per side, got \[1, 3, 4, 31, 40\]'):
        build('convnext3d')(torch.zeros(1, 3, 4, 31, 40))
    with pytest.raises(ValueError, match='at least 32 per side'):
        build('convnext3d', img_size=31)
    with pytest.raises(ValueError, match='at least 32 per side'):
        build('convnext3d').set_input_size(31)


@pytest.mark.parametrize(('case', 'options'), [
    ('convnext3d', dict(mixer='conv2d')),
    ('convnext3d', dict(time_padding='reflect')),
    ('convnext3d', dict(num_frames=0)),
    ('convnext3d', dict(time_patch=0)),
    ('convnext3d', dict(depths=(1, 1))),
    ('convnext3d', dict(stem='overlap')),
    ('convnext3d', dict(init=('lin', 'lin'))),
    ('convnext3d', dict(cell='pixel')),
    ('isotropic3d', dict(num_frames=2.5)),
    ('isotropic3d', dict(mixer='attention')),
])  # fmt: skip
def test_options(case: str, options: dict) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f'{name}.*{re.escape(str(value))}'):
        build(case, **options)


def test_unknown_keyword_and_lengths() -> None:
    for case, name in itertools.product(('convnext3d', 'isotropic3d'), ('not_a_keyword', 'kernel_size')):
        with pytest.raises(TypeError, match=name):
            build(case, **{name: 1})
    with pytest.raises(ValueError, match=r'time_kernel_size.*0'):
        build('convnext3d i3d', time_kernel_size=0)
    with pytest.raises(ValueError, match='img_size must be at least 9 per side'):
        build('isotropic3d', patch=9)
    with pytest.raises(ValueError, match=r'num_frames.*-1'):
        build('convnext3d').set_input_size(num_frames=-1)
