"""The augmentation of training images by timm."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform

from s4nd.data.images.options import ImageData
from s4nd.data.labeled import NORMALIZATION, DataError

__all__ = ['training_transform']


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The published policies go down to 0 bits, a black picture, which Pillow refuses since version 13."""
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


for _name, _operation in list(auto_augment.NAME_TO_OP.items()):
    if _operation is auto_augment.posterize:
        auto_augment.NAME_TO_OP[_name] = _posterize


def training_transform(data: ImageData) -> Any:
    """What timm makes of a picture in training: a random crop, `auto_augment`, `random_erasing`, normalized floats.

    Raises:
        DataError: timm knows no such policy.
    """
    mean, std = NORMALIZATION['imagenet']
    try:
        return create_transform(
            data.size, is_training=True, hflip=0.5 if data.flip else 0.0, auto_augment=data.auto_augment,
            color_jitter=None,  # type: ignore[arg-type]  # timm takes it, and None draws nothing
            interpolation='random', re_prob=data.random_erasing, re_mode='pixel', mean=mean, std=std,
        )  # fmt: skip
    except (AssertionError, KeyError, ValueError) as error:
        expected = "expected one of timm's policies, such as rand-m9-mstd0.5-inc1"
        raise DataError(f"data.auto_augment: {expected}, got '{data.auto_augment}' ({error})") from error
