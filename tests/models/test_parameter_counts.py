"""Exact sizes of the published models and of ours, on the meta device."""

import pytest
import timm

from tests.models.families import REGISTERED

PUBLISHED = dict(kernel='s4', init='fout', n_ssm=1, d_state=64)


def count(name: str, **options) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta', **options).parameters())


@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('s4nd_convnext_tiny', PUBLISHED, 29_980_456),
        # The published stem carries three unused numbers (a skip D that full mixing never reads); ours has none.
        ('s4nd_convnext_tiny', dict(PUBLISHED, stem='s4nd'), 30_007_057 - 3),
        ('s4nd_convnext_tiny', dict(PUBLISHED, stem='s4nd', downsample='s4nd'), 29_409_457 - 3),
        ('s4nd_convnext_tiny', dict(PUBLISHED, downsample='s4nd'), 29_382_856),
        ('s4nd_convnext_tiny', dict(mixer='conv2d'), 28_589_128),
        ('s4nd_convnext_tiny', dict(stem='resample'), 29_978_152),
        ('s4nd_convnext_micro', dict(PUBLISHED, num_classes=40), 9_844_136),
        ('s4nd_convnext_micro', dict(PUBLISHED, num_classes=40, stem='s4nd', downsample='s4nd'), 9_644_209 - 3),
        ('s4nd_vit_base_patch16_1d', {}, 88_786_408),
        ('s4nd_isotropic_mini', {}, 265_962),
    ],
)
def test_golden_sizes(name: str, options: dict, expected: int) -> None:
    assert count(name, **options) == expected


DEFAULT_SIZES = {
    's4nd_convnext_micro': 10_335_080,
    's4nd_convnext_tiny': 29_978_152,
    's4nd_convnext_small': 53_061_928,
    's4nd_convnext_base': 92_372_712,
    's4nd_vit_tiny_patch16': 5_389_864,
    's4nd_vit_small_patch16': 19_623_016,
    's4nd_vit_base_patch16': 74_631_400,
    's4nd_vit_base_patch16_1d': 88_786_408,
    's4nd_isotropic_mini': 265_962,
    's4nd_isotropic_tiny': 998_666,
    's4nd_isotropic_small': 3_569_418,
    'conv2d_isotropic_mini': 262_650,
    'conv2d_isotropic_tiny': 995_690,
    'conv2d_isotropic_small': 3_552_618,
    's4nd_convnext3d_nano': 300_376,
    's4nd_convnext3d_micro': 10_400_336,
    's4nd_convnext3d_tiny': 30_373_552,
    's4nd_isotropic3d_mini': 63_690,
    's4nd_ccnn_mini': 29_914,
    's4nd_ccnn_4_140': 201_042,
    's4nd_ccnn_6_380': 1_999_366,
}


def test_every_registered_model_has_its_size() -> None:
    assert {name: count(name) for name in REGISTERED} == DEFAULT_SIZES


@pytest.mark.parametrize('size', ['mini', 'tiny', 'small'])
def test_the_baseline_is_as_large_as_its_twin(size: str) -> None:
    ours, theirs = count(f's4nd_isotropic_{size}'), count(f'conv2d_isotropic_{size}')
    assert abs(theirs / ours - 1) < 0.02
