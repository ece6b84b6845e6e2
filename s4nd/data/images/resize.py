"""One image at another number of pixels: area averages downwards, bicubic interpolation upwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.resolution import Size, area_weights, parse_size

__all__ = ['resize', 'to_bytes', 'to_float']


def resize(images: Tensor, size: int | Size) -> Tensor:
    """Bring float images (B, C, H, W) to a square of `size`, or to (height, width), axis by axis.

    An axis of at least `size` pixels is averaged by area; a shorter one is interpolated (bicubic), which adds no
    detail: the result shows the same scene with more samples, within the range of the input.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f'expected float images (B, C, H, W), got {images.dtype} of shape {tuple(images.shape)}')
    height, width = images.shape[-2:]
    rows, columns = parse_size(size)
    low, high = images.amin(), images.amax()
    if (height, width) == (rows, columns):
        return images
    if height % rows == 0 and width % columns == 0:
        return F.avg_pool2d(images, (height // rows, width // columns))
    if height > rows:
        images = area_weights(height, rows).to(images) @ images
    if width > columns:
        images = images @ area_weights(width, columns).to(images).mT
    if images.shape[-2:] != (rows, columns):
        # With antialias, torch takes the cubic that keeps straight ramps straight (a = -1/2).
        images = F.interpolate(images, (rows, columns), mode='bicubic', align_corners=False, antialias=True)
        images = images.clamp(low, high)  # bicubic weights overshoot at edges
    return images


def to_float(images: Tensor) -> Tensor:
    """Bytes 0…255 to floats 0…1; floats pass unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_bytes(images: Tensor) -> Tensor:
    """Floats 0…1 to bytes 0…255, rounded."""
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)
