"""ViS4mer: held to its definition, number of tokens and frame rate, encoders, timm's interface, bad input."""

import copy
import fnmatch

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

import s4nd
from s4nd.models._arguments import complete
from s4nd.models.vis4mer import ViS4mer, ViS4merBlock, ViS4merHead
from tests import oracles
from tests.kernels.test_kernels import oracle

DOUBLE = torch.float64
SMALL = dict(dim=16, d_state=4, num_classes=3)
VIDEO = dict(SMALL, encoder='test_resnet', chunk=3)


def head(features: int = 6, seed: int = 0, **options) -> ViS4merHead:
    torch.manual_seed(seed)
    return ViS4merHead(features, **complete(ViS4merHead, {}, {**SMALL, **options})).eval()


def video_model(**options) -> ViS4mer:
    torch.manual_seed(0)
    return ViS4mer(**complete(ViS4mer, {}, {**VIDEO, **options})).eval()


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def slow_block(block: ViS4merBlock, x: Tensor, step: float) -> Tensor:
    """A level by its definition: direct sums over the oracle's taps, one pair of tokens at a time. (B, T, d)."""
    count, dim = x.shape[1:]
    u = F.layer_norm(x, (dim,), block.norm.weight, block.norm.bias, block.norm.eps).transpose(1, 2)
    kernel = block.mixer.kernels[0]
    taps = oracle(kernel, count, step)[0]  # (d, T)
    y = oracles.direct_conv(u, taps, [0]) + block.mixer.D[0][:, None] * u
    x = x + F.gelu(y).transpose(1, 2) @ block.out.weight.T + block.out.bias
    pooled = [x[:, i : i + 2].mean(1) for i in range(0, max(1, count - 1), 2)]
    return F.gelu(torch.stack(pooled, 1) @ block.reduce.weight.T + block.reduce.bias)


def slow_head(model: ViS4merHead, x: Tensor, steps: list[float]) -> Tensor:
    x = x @ model.proj.weight.T + model.proj.bias
    for block, step in zip(model.blocks, steps, strict=True):
        x = slow_block(block, x, step)
    return x.mean(1) @ model.fc.weight.T + model.fc.bias


@pytest.mark.parametrize('kernel', ['s4', 's4d'])
@pytest.mark.parametrize(
    ('count', 'length', 'steps'),
    [
        (8, None, [1, 1, 1]),
        (11, None, [1, 1, 1]),
        (1, None, [1, 1, 1]),
        (16, 8, [0.5, 0.5, 0.5]),
        (5, 10, [2, 5 / 2, 2]),  # levels of 5, 2, 1 tokens on grids of 10, 5, 2
    ],
)
def test_equals_its_definition(kernel: str, count: int, length: int | None, steps: list[float]) -> None:
    model = head(kernel=kernel, length=length, dtype=DOUBLE)
    x = noise(2, count, 6, dtype=DOUBLE)
    expected = slow_head(model, x, steps)
    torch.testing.assert_close(model(x), expected, atol=1e-10, rtol=1e-8)
    names, parameters = zip(*model.named_parameters(), strict=True)
    weights = noise(2, 3, seed=2, dtype=DOUBLE)
    fast = torch.autograd.grad((model(x) * weights).sum(), parameters)
    slow = torch.autograd.grad((expected * weights).sum(), parameters)
    for name, got, wanted in zip(names, fast, slow, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-6, msg=name)


def test_published_size() -> None:
    """Linear 1024 -> 1024, then a level of width d: norm, D, dt, B, P, C and Q (4 · 64 d), Λ, two linear maps."""
    model = timm.create_model('s4nd_vis4mer_base_head', device='meta')
    expected = 1024 * 1025 + 128 * 10 + 10
    for d in (1024, 512, 256):
        expected += 2 * d + d + d + 4 * 64 * d + 32 * 2 + d * (d + 1) + d // 2 * (d + 1)
    assert expected == 3_584_074
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.num_features == 128 and [block.mixer.d_model for block in model.blocks] == [1024, 512, 256]


def test_a_first_map_between_equal_widths_is_not_applied() -> None:
    model, x = head(16), noise(2, 8, 16)
    y = model(x)
    with torch.no_grad():
        model.proj.weight.add_(1.0)
    assert torch.equal(model(x), y) and not any(p.requires_grad for p in model.proj.parameters())


@pytest.mark.parametrize('prenorm', [True, False])
def test_norms_stand_before_or_after(prenorm: bool) -> None:
    block, x = head(prenorm=prenorm).blocks[0], noise(2, 8, 16)
    x = x if prenorm else block.norm(x)
    u = block.norm(x) if prenorm else x
    y = x + block.out(F.gelu(block.mixer(u.transpose(1, 2))).transpose(1, 2))
    y = y if prenorm else block.norm(y)
    torch.testing.assert_close(block(x), F.gelu(block.reduce(y.unflatten(1, (4, 2)).mean(2))))


def test_causal_unless_bidirectional() -> None:
    for bidirectional in (False, True):
        model = head(bidirectional=bidirectional, global_pool='')
        x = noise(1, 16, 6).requires_grad_()
        model.forward_features(x)[0, 0].sum().backward()  # the last level's first token: input tokens 0 … 7
        assert x.grad[0, :8].any(-1).all()
        assert bool(x.grad[0, 8:].any()) == bidirectional


@pytest.mark.parametrize('count', [1, 2, 3, 7, 8, 129])
def test_any_number_of_tokens(count: int) -> None:
    model = head()
    logits = model(noise(2, count, 6))
    assert logits.shape == (2, 3) and logits.isfinite().all()
    lengths = [level.shape[1] for level in model.forward_intermediates(noise(2, count, 6), intermediates_only=True)]
    assert lengths == [max(1, count // 2), max(1, count // 4), max(1, count // 8)]


def test_a_frame_rate_is_a_step() -> None:
    """A slow signal at twice the rate: with a length the answer stays; as a longer clip it changes."""
    times = torch.arange(256, dtype=DOUBLE) + 0.5
    signal = torch.stack([torch.sin(2 * torch.pi * (k + 1) * times / 256) for k in range(6)], -1)[None]
    coarse = signal.unflatten(1, (128, 2)).mean(2)
    changes = []
    for options in (dict(length=128), {}):
        model = head(dtype=DOUBLE, dt_min=0.01, dt_max=0.1, bidirectional=True, **options)
        expected = model(coarse)
        changes.append(float((model(signal) - expected).norm() / expected.norm()))
        model.set_length(256)
        changes.append(float((model(signal) - expected).norm() / expected.norm()))
    assert changes[0] < 0.02 and min(changes[1:]) > 4 * changes[0]
    assert changes[1] == changes[2] == changes[3]  # a step of 1


def test_learns_the_order_of_two_events() -> None:
    """Event 0 before event 1, or after it: the mean over time is the same."""
    generator = torch.Generator().manual_seed(0)

    def clips(count: int) -> tuple[Tensor, Tensor]:
        x = 0.1 * torch.randn(count, 24, 4, generator=generator)
        first = torch.randint(0, 11, (count,), generator=generator)
        second = torch.randint(13, 24, (count,), generator=generator)
        labels = torch.randint(0, 2, (count,), generator=generator)
        x[torch.arange(count), first, labels] += 3
        x[torch.arange(count), second, 1 - labels] += 3
        return x, labels

    model = head(
        4, dim=32, d_state=16, num_classes=2, kernel='s4d', init='legs', dt_min=0.01, proj_drop_rate=0.0
    ).train()
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=1e-2, ssm_lr=1e-2))
    for _ in range(40):
        x, labels = clips(32)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, labels = clips(200)
    assert (model.eval()(x).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize('make', [head, video_model])
def test_checkpointing_changes_nothing(make) -> None:
    model = make(drop_path_rate=0.0, **({'freeze': False} if make is video_model else {})).train()
    # Recomputing would update the running statistics twice.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = noise(2, 7, 6) if make is head else noise(2, 3, 5, 32, 32)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)  # dropout
        y = model(x)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


def test_dropout_and_drop_path_are_of_training() -> None:
    x = noise(4, 8, 6)
    for options in (dict(proj_drop_rate=0.5), dict(proj_drop_rate=0.0, drop_path_rate=0.5), dict(drop_rate=0.5)):
        model = head(**options)
        torch.testing.assert_close(model(x), model(x), atol=0, rtol=0)
        model.train()
        assert not torch.equal(model(x), model(x))
    # Whole features are dropped, at all tokens.
    model = head(proj_drop_rate=0.5)
    dropped = model.blocks[0].proj_drop.train()(torch.ones(1, 16, 8))
    assert set(dropped.sum(-1).flatten().tolist()) == {0.0, 16.0}


def test_head_surgery() -> None:
    model = head().train()
    x = noise(2, 8, 6)
    model.eval()
    features = model.forward_features(x)
    assert features.shape == (2, 1, model.num_features)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model(x), model.get_classifier()(pre_logits), atol=0, rtol=0)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits, atol=0, rtol=0)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.num_classes == model.get_classifier().out_features == 7
    model.reset_classifier(7, '')
    assert model(noise(2, 24, 6)).shape == (2, 3, 7)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features, atol=0, rtol=0)
    double = head(dtype=DOUBLE)
    double.reset_classifier(4)
    assert double.fc.weight.dtype == DOUBLE


@pytest.mark.parametrize('make', [head, video_model])
def test_levels_and_pruning(make) -> None:
    model = make()
    x = noise(2, 11, 6) if make is head else noise(2, 3, 11, 32, 32)
    final, levels = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x), atol=0, rtol=0)
    assert [tuple(level.shape) for level in levels] == [(2, 5, 8), (2, 2, 4), (2, 1, 2)]
    turned = model.forward_intermediates(x, indices=1, output_fmt='NCL', intermediates_only=True)
    torch.testing.assert_close(turned[0], final.transpose(1, 2), atol=0, rtol=0)
    for index, expected in enumerate(levels):
        early = model.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        for got in (early[0], pruned(x)):
            torch.testing.assert_close(got, expected, atol=0, rtol=0)
        assert pruned.num_features == expected.shape[-1]
    with pytest.raises(ValueError, match="'NLC', 'NCL', got 'NCHW'"):
        model.forward_intermediates(x, output_fmt='NCHW')


def test_timm_knows_it() -> None:
    assert set(timm.list_models(module='vis4mer')) == {
        's4nd_vis4mer_tiny', 's4nd_vis4mer_base', 's4nd_vis4mer_tiny_head', 's4nd_vis4mer_base_head',
    }  # fmt: skip
    model = timm.create_model('s4nd_vis4mer_tiny', img_size=32, **VIDEO)
    assert isinstance(model, ViS4mer) and model(noise(1, 3, 4, 32, 32)).shape == (1, 3)
    levels = timm.create_model('s4nd_vis4mer_tiny', img_size=32, **VIDEO, features_only=True)
    assert [tuple(level.shape) for level in levels(noise(1, 3, 4, 32, 32))] == [(1, 2, 8), (1, 1, 4), (1, 1, 2)]
    assert levels.feature_info.channels() == [8, 4, 2] and levels.feature_info.reduction() == [2, 4, 8]
    assert timm.create_model('s4nd_vis4mer_tiny_head', in_chans=5, **SMALL)(noise(1, 4, 5)).shape == (1, 3)
    for name in ('s4nd_vis4mer_tiny', 's4nd_vis4mer_tiny_head', 's4nd_vis4mer_base_head'):
        with pytest.raises(TypeError, match='not_a_keyword'):
            timm.create_model(name, not_a_keyword=1)
        with pytest.raises(RuntimeError, match=r'[Pp]retrained'):
            timm.create_model(name, pretrained=True)
        model = timm.create_model(name, device='meta')
        for weight in (model.default_cfg['first_conv'], model.default_cfg['classifier']):
            assert f'{weight}.weight' in model.state_dict()
    names = [name for name, _ in model.named_parameters()]
    for pattern in model.no_weight_decay():
        assert fnmatch.filter(names, pattern)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == set(names)
    assert layers['proj.weight'] < layers['blocks.0.out.weight'] < layers['blocks.2.out.weight'] < layers['fc.weight']


def test_weights_can_be_made_from_nothing() -> None:
    model = head(device='meta').to_empty(device='cpu')
    for tensor in model.state_dict().values():
        tensor.fill_(float('nan') if tensor.is_floating_point() else 0)
    model.init_weights()
    assert model(noise(1, 4, 6)).isfinite().all()


def test_bfloat16() -> None:
    model = head()
    x = noise(2, 16, 6)
    expected = model(x)
    got = model.to(torch.bfloat16)(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() < 0.1 * expected.norm()


def test_a_head_trained_on_stored_features_loads_into_the_whole() -> None:
    whole, apart = video_model(), head(video_model().proj.in_features, seed=7)
    missing = whole.load_state_dict(apart.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(key.startswith('encoder.') for key in missing.missing_keys)
    x = noise(2, 3, 7, 32, 32)
    torch.testing.assert_close(whole(x), apart(whole.tokens(x)), atol=0, rtol=0)


@pytest.mark.parametrize(
    ('encoder', 'options', 'tokens'),
    [
        ('test_resnet', {}, 1), ('test_vit', dict(img_size=32), 5), ('test_convnext', {}, 1),
        ('swin_tiny_patch4_window7_224', dict(img_size=32, embed_dim=12, depths=(1, 1), num_heads=(1, 1)), 16),
        ('mobilenetv3_small_050', {}, 1), ('s4nd_isotropic_mini', dict(dim=8, d_state=4, depths=(1, 1, 1)), 1024),
    ],
)  # fmt: skip
def test_frames_and_patches_of_any_encoder(encoder: str, options: dict, tokens: int) -> None:
    x = noise(2, 3, 3, 32, 32)
    for kind, count in (('frame', 1), ('patch', tokens)):
        model = video_model(encoder=encoder, encoder_args=options, tokens=kind, chunk=4)
        features = model.tokens(x)
        assert features.shape[:2] == (2, 3 * count) and features.shape[2] == model.proj.in_features
        # One frame at a time: the same, in the same place.
        for clip in range(2):
            for frame in range(3):
                alone = model.tokens(x[clip : clip + 1, :, frame : frame + 1])
                here = slice(frame * count, (frame + 1) * count)
                torch.testing.assert_close(features[clip : clip + 1, here], alone, atol=1e-5, rtol=1e-4)
        assert model(x).shape == (2, 3)


def test_patches_are_in_raster_order() -> None:
    for encoder, options in (
        ('test_resnet', {}),
        ('swin_tiny_patch4_window7_224', dict(img_size=64, embed_dim=12, depths=(1, 1), num_heads=(1, 1))),
    ):
        model = video_model(encoder=encoder, encoder_args=options, tokens='patch')
        x = noise(1, 3, 1, 64, 64)
        maps = model.encoder.forward_features(x[:, :, 0])
        if encoder == 'test_resnet':
            maps = maps.permute(0, 2, 3, 1)
        got = model.tokens(x)
        assert got.shape[1] == maps.shape[1] * maps.shape[2] > 3
        torch.testing.assert_close(got[0, maps.shape[2] + 1], maps[0, 1, 1])


def test_frozen_and_trained_encoders() -> None:
    x = noise(2, 3, 5, 32, 32)
    frozen = video_model().train()
    before = copy.deepcopy(frozen.encoder.state_dict())
    frozen(x).sum().backward()
    assert not frozen.encoder.training and all(p.grad is None for p in frozen.encoder.parameters())
    assert all(p.grad is not None for name, p in frozen.named_parameters() if not name.startswith('encoder.'))
    for name, value in frozen.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    trained = video_model(freeze=False).train()
    trained(x).sum().backward()
    assert trained.encoder.training and all(p.grad is not None for p in trained.encoder.parameters())


def test_no_more_frames_than_a_chunk_go_through_the_encoder_at_a_time() -> None:
    model, seen = video_model(chunk=4), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(noise(2, 3, 5, 32, 32))
    assert seen == [4, 3, 3]


def test_grids_of_a_video_model() -> None:
    model = video_model(num_frames=4)
    assert model.length == 4 and [block.mixer.grid for block in model.blocks] == [(4,), (2,), (1,)]
    model = video_model(num_frames=4, img_size=64, tokens='patch')
    assert model.length == model.tokens(noise(1, 3, 4, 64, 64)).shape[1] == 4 * 4
    x = noise(2, 3, 8, 32, 32)
    for tokens, expected in (('frame', 8), ('patch', 8 * 5)):
        model = video_model(encoder='test_vit', img_size=32, num_frames=4, tokens=tokens, dtype=DOUBLE)
        built = video_model(encoder='test_vit', img_size=32, num_frames=8, tokens=tokens, dtype=DOUBLE)
        built.load_state_dict(model.state_dict())
        assert built.num_frames == 4  # with the weights
        built.set_input_size(num_frames=8)
        model.set_input_size(num_frames=8)
        assert model.length == expected and model.num_frames == 8
        torch.testing.assert_close(model(x.double()), built(x.double()))
        model.set_input_size(img_size=64)
        assert model.length == (8 if tokens == 'frame' else 8 * 17)
        assert model(noise(2, 3, 8, 64, 64, dtype=DOUBLE)).shape == (2, 3)
        assert not any(p.requires_grad for p in model.encoder.parameters())
    with pytest.raises(ValueError, match='without num_frames'):
        video_model().set_input_size(num_frames=8)
    with pytest.raises(ValueError, match='length must be at least 1 token, got 0'):
        head(length=3).set_length(0)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 5, 3, 32, 32), r'\[2, 5, 3, 32, 32\] looks like \(B, T, C, H, W\)'),
        ((2, 3, 32, 32), r'expected clips .*got \[2, 3, 32, 32\]'),
        ((2, 4, 5, 32, 32), r'expected clips \(batch, 3, frames.*got \[2, 4, 5, 32, 32\]'),
        ((2, 3, 0, 32, 32), r'got \[2, 3, 0, 32, 32\]'),
        ((2, 5, 6), r'expected clips .*got \[2, 5, 6\]'),
    ],
)
def test_what_is_no_video(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video_model()(torch.zeros(shape))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 6, 9), r'got \[2, 6, 9\]: tokens and features are exchanged'),
        ((2, 9, 7), r'expected features \(batch, tokens, 6\), none empty, got \[2, 9, 7\]'),
        ((2, 0, 6), r'none empty, got \[2, 0, 6\]'),
        ((9, 6), r'got \[9, 6\]'),
        ((2, 3, 5, 32, 32), r'got \[2, 3, 5, 32, 32\]'),
    ],
)
def test_what_is_no_feature_sequence(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head()(torch.zeros(shape))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(encoder='resnet_none'), "no encoder 'resnet_none'"),
        (dict(tokens='token'), "tokens must be one of 'frame', 'patch', got 'token'"),
        (dict(chunk=0), 'chunk must be a positive integer, got 0'),
        (dict(dim=20), 'got 20 and depth 3'),
        (dict(depth=0), 'depth 0'),
        (dict(num_frames=0), 'num_frames must be a positive integer, got 0'),
        (dict(img_size=-3), 'img_size must be .* got -3'),
        (dict(global_pool='max'), "got 'max'"),
        (dict(kernel='s6'), "unknown kernel 's6'"),
        (dict(init='none'), "unknown init 'none'"),
    ],
)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video_model(**options)
