"""Flat keywords find the model, the layer or the kernel that declares them."""

import pytest

from audio.models.backbone import SaShiMiBackbone
from audio.models.classifier import WaveClassifier
from audio.models.denoiser import DiffusionSaShiMi
from audio.models.keywords import layer_keywords, model_keywords
from audio.models.sashimi import SaShiMi
from s4nd.layers import S4


def test_flat_keywords_are_sorted() -> None:
    given = {'d_model': 8, 'kernel': 's4d', 'dt_min': 0.01, 'n_ssm': 2, 'mixer_args': {'d_state': 4}}
    found = model_keywords(SaShiMiBackbone, given, owner='it', without=('condition',), layer=S4)
    mixer_args = {'d_state': 4, 'kernel': 's4d', 'dt_min': 0.01, 'kernel_args': {'n_ssm': 2}}
    assert found['d_model'] == 8 and found['mixer_args'] == mixer_args
    assert found['n_layers'] == 8 and 'condition' not in found  # the default, and what the model decides itself
    nested = layer_keywords({'kernel_args': {'n_ssm': 2}, 'discretization': 'bilinear', 'kernel': 's4d'}, owner='it')
    assert nested['kernel_args'] == {'n_ssm': 2, 'discretization': 'bilinear'}


def test_a_flat_model_is_the_nested_one() -> None:
    flat = SaShiMi(4, d_model=4, n_layers=1, pool=(2,), kernel='s4d', d_state=4, n_ssm='d_model')
    mixer_args = {'kernel': 's4d', 'd_state': 4, 'kernel_args': {'n_ssm': 'd_model'}}
    nested = SaShiMi(4, d_model=4, n_layers=1, pool=(2,), mixer_args=mixer_args)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (flat, nested)]
    assert shapes[0] == shapes[1] and shapes[0]['backbone.center.0.s4.kernels.0.log_A_real'][0] == 8


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: SaShiMi(krenel='s4d'), "SaShiMi takes no 'krenel'; did you mean 'kernel'"),
        (lambda: SaShiMi(n_layer=2), "SaShiMi takes no 'n_layer'; did you mean 'n_layers'"),
        (lambda: SaShiMi(bidirectional=True), "SaShiMi takes no 'bidirectional'"),
        (lambda: DiffusionSaShiMi(bidirectional=True), "DiffusionSaShiMi takes no 'bidirectional'"),
        (lambda: DiffusionSaShiMi(d_stat=4), "did you mean 'd_state'"),
        (lambda: WaveClassifier(3, 64, dimz=(2, 3)), "WaveClassifier takes no 'dimz'; did you mean 'dims'"),
        (lambda: WaveClassifier(3, 64, n_smm=3), "did you mean 'n_ssm'"),
    ],
)
def test_a_typo_is_an_error_that_names_the_nearest(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
