"""Other input sizes: they run, follow the scene, and re-anchoring does not change the function."""

import pytest
import torch

from s4nd import S4ND
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
@pytest.mark.parametrize('size', [(48, 80), (33, 47), (128, 96)])
def test_any_size_runs(case: str, size: tuple[int, int]) -> None:
    y = build(case)(image(size))
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


@pytest.mark.parametrize('case', [case for case in SMALL if 'conv2d' not in case])
def test_set_input_size_leaves_the_function(case: str) -> None:
    model = build(case)
    base = size_of(case)
    sizes = [(base, base), (base + 32, base + 64)]
    with torch.no_grad():
        before = [model(image(size)) for size in sizes]
        model.requires_grad_(False)
        model.set_input_size(img_size=(base + 32, base + 64))
        for size, expected in zip(sizes, before, strict=True):
            torch.testing.assert_close(model(image(size)), expected, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('case', ['convnext', 'convnext s4nd everywhere', 'vit', 'vit 1d', 'isotropic'])
def test_resized_equals_built_at_that_size(case: str) -> None:
    model = build(case, bandlimit=0.5)
    base = size_of(case)
    larger = (2 * base, base + 32)
    before = [p.clone() for p in model.parameters()]
    model.set_input_size(img_size=larger)
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert model.img_size == larger
    extra = {'stem_extent': model.stem.extent} if case == 'convnext s4nd everywhere' else {}
    if case != 'vit 1d':
        extra['window'] = next(m for m in model.modules() if isinstance(m, S4ND)).window
    built = build(case, bandlimit=0.5, img_size=larger, **extra)
    built.load_state_dict(model.state_dict())
    for size in (larger, (base, base)):
        torch.testing.assert_close(built(image(size)), model(image(size)), atol=1e-6, rtol=1e-5)


def test_a_resampling_stem_keeps_its_token_grid() -> None:
    model = build('convnext resample')
    model.set_input_size(img_size=128)
    assert model.img_size == (64, 64)
    assert model.forward_features(image(200)).shape[-2:] == (2, 2)
    fine = image(128)
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    torch.testing.assert_close(model(fine), model(coarse), atol=1e-4, rtol=1e-4)
