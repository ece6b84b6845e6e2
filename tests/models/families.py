"""Small members of every family, with weights large enough for outputs of order 1."""

import copy

import timm
import torch
from torch import nn

import s4nd.models  # noqa: F401  (registers the models)

CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), d_state=8, img_size=64, num_classes=5, ls_init_value=1.0)
VIT = dict(embed_dim=16, depths=(1, 1, 1), patch_size=8, d_state=8, img_size=32, num_classes=5)
ISOTROPIC = dict(dim=16, depths=(1, 1, 1), img_size=16, num_classes=5)
CCNN = dict(dim=12, depths=(1, 1, 1), hidden=6, img_size=16, num_classes=5)


def without_state(options: dict) -> dict:
    """The same for a convolution, which has no state."""
    return {name: value for name, value in options.items() if name != 'd_state'}


SMALL = {
    'convnext': ('s4nd_convnext_micro', CONVNEXT),
    'convnext s4': ('s4nd_convnext_micro', dict(CONVNEXT, kernel='s4', init='fout')),
    'convnext s4nd everywhere': ('s4nd_convnext_micro', dict(CONVNEXT, stem='s4nd', downsample='s4nd', bandlimit=0.5)),
    'convnext resample': ('s4nd_convnext_micro', dict(CONVNEXT, stem='resample')),
    'convnext conv2d': ('s4nd_convnext_micro', without_state(dict(CONVNEXT, mixer='conv2d'))),
    'vit': ('s4nd_vit_tiny_patch16', dict(VIT, bandlimit=0.5)),
    'vit s4nd stem': ('s4nd_vit_tiny_patch16', dict(VIT, stem='s4nd', channels=2, gated=False)),
    'vit 1d': ('s4nd_vit_base_patch16_1d', VIT),
    'isotropic': ('s4nd_isotropic_mini', dict(ISOTROPIC, d_state=8)),
    'isotropic batchnorm': ('s4nd_isotropic_mini', dict(ISOTROPIC, d_state=8, bandlimit=1.0, norm_layer='batchnorm2d')),
    'isotropic conv2d': ('conv2d_isotropic_mini', ISOTROPIC),
    'ccnn batchnorm': ('s4nd_ccnn_mini', CCNN),
}
CONVNEXT3D = dict(
    depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), d_state=8, img_size=32, num_frames=6, num_classes=5, ls_init_value=1.0
)
ISOTROPIC3D = dict(dim=16, depths=(1, 1, 1), patch=1, d_state=8, img_size=8, num_frames=6, num_classes=5)
CLIPS = {
    'convnext3d': ('s4nd_convnext3d_nano', dict(CONVNEXT3D, bandlimit=(1.0, 0.5, 0.5))),
    'convnext3d s4 untied': (
        's4nd_convnext3d_nano',
        dict(CONVNEXT3D, kernel='s4', init=('hippo', 'fout', 'fout'), time_tied=False, time_patch=2),
    ),
    'convnext3d s4nd everywhere': (
        's4nd_convnext3d_nano',
        dict(CONVNEXT3D, stem='s4nd', downsample='s4nd', causal=True, time_padding='replicate'),
    ),
    'convnext3d i3d': ('s4nd_convnext3d_nano', without_state(dict(CONVNEXT3D, mixer='i3d'))),
    'convnext3d s3d': ('s4nd_convnext3d_nano', without_state(dict(CONVNEXT3D, mixer='s3d', time_padding='replicate'))),
    'isotropic3d': ('s4nd_isotropic3d_mini', dict(ISOTROPIC3D, bandlimit=0.5)),
    'isotropic3d i3d': ('s4nd_isotropic3d_mini', without_state(dict(ISOTROPIC3D, mixer='i3d', causal=True))),
}
REGISTERED = [name for name in timm.list_models(['s4nd_*', 'conv2d_isotropic*']) if 'vis4mer' not in name]


_BUILT: dict[str, tuple[nn.Module, torch.Tensor]] = {}  # by case: the model, and the random state that it leaves


def build(case: str, **options) -> nn.Module:
    """The small model of a case, in evaluation mode, from a fixed seed."""
    if options:
        return _build(case, **options)
    if case not in _BUILT:
        _BUILT[case] = _build(case), torch.get_rng_state()
    model, state = _BUILT[case]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def _build(case: str, **options) -> nn.Module:
    name, base = {**SMALL, **CLIPS}[case]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**base, **options}).eval()
    enliven(model)
    return model


def enliven(model: nn.Module) -> None:
    """Scale linear weights to keep the variance of their input: at the usual scale the mixers hardly show."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and not module.weight.is_meta:
            nn.init.kaiming_uniform_(module.weight, a=1.0)


def image(size: int | tuple[int, int], channels: int = 3, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Noise (batch, channels, height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def clip(case: str, frames: int | None = None, size: tuple[int, int] | None = None, seed: int = 1) -> torch.Tensor:
    """Noise (2, 3, frames, height, width), as large as the training clips of the case unless said otherwise."""
    options = CLIPS[case][1]
    frames = options['num_frames'] if frames is None else frames
    height, width = (options['img_size'],) * 2 if size is None else size
    return torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))


def size_of(case: str) -> int:
    return SMALL[case][1]['img_size']


def check_training(model: nn.Module, x: torch.Tensor) -> None:
    """Assert that every parameter gets a gradient, and that checkpointing changes neither these nor the output."""
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]
        results.append([y.detach(), *(g.clone() for g in gradients.values())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-5, rtol=1e-4)
