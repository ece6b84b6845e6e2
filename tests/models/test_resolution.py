"""Other input sizes: they run and follow the scene; `set_input_size` says what size a model is trained at."""

import pytest
import torch

from s4nd.layers import GridLayer
from tests.models.families import SMALL, build, image, size_of


def scene(size: tuple[int, int], batch: int = 4) -> torch.Tensor:
    """A smooth random scene (batch, 3, *size), sampled at the centers of its pixels."""
    generator = torch.Generator().manual_seed(3)
    waves = 4
    amplitude, phase = (
        torch.randn(batch, 3, waves, waves, generator=generator),
        torch.rand(2, waves, generator=generator),
    )
    axes = []
    for n, offsets in zip(size, phase, strict=True):
        center = (torch.arange(n) + 0.5) / n
        axes.append(torch.cos(torch.pi * torch.arange(waves)[:, None] * center + 2 * torch.pi * offsets[:, None]))
    return torch.einsum('bcuv,uh,vw->bchw', amplitude, *axes)


def difference(case: str, size: tuple[int, int], **options) -> float:
    """How much the logits change when the same scene is sampled at another size."""
    model = build(case, **options)
    base = size_of(case)
    with torch.no_grad():
        expected, got = model(scene((base, base))), model(scene(size))
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize('case', list(SMALL))
def test_any_size_runs(case: str) -> None:
    model = build(case)
    for size in ((48, 80), (33, 47)):
        y = model(image(size))
        assert y.shape == (2, 5)
        assert y.isfinite().all()


@pytest.mark.parametrize('size', [(16, 24), (32, 32), (64, 64)])
def test_isotropic_follows_the_scene(size: tuple[int, int]) -> None:
    assert difference('isotropic', size, bandlimit=0.5) < 0.1


def test_a_convolution_does_not_follow_the_scene() -> None:
    assert difference('isotropic conv2d', (64, 64)) > 0.2


@pytest.mark.parametrize('size', [(128, 128), (80, 96)])
def test_s4nd_stem_and_downsampling_follow_the_scene(size: tuple[int, int]) -> None:
    # At stride 32 the maps are 2 x 2, all border: what is left is half of what a convolution loses, or less.
    assert difference('convnext s4nd everywhere', size) < 0.5 * difference('convnext conv2d', size)


@pytest.mark.parametrize(('case', 'options'), [('convnext resample', {}), ('vit', dict(stem='resample'))])
def test_a_resampling_stem_follows_the_scene(case: str, options: dict) -> None:
    base = size_of(case)
    assert difference(case, (2 * base, 4 * base), **options) < 0.01
    assert difference(case, (base + 13, base + 30), **options) < 0.05


@pytest.mark.parametrize('case', list(SMALL))
@torch.no_grad()
def test_set_input_size_gives_the_model_built_at_that_size(case: str) -> None:
    model, base = build(case), size_of(case)
    larger = (2 * base, base + 32)
    built = build(case, img_size=larger)
    assert [p.shape for p in built.parameters()] == [p.shape for p in model.parameters()]
    for theirs, ours in zip(built.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            theirs.copy_(ours)
    before = [p.clone() for p in model.parameters()]
    model.requires_grad_(False)
    model.set_input_size(img_size=larger)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in model.parameters())
    assert model.img_size == built.img_size == larger
    for ours, theirs in zip(model.modules(), built.modules(), strict=True):
        if isinstance(ours, GridLayer):
            assert ours.grid == theirs.grid
    for size in (larger, (base, base)):
        assert torch.equal(built(image(size)), model(image(size)))


@torch.no_grad()
def test_more_scene_at_the_same_scale() -> None:
    """What lies in the middle of twice the scene is mixed as before: kernels keep their length in pixels."""
    model = build('isotropic', dt_min=1.0, dt_max=1.0, init='real')
    x = image(32)
    small = model.forward_features(x[..., 8:24, 8:24])[..., 8, 8]
    model.set_input_size(img_size=32)
    same = model.forward_features(x)[..., 16, 16]
    model.set_input_size(img_size=16)
    finer = model.forward_features(x)[..., 16, 16]
    assert (same - small).norm() < 0.2 * (finer - small).norm()


def test_a_resampling_stem_keeps_its_token_grid() -> None:
    model = build('convnext resample')
    model.set_input_size(img_size=128)
    assert model.forward_features(image(200)).shape[-2:] == (4, 4)
    model.set_input_size(img_size=64)
    assert model.forward_features(image(200)).shape[-2:] == (2, 2)
    fine = image(128)
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    torch.testing.assert_close(model(fine), model(coarse), atol=1e-4, rtol=1e-4)
