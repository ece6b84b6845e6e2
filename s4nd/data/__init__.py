"""Images at a chosen resolution, and the embedded procedural set."""

from s4nd.data.batches import Batches
from s4nd.data.image_set import NORMALISATION, DataError, ImageSet, PixelSet, Splits
from s4nd.data.image_task import ImageTask
from s4nd.data.named import load_images
from s4nd.data.resample import area_weights, resize
from s4nd.data.shapes import ShapeSet

__all__ = [
    'NORMALISATION',
    'Batches',
    'DataError',
    'ImageSet',
    'ImageTask',
    'PixelSet',
    'ShapeSet',
    'Splits',
    'area_weights',
    'load_images',
    'resize',
]
