"""Image models made into video models: a still clip gives the image's output, and what else is promised."""

import math

import pytest
import timm
import torch

from s4nd import S4ND, inflate, load_timm_weights
from s4nd.models._mixers import ClipS4ND
from s4nd.models.inflate import decay_
from s4nd.ops import separable_conv
from tests.models.families import CONVNEXT, ISOTROPIC, enliven, image, without_state

SMALL = dict(CONVNEXT, depths=(1, 1, 1, 1), ls_init_value=1.0)
CONV2D = without_state(SMALL)


def image_model(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        's4nd_convnext_micro', **{**(CONV2D if options.get('mixer') == 'conv2d' else SMALL), **options}
    ).eval()
    enliven(model)
    return model


def still(x: torch.Tensor, frames: int) -> torch.Tensor:
    return x[:, :, None].expand(-1, -1, frames, -1, -1)


def error(video: torch.nn.Module, model: torch.nn.Module, frames: int) -> float:
    """Worst relative error of the output for a clip that stands still."""
    x = image((64, 48))
    with torch.no_grad():
        expected, got = model(x), video(still(x, frames))
    return float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize('options', [
    {}, dict(kernel='s4', init='fout'), dict(stem='s4nd', downsample='s4nd', bandlimit=0.5), dict(stem='resample'),
], ids=str)  # fmt: skip
@pytest.mark.parametrize('time', [
    {}, dict(causal=True), dict(timescale=6.0), dict(init='real', time_tied=False), dict(kernel='s4', init='hippo'),
    dict(time_patch=2),
], ids=str)  # fmt: skip
def test_a_still_clip_gives_the_image(options: dict, time: dict) -> None:
    model = image_model(**options)
    if options.get('stem') == 's4nd' and 'time_patch' in time:
        with pytest.raises(ValueError, match='time_patch=1, got 2'):
            inflate(model, 12, **time)
        return
    video = inflate(model, 12, **time)
    assert error(video, model, 12) < 1e-5
    # The mixers do count: without them the output is another.
    with torch.no_grad():
        for layer in video.modules():
            if isinstance(layer, ClipS4ND):
                layer.kernels[0].C.zero_()
    assert error(video, model, 12) > 0.01


@pytest.mark.parametrize('mode', ['i3d', 's3d'])
@pytest.mark.parametrize('causal', [False, True])
def test_a_still_clip_gives_the_image_to_convolutions(mode: str, causal: bool) -> None:
    model = image_model(mixer='conv2d')
    for time_kernel_size, time_patch in ((3, 1), (5, 2)):
        video = inflate(model, 6, time_patch, mode, causal=causal, time_kernel_size=time_kernel_size)
        for frames in (1, 2, 6, 7):
            assert error(video, model, frames) < 1e-5


@pytest.mark.parametrize('mode', ['s4nd', 'i3d', 's3d'])
def test_isotropic_models_too(mode: str) -> None:
    torch.manual_seed(0)
    mixer = 's4nd' if mode == 's4nd' else 'conv2d'
    limit = {'bandlimit': 1.0} if mixer == 's4nd' else {}
    model = timm.create_model('s4nd_isotropic_mini', **ISOTROPIC, patch=2, mixer=mixer, **limit).eval()
    enliven(model)
    for time_patch in (1, 2):
        video = inflate(model, 12, time_patch, mode)
        assert error(video, model, 12) < 1e-5
        assert error(video, model, 24) < (1e-5 if mode != 's4nd' or time_patch == 1 else 1e-3)
    batchnorm = timm.create_model('s4nd_isotropic_mini', **ISOTROPIC, norm_layer='batchnorm2d', mixer=mixer)
    enliven(batchnorm)
    batchnorm.train()(image(16)), batchnorm.eval()
    assert error(inflate(batchnorm, 12, mode=mode), batchnorm, 12) < 1e-5


@pytest.mark.parametrize('causal', [False, True])
def test_other_lengths_and_frame_rates_too(causal: bool) -> None:
    """Up to what the decay leaves beyond two clips."""
    model = image_model()
    for timescale, bound in ((2.0, 1e-5), (4.0, 1e-3)):
        assert math.exp(-2 * 12 / timescale) < 3 * bound
        video = inflate(model, 12, timescale=timescale, causal=causal)
        for frames in (1, 3, 5, 24):
            assert error(video, model, frames) < bound


@pytest.mark.parametrize('causal', [False, True])
def test_features_differ_in_what_they_see_of_motion(causal: bool) -> None:
    """A random kernel of sum 0 stands beside the decay, which is the same for all and the same both ways."""
    for motion in (False, True):
        video = inflate(image_model(), 12, motion=motion, causal=causal)
        layer = next(m for m in video.modules() if isinstance(m, S4ND))
        taps = layer.axis_taps(0, layer.reach(12, 1.0), 1.0)[0]
        torch.testing.assert_close(taps.sum(-1), torch.ones_like(taps[..., 0]), atol=1e-5, rtol=0)
        assert ((taps - taps[:, :1]).abs().max() > 0.1) == motion
        if not causal:
            assert ((taps - taps.flip(-1)).abs().max() > 0.1) == motion


def test_what_zeros_beyond_the_ends_cost() -> None:
    """As published: the ends lose what would come from beyond them, half of the kernel at most, the middle nothing."""
    layer = decay_(S4ND(4, (32, 2), d_state=8), timescale=2.0)
    taps, center = layer.axis_taps(0, 32, 1.0)
    response = separable_conv(torch.ones(1, 4, 32), [taps], [center])
    t = torch.arange(32) + 0.5
    expected = 1 - 0.5 * torch.exp(-t / 2) - 0.5 * torch.exp(-(32 - t) / 2)
    torch.testing.assert_close(response[0], expected.expand(4, 32), atol=1e-5, rtol=0)
    model = image_model()
    assert error(inflate(model, 12, time_padding='zeros'), model, 12) > 0.01


def test_the_decay_has_its_timescale() -> None:
    for options in (dict(init='lin'), dict(init='inv'), dict(init='legs'), dict(init='real'), dict(tensor_rank=2)):
        layer = S4ND(4, (16, 2), d_state=8, bidirectional=(False, True), **options)
        taps, _ = decay_(layer, timescale=3.0).axis_taps(0, 16, 1.0)
        expected = torch.exp(-torch.arange(16) / 3.0)
        torch.testing.assert_close(
            layer.tensor_rank * taps, (expected / expected.sum()).expand_as(taps), atol=1e-6, rtol=1e-5
        )
    layer = S4ND(4, (16, 2), kernel='s4', init=('legs', None), d_state=8, bidirectional=(False, True))
    taps, _ = decay_(layer, timescale=3.0).axis_taps(0, 16, 1.0)
    ratio = torch.full((1, 4, 15), (1 - 1 / 6) / (1 + 1 / 6))  # the bilinear rule's exp(-1/3)
    torch.testing.assert_close(taps[..., 1:] / taps[..., :-1], ratio, atol=1e-5, rtol=1e-4)


def test_a_still_clip_stays_still_after_training() -> None:
    video = inflate(image_model(), 8).train()
    optimizer = torch.optim.SGD(video.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        video(torch.randn(2, 3, 8, 64, 64)).square().mean().backward()
        optimizer.step()
    features = video.eval().forward_features(still(image(64), 8))
    torch.testing.assert_close(features, features[:, :, :1].expand_as(features), atol=1e-4, rtol=1e-4)


def test_motion_is_seen() -> None:
    model = image_model()
    video = inflate(model, 8)
    x = still(image(64), 8).clone()
    x[:, :, 4:] = image(64, seed=2)[:, :, None]
    with torch.no_grad():
        assert not torch.allclose(video(x)[0], model(x[:, :, 0])[0], atol=1e-3)


def test_weights_of_timm_all_the_way() -> None:
    source = timm.create_model('convnext_tiny', depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=5)
    options = dict(CONV2D, mixer='conv2d')
    flat = timm.create_model('s4nd_convnext_micro', **options).eval()
    assert not load_timm_weights(flat, source).left
    enliven(source)
    load_timm_weights(flat, source.state_dict())
    assert error(inflate(flat, 4, mode='i3d'), source.eval(), 4) < 1e-5


def test_the_image_model_is_left_alone() -> None:
    model = image_model(bandlimit=1.0, cell='input')
    model.set_input_size((80, 48))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    video = inflate(model, 6, drop_path_rate=0.1)
    video.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    video = inflate(model.double().train(), 6)
    assert (video.training, video.img_size, next(video.parameters()).dtype) == (True, (80, 48), torch.float64)
    layer = next(m for m in video.modules() if isinstance(m, ClipS4ND))
    flat = next(m for m in model.modules() if isinstance(m, S4ND))
    assert layer.grid == (6, *flat.grid)
    assert layer.cell == flat.cell
    assert layer.kernels[1].bandlimit == flat.kernels[0].bandlimit == 1.0


@pytest.mark.parametrize(('make', 'says'), [
    (lambda: inflate(timm.create_model('s4nd_vit_tiny_patch16', img_size=32), 4), 'got S4NDViT'),
    (lambda: inflate(image_model(), 4, mode='i3d'), "mode='i3d' inflates a model with mixer='conv2d'"),
    (lambda: inflate(image_model(mixer='conv2d'), 4, mode='s4nd'), "mode='s4nd' inflates a model with mixer='s4nd'"),
    (lambda: inflate(image_model(), 4, mode='c3d'), "mode must be one of.*'c3d'"),
    (lambda: inflate(image_model(), 0), 'num_frames.*0'),
    (lambda: inflate(image_model(), 4, timescale=0.0), 'timescale.*0.0'),
    (lambda: inflate(image_model(), 4, kernel='dss-exp'), 'got DSSExpKernel'),
    (lambda: inflate(image_model(output_stride=16), 4), 'output_stride=32'),
])  # fmt: skip
def test_bad_input(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(('mode', 'patch'), [('s4nd', 1), ('s4nd', 2), ('i3d', 1), ('s3d', 2)])
def test_isotropic_models_are_inflated_as_well(mode: str, patch: int) -> None:
    torch.manual_seed(0)
    name = 's4nd_isotropic_mini' if mode == 's4nd' else 'conv2d_isotropic_mini'
    model = timm.create_model(name, img_size=16, dim=16, depths=(1, 1, 1), patch=patch).eval()
    enliven(model)
    video = inflate(model, 6, mode=mode)
    x = image((16, 24))
    with torch.no_grad():
        expected = model(x)
        assert float((video(still(x, 6)) - expected).norm() / expected.norm()) < 1e-5
        assert (
            float((video(torch.cat([still(x, 3), still(x.flip(3), 3)], 2)) - expected).norm() / expected.norm()) > 1e-3
        )
    again = timm.create_model('s4nd_isotropic3d_mini', **video.model_args()).eval()
    again.load_state_dict(video.state_dict())
    with torch.no_grad():
        assert torch.equal(again(still(x, 4)), video(still(x, 4)))
