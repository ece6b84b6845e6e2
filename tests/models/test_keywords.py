"""Keywords of the layers through `timm.create_model`: folded into `mixer_args`, and refused by name where unknown."""

import inspect
from typing import Any

import pytest
import timm
import torch
from torch import nn

from s4nd import inflate
from s4nd.models._arguments import complete
from s4nd.models._mixers import ClipS4ND
from s4nd.models.ccnn import CCNN
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_isotropic import IsotropicS4ND
from s4nd.models.s4nd_vit import S4NDViT
from s4nd.models.vis4mer import ViS4mer
from tests.models.families import CONVNEXT, CONVNEXT3D, ISOTROPIC, SMALL, build, clip, image, without_state


def same(first: nn.Module, second: nn.Module, x: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(first.eval()(x), second.eval()(x))


def test_flat_keywords_are_those_of_the_layers() -> None:
    flat = build('convnext s4', n_ssm=2, bandlimit=1.0, stem='s4nd', stem_extent=5, in_chans=4)
    torch.manual_seed(0)
    plain = S4NDConvNeXt(
        4,
        **without_state(CONVNEXT),
        stem='s4nd',
        stem_args={'extent': 5},
        mixer_args={'kernel': 's4', 'init': 'fout', 'd_state': 8, 'bandlimit': 1.0, 'kernel_args': {'n_ssm': 2}},
    )
    assert plain.stem.mixer.kernels[0].n_ssm == plain.stages[0].blocks[0].mixer.kernels[1].n_ssm == 2
    plain.load_state_dict(flat.state_dict())
    assert same(flat, plain, image(64, channels=4))
    again = S4NDConvNeXt(**flat.model_args())
    again.load_state_dict(flat.state_dict())
    assert same(flat, again, image(64, channels=4))


def test_flat_stands_over_given_over_the_variant() -> None:
    def states(**options: Any) -> set[int]:
        model = timm.create_model('s4nd_isotropic_mini', **ISOTROPIC, **options)
        return {kernel.d_state for block in model.stages[0].blocks for kernel in block.mixer.kernels}

    assert states() == {20}
    assert states(mixer_args={'d_state': 6}) == {6}
    assert states(mixer_args={'d_state': 6}, d_state=4) == {4}
    # Keywords of the variant's mixer do not hold for another one.
    baseline = timm.create_model('s4nd_isotropic_mini', **ISOTROPIC, mixer='conv2d')
    assert baseline.stages[0].blocks[0].mixer.kernel_size == (5, 5)


def test_kernel_keywords_by_axis() -> None:
    args = complete(S4NDConvNeXt, {}, {'num_frames': 4, 'kernel': ('s4', 's4d', 's4d'), 'n_ssm': (4, None, 2)})
    assert args['mixer_args']['kernel_args'] == [{'n_ssm': 4}, {}, {'n_ssm': 2}]
    args = complete(S4NDConvNeXt, {}, {'num_frames': 4, 'kernel': ('s4', 's4d', 's4d'), 'discretization': 'bilinear'})
    assert args['mixer_args']['kernel_args'] == [{}, *[{'discretization': 'bilinear'}] * 2]
    args = complete(S4NDConvNeXt, {}, {'kernel': 's4', 'rank': 2, 'kernel_args': {'n_ssm': 4, 'rank': 3}})
    assert args['mixer_args']['kernel_args'] == {'n_ssm': 4, 'rank': 2}


def test_each_feature_has_its_own_time_where_it_is_not_tied() -> None:
    mixer = ClipS4ND(6, (4, 5, 5), kernel='s4d', d_state=4, time_tied=False, kernel_args={'n_ssm': 2})
    assert [kernel.n_ssm for kernel in mixer.kernels] == [6, 2, 2]
    model = timm.create_model('s4nd_convnext3d_nano', **CONVNEXT3D, time_tied=False)
    assert model.stages[1].blocks[0].mixer.kernels[0].n_ssm == 12
    assert model(clip('convnext3d')).shape == (2, 5)


@pytest.mark.parametrize(
    ('case', 'options', 'says'),
    [
        ('convnext', {'bandlimt': 1.0}, r"s4nd_convnext_micro\(\) has no keyword 'bandlimt'; did you mean 'bandlimit'"),
        ('convnext', {'dpths': (1, 1)}, "did you mean 'depths'"),
        ('convnext', {'kernel': 's4', 'n_smm': 2}, "did you mean 'n_ssm'"),
        ('convnext', {'stem_extend': 2}, "did you mean 'stem_extent'"),
        ('convnext', {'discretisation': 'zoh'}, "did you mean 'discretization'"),
        ('convnext conv2d', {'d_state': 4}, r"\(mixer='conv2d'\) has no keyword 'd_state'"),
        ('vit', {'theta': 2.0}, "no keyword 'theta'"),  # of the kernel 'lmu'
        ('isotropic', {'causal': True}, "no keyword 'causal'"),
        ('ccnn batchnorm', {'hiden': 4}, "did you mean 'hidden'"),
    ],
)
def test_unknown_keywords_name_the_nearest(case: str, options: dict, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        timm.create_model(SMALL[case][0], **{**SMALL[case][1], **options})


@pytest.mark.parametrize('function', [S4NDConvNeXt, IsotropicS4ND, S4NDViT, CCNN, ViS4mer, inflate])
def test_constructors_stay_short(function: object) -> None:
    assert len(inspect.signature(function).parameters.keys() - {'device', 'dtype'}) <= 16
