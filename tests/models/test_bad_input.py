"""What a user can get wrong gives one clear ValueError that names the value."""

import pytest
import timm
import torch

from tests.models.families import SMALL, build


@pytest.mark.parametrize('case', list(SMALL))
@pytest.mark.parametrize('shape', [(2, 4, 64, 64), (2, 3, 64), (3, 64, 64), (2, 3, 0, 64), (2, 3, 64, 0)])
def test_images_of_another_shape(case: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'expected images \(batch, 3, height, width\).*got \[') as error:
        build(case)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


def test_images_smaller_than_the_model_sees() -> None:
    for case, size in (('convnext', 31), ('vit', 7)):
        with pytest.raises(ValueError, match=f'{size + 1} pixels or more per side'):
            build(case)(torch.zeros(1, 3, size, 64))
        with pytest.raises(ValueError, match='at least'):
            build(case, img_size=size)
        with pytest.raises(ValueError, match='at least'):
            build(case).set_input_size(size)


def test_features_check_their_input_too() -> None:
    name, options = SMALL['convnext']
    model = timm.create_model(name, **options, features_only=True)
    with pytest.raises(ValueError, match='expected images'):
        model(torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize('size', [0, -8, (32,), (32, 0), (32, 32, 32), 1.5])
@pytest.mark.parametrize('case', ['convnext', 'vit', 'isotropic'])
def test_training_sizes(case: str, size: object) -> None:
    with pytest.raises(ValueError, match='img_size'):
        build(case, img_size=size)
    with pytest.raises(ValueError, match='img_size'):
        build(case).set_input_size(img_size=size)


@pytest.mark.parametrize(
    ('case', 'options'),
    [
        ('convnext', dict(stem='overlap')),
        ('convnext', dict(downsample='pool')),
        ('convnext', dict(mixer='attention')),
        ('convnext', dict(output_stride=4)),
        ('convnext', dict(depths=(1, 1))),
        ('convnext', dict(kernel='s6')),
        ('vit', dict(init='hippo')),
        ('vit', dict(stem='conv')),
        ('vit', dict(mixer='conv2d')),
        ('vit', dict(patch_size=0)),
        ('isotropic', dict(mixer='s4nd_1d')),
        ('isotropic', dict(norm_layer='groupnorm')),
        ('isotropic', dict(n_ssm=5)),
        ('convnext', dict(channels=2)),
        ('isotropic', dict(time_patch=2)),
        ('convnext', dict(time_patch=2)),
        ('isotropic', dict(dt_min=-0.1)),
    ],
)
def test_options(case: str, options: dict) -> None:
    value = next(iter(options.values()))
    with pytest.raises(ValueError, match=str(value).replace('(', r'\(').replace(')', r'\)')):
        build(case, **options)
