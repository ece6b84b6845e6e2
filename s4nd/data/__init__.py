"""Images and clips at a chosen resolution, and the embedded procedural sets."""

from s4nd.data.batches import Batches
from s4nd.data.image_set import NORMALIZATION, DataError, ImageSet, PixelSet, Splits
from s4nd.data.image_task import ImageTask
from s4nd.data.moving import MOTIONS, MovingSet
from s4nd.data.named import fashion_mnist, load_images
from s4nd.data.resample import area_weights, resize
from s4nd.data.shapes import ShapeSet
from s4nd.data.video_files import ClipError, read_clip
from s4nd.data.video_grid import ClipGrid
from s4nd.data.video_named import load_video
from s4nd.data.video_set import ClipFiles
from s4nd.data.video_task import VideoTask

__all__ = [
    'MOTIONS',
    'NORMALIZATION',
    'Batches',
    'ClipError',
    'ClipFiles',
    'ClipGrid',
    'DataError',
    'ImageSet',
    'ImageTask',
    'MovingSet',
    'PixelSet',
    'ShapeSet',
    'Splits',
    'VideoTask',
    'area_weights',
    'fashion_mnist',
    'load_images',
    'load_video',
    'read_clip',
    'resize',
]
