"""Weights of timm's ConvNeXt and ViT in their S4ND counterparts: everything but what S4ND replaces.

    model = timm.create_model('s4nd_convnext_tiny')
    print(s4nd.load_timm_weights(model, 'convnext_tiny'))

ConvNeXt gives its stem, norms, MLPs, layer scales, downsampling and head, ViT its patch embedding, norms, MLPs and
head. The mixers stay as they are initialized, so the model wants fine-tuning. With `mixer='conv2d'` a ConvNeXt is taken
whole and computes the same.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from s4nd.models._backbone import Backbone, checkpoint_filter_fn
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_vit import S4NDViT

__all__ = ['WeightsReport', 'load_timm_weights']

# (pattern of a timm name, our name); the first that matches counts.
_CONVNEXT = [
    (r'stem\.0\.', 'stem.proj.'),
    (r'stem\.1\.', 'stem.norm.'),
    (r'(stages\.\d+\.downsample)\.0\.', r'\1.norm.'),
    (r'(stages\.\d+\.downsample)\.1\.', r'\1.proj.'),
    (r'(stages\.\d+\.blocks\.\d+)\.conv_dw\.', r'\1.mixer.'),
    (r'(stages\.\d+\.blocks\.\d+)\.norm\.', r'\1.mlp.norm.'),
    (r'(stages\.\d+\.blocks\.\d+)\.mlp\.', r'\1.mlp.mlp.'),
    (r'(stages\.\d+\.blocks\.\d+)\.gamma$', r'\1.mlp.scale.gamma'),
]
_VIT_BLOCK = [
    (r'(.*\.)norm1\.', r'\1norm.'),
    (r'(.*\.)norm2\.', r'\1mlp.norm.'),
    (r'(.*\.)mlp\.', r'\1mlp.mlp.'),
]
_VIT = [
    (r'patch_embed\.proj\.', 'stem.proj.'),
    (r'fc_norm\.', 'norm.'),
    (r'head\.', 'head.fc.'),
]
# (pattern of a timm name, why it has no place).
_NO_PLACE = [
    (r'.*\.conv_dw\.', 'replaced by S4ND'),
    (r'.*\.attn\.', 'attention, replaced by S4ND'),
    (r'.*pos_embed|rope\.', 'not needed: the kernels depend on position'),
    (r'cls_token|reg_token|dist_token|head_dist\.|attn_pool\.', 'the head pools the mean of the patches'),
]


@dataclasses.dataclass
class WeightsReport:
    """What `load_timm_weights` did. `str(report)` is a summary.

    Attributes:
        taken: our name -> name in the source.
        not_taken: name in the source -> why.
        left: our parameters and buffers that stay as they were.
        sizes: number of values under every one of our names.
        normalization: (mean, std) of the images, taken into `model.pretrained_cfg`; None where the source tells none.
    """

    taken: dict[str, str]
    not_taken: dict[str, str]
    left: list[str]
    sizes: dict[str, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __str__(self) -> str:
        def count(names: Any) -> str:
            return f'{len(names)} tensors, {sum(self.sizes[name] for name in names):,} values'

        lines = [f'taken: {count(self.taken)}', *_grouped(dict.fromkeys(self.taken, ''))]
        lines += [f'not taken from the source: {len(self.not_taken)} tensors', *_grouped(self.not_taken)]
        lines += [f'left as initialized: {count(self.left)}', *_grouped(dict.fromkeys(self.left, ''))]
        if self.normalization is not None:
            lines.append('images: mean {}, std {}'.format(*self.normalization))
        return '\n'.join(lines)


def load_timm_weights(model: Backbone, source: nn.Module | Mapping[str, Any] | str) -> WeightsReport:
    """Copy into `model` what a timm ConvNeXt or ViT has in common with it; the rest is left as it is.

    A first convolution with another number of input channels is adapted as timm does. From a timm model, mean and std
    of the images go into `model.pretrained_cfg`.

    Args:
        model: an S4NDConvNeXt or S4NDViT.
        source: a timm model, its state dict, or the name of a timm model with published weights (downloaded).

    Raises:
        ValueError: a model of another family, or a source in which nothing agrees with it.
    """
    if not isinstance(model, (S4NDConvNeXt, S4NDViT)):
        raise ValueError(f'expected an S4NDConvNeXt or S4NDViT, which have counterparts in timm, got {type(model)}')
    if isinstance(source, str):
        source = timm.create_model(source, pretrained=True)
    weights = checkpoint_filter_fn(source.state_dict() if isinstance(source, nn.Module) else source, model)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith('training_grid')}
    taken: dict[str, str] = {}
    not_taken: dict[str, str] = {}
    for name, value in weights.items():
        ours = _own_name(name, model)
        value = _fitted(ours, value, own)
        if ours not in own:
            not_taken[name] = next((why for pattern, why in _NO_PLACE if re.match(pattern, name)), 'no such part')
        elif value.shape != own[ours].shape:
            not_taken[name] = f'its shape {list(value.shape)} is {list(own[ours].shape)} here'
        elif ours in taken:
            not_taken[name] = f'{taken[ours]} stands there'
        else:
            own[ours].copy_(value)
            taken[ours] = name
    if not taken:
        wanted = 'ConvNeXt' if isinstance(model, S4NDConvNeXt) else 'ViT'
        raise ValueError(f'nothing agrees: expected weights of a timm {wanted}, got {list(weights)[:5]} …')
    left = [name for name in own if name not in taken]
    report = WeightsReport(taken, not_taken, left, {name: value.numel() for name, value in own.items()})
    if isinstance(source, nn.Module):
        report.normalization = _take_normalization(model, source)
    return report


def _own_name(name: str, model: Backbone) -> str:
    """What a timm tensor is called here, whether or not the model has it."""
    rules = _CONVNEXT
    if isinstance(model, S4NDViT):
        rules = _VIT
        block = re.match(r'blocks\.(\d+)\.', name)
        if block:
            name, rules = _block_place(int(block[1]), model) + name[block.end() :], _VIT_BLOCK
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _block_place(index: int, model: Backbone) -> str:
    """The prefix of block `index`, counted through all stages."""
    for i, stage in enumerate(model.stages):
        if index < len(stage.blocks):
            return f'stages.{i}.blocks.{index}.'
        index -= len(stage.blocks)
    return f'stages.{len(model.stages)}.blocks.{index}.'


def _fitted(name: str, value: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """A patch embedding for as many input channels as the model has; anything else as it is."""
    if name != 'stem.proj.weight' or value.dim() != 4 or value.shape[2:] != own[name].shape[2:]:
        return value
    return adapt_input_conv(own[name].shape[1], value)


def _take_normalization(model: Backbone, source: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    cfg = getattr(source, 'pretrained_cfg', None)
    if not cfg or len(cfg['mean']) != model.in_chans:
        return None
    normalization = {'mean': tuple(cfg['mean']), 'std': tuple(cfg['std'])}
    model.pretrained_cfg = {**model.pretrained_cfg, **normalization}
    return normalization['mean'], normalization['std']


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """One line for all names that differ in their numbers only and have one reason."""
    groups: dict[tuple[str, str], int] = {}
    for name, why in reasons.items():
        key = (re.sub(r'\.\d+(?=\.|$)', '.*', name), why)
        groups[key] = groups.get(key, 0) + 1
    return [f'  {n:3d} x {name}' + (f'  ({why})' if why else '') for (name, why), n in groups.items()]
