"""ViS4mer: a long video's frames through an image model, then S4 over time (arXiv 2204.01692).

Shape legend: B = batch, (C, T, H, W) = a video of T frames, n = frames at a time, D = features of a token.
"""

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import checkpoint, generate_default_cfgs, register_model, register_model_deprecations
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from s4nd.models._arguments import choose, image_size, positive
from s4nd.models._backbone import checkpoint_filter_fn, create, model_cfg
from s4nd.models._parts import check_input
from s4nd.models.vis4mer_head import ViS4merBlock, ViS4merHead
from s4nd.resolution import warn_of_size

__all__ = ['ViS4mer', 'ViS4merBlock', 'ViS4merHead', 'checkpoint_filter_fn']


class ViS4mer(ViS4merHead):
    """Frames through an image model, then `ViS4merHead`: video (B, in_chans, T, H, W) -> logits (B, num_classes).

    The weights are those of a `ViS4merHead`, and `encoder`: a head trained on stored features loads into it.

    Args:
        in_chans: channels of a frame.
        encoder: timm's name of the image model, with a pretrained tag or without.
        encoder_args: further keywords of `timm.create_model` for it, such as `pretrained` (`timm.create_model` takes
            that as `encoder_pretrained` as well).
        tokens: 'frame': one token per frame, what the image model's classifier would see. 'patch': all tokens, or
            positions of the feature map, of each frame in raster order, frame after frame, as published (with ViT-L,
            197 per frame, at one frame per second). S4 reads them as one sequence, so another number of patches per
            frame is another step as well.
        freeze: the encoder is not trained, keeps its statistics and stores nothing for gradients (published). False
            trains it.
        chunk: frames that go through the encoder at a time, at most. A frozen one needs memory for so many, and so does
            a trained one after `set_grad_checkpointing()`. Batch statistics of a trained encoder are those of a chunk.
        img_size: pixels of the training frames, one number or (height, width), for encoders that are made for one size;
            None: the encoder's own.
        num_frames: frames of the training clips. Another number is then the same duration at another frame rate, and
            S4 steps accordingly (`set_input_size` says otherwise). None: the frame rate is that of training, and more
            frames are a longer clip.
        The rest: as `ViS4merHead`.

    Raises:
        ValueError: an encoder that timm does not know, and as `ViS4merHead`; in the forward, for anything but video.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = 'avg',
        encoder: str = 'resnet18',
        encoder_args: Mapping[str, Any] | None = None,
        tokens: str = 'frame',
        freeze: bool = True,
        chunk: int = 32,
        img_size: int | tuple[int, int] | None = None,
        num_frames: int | None = None,
        dim: int = 1024,
        depth: int = 3,
        mixer_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        choose('tokens', tokens, ('frame', 'patch'))
        positive('chunk', chunk)
        frames = _make_encoder(encoder, in_chans, dict(encoder_args or {}), device, dtype).eval()
        size = image_size(frames.pretrained_cfg['input_size'][1:] if img_size is None else img_size)
        if img_size is not None:
            _resize(frames, size)
        patches = tokens == 'patch'
        per_frame = 0 if num_frames is None else _tokens_per_frame(frames, patches, size)
        super().__init__(
            frames.head_hidden_size if tokens == 'frame' else frames.num_features,
            num_classes,
            global_pool,
            length=None if num_frames is None else positive('num_frames', num_frames) * per_frame,
            dim=dim,
            depth=depth,
            mixer_args=mixer_args,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        self.in_chans, self.freeze, self.chunk = in_chans, freeze, chunk
        self.default_size = False  # as of a `SizedLayer`
        self._patches, self._per_frame, self.img_size = patches, per_frame, size
        self.encoder = frames.requires_grad_(not freeze)
        self.train(self.training)

    @property
    def num_frames(self) -> int | None:
        """Frames of a training clip, None where it is not known."""
        return None if self.length is None or self._per_frame is None else self.length // self._per_frame

    def train(self, mode: bool = True) -> 'ViS4mer':
        """As of any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None) -> None:
        """Give the layers the grids of a model built at this size and number of frames, each kept where None.

        No parameter of S4 changes; more frames are then a longer clip at the frame rate of training. An encoder made
        for one size is changed to `img_size` as timm does it.

        Raises:
            ValueError: sizes that are not positive, or `num_frames` for a model that was built without.
        """
        frames = self.num_frames
        if num_frames is not None:
            if frames is None:
                raise ValueError(f'the model was built without num_frames, got num_frames={num_frames}')
            frames = positive('num_frames', num_frames)
        if img_size is not None:
            self.img_size = image_size(img_size)
            _resize(self.encoder.eval(), self.img_size)
        if frames is not None:
            self._per_frame = _tokens_per_frame(self.encoder.eval(), self._patches, self.img_size)
            self.set_length(frames * self._per_frame)
        self.train(self.training)
        # What goes into the hub's config.json, so that a loaded encoder is the same.
        update_model_input_size(self, self.img_size, num_frames=frames)

    def tokens(self, x: Tensor) -> Tensor:
        """Video (B, in_chans, T, H, W) -> what the encoder makes of its frames, (B, tokens, D)."""
        batch, frames = check_input(x, self.in_chans, axes=3, min_size=1).shape[0], x.shape[2]
        if self.training and self.default_size:
            self.default_size = False
            warn_of_size(x.shape[3:], self.img_size)
        parts = x.transpose(1, 2).flatten(0, 1).tensor_split(max(1, math.ceil(batch * frames / self.chunk)))
        # A frozen encoder is differentiated where the pixels are asked for, as attributions do.
        gradients = torch.is_grad_enabled() and (not self.freeze or x.requires_grad)
        recompute = self.grad_checkpointing and gradients
        with torch.set_grad_enabled(gradients):
            encoded = [
                checkpoint(_encode, self.encoder, self._patches, part)
                if recompute
                else _encode(self.encoder, self._patches, part)
                for part in parts
            ]
        return torch.cat(encoded).unflatten(0, (batch, frames)).flatten(1, 2)


def _make_encoder(name: str, in_chans: int, options: dict[str, Any], device: Any, dtype: Any) -> nn.Module:
    if not (timm.is_model(name) or name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:'))):
        raise ValueError(f"timm knows no encoder '{name}': expected a name of timm.list_models(), such as 'resnet18'")
    # Only what is asked for: not every model takes a device.
    given = {key: value for key, value in (('device', device), ('dtype', dtype)) if value is not None}
    return timm.create_model(name, in_chans=in_chans, num_classes=0, **options, **given)


def _encode(encoder: nn.Module, patches: bool, frames: Tensor) -> Tensor:
    """Frames (n, C, H, W) -> (n, tokens per frame, D)."""
    if not patches:
        return encoder(frames)[:, None]
    features = encoder.forward_features(frames)
    if features.dim() == 4 and getattr(encoder, 'output_fmt', 'NCHW') == 'NCHW':
        features = features.permute(0, 2, 3, 1)
    return features.flatten(1, -2)


def _resize(encoder: nn.Module, img_size: tuple[int, ...]) -> None:
    """For frames of another size, where the encoder cares."""
    if hasattr(encoder, 'set_input_size'):
        encoder.set_input_size(img_size=img_size)


@torch.no_grad()
def _tokens_per_frame(encoder: nn.Module, patches: bool, img_size: tuple[int, ...]) -> int:
    if not patches:
        return 1
    return _encode(encoder, patches, torch.zeros(1, encoder.in_chans, *img_size, **get_device_dtype(encoder))).shape[1]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return model_cfg(num_classes=10, pool_size=None, classifier='fc', paper_ids='arXiv:2204.01692', **kwargs)


def _video_cfg(first_conv: str) -> dict[str, Any]:
    return _cfg(
        input_size=(3, 224, 224), crop_pct=0.9, first_conv=first_conv, mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        's4nd_vis4mer_tiny.untrained': _video_cfg('encoder.conv1'),
        's4nd_vis4mer_base.untrained': _video_cfg('encoder.patch_embed.proj'),
        # (features of a token, tokens, 1): what stands for (channels, height, width).
        's4nd_vis4mer_tiny_head.untrained': _cfg(input_size=(512, 2048, 1), first_conv='proj'),
        's4nd_vis4mer_base_head.untrained': _cfg(input_size=(1024, 2048, 1), first_conv='proj'),
    }
)


def _create(
    cls: type[ViS4merHead], variant: str, pretrained: bool, args: Mapping[str, Any], given: Mapping[str, Any]
) -> ViS4merHead:
    depth = given.get('depth', 3)
    levels = dict(out_indices=tuple(range(depth)), feature_cls='getter', output_fmt='NLC')
    return create(cls, variant, pretrained, args, given, levels)


@register_model
def s4nd_vis4mer_tiny(pretrained: bool = False, **kwargs: Any) -> ViS4mer:
    """Width 256, one token per frame from ResNet-18 (512 features) unless `encoder` names another."""
    return _create(ViS4mer, 's4nd_vis4mer_tiny', pretrained, dict(encoder='resnet18', dim=256), kwargs)


@register_model
def s4nd_vis4mer_base(pretrained: bool = False, **kwargs: Any) -> ViS4mer:
    """The published model: width 1024, all tokens of ViT-L/16 (1024 features)."""
    args = dict(encoder='vit_large_patch16_224', tokens='patch', dim=1024)
    return _create(ViS4mer, 's4nd_vis4mer_base', pretrained, args, kwargs)


@register_model
def s4nd_vis4mer_tiny_head(pretrained: bool = False, **kwargs: Any) -> ViS4merHead:
    """Width 256, on features (B, T, in_chans), 512 unless `in_chans` says otherwise."""
    return _create(ViS4merHead, 's4nd_vis4mer_tiny_head', pretrained, dict(dim=256), kwargs)


@register_model
def s4nd_vis4mer_base_head(pretrained: bool = False, **kwargs: Any) -> ViS4merHead:
    """The published head: width 1024, on features (B, T, in_chans), 1024 unless `in_chans` says otherwise."""
    return _create(ViS4merHead, 's4nd_vis4mer_base_head', pretrained, dict(dim=1024), kwargs)


_FORMER = ('vis4mer_tiny', 'vis4mer_base', 'vis4mer_tiny_head', 'vis4mer_base_head')
register_model_deprecations(__name__, {name: f's4nd_{name}' for name in _FORMER})
