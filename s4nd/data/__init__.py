"""Images, clips and series at a chosen resolution, and the embedded procedural sets."""

from s4nd.data.clips.files import ClipError, read_clip
from s4nd.data.clips.grid import ClipGrid
from s4nd.data.clips.named import load_video
from s4nd.data.clips.sets import ClipFiles
from s4nd.data.images.batches import Batches
from s4nd.data.images.named import fashion_mnist, load_images
from s4nd.data.images.resize import resize
from s4nd.data.images.sets import ImageSet, PixelSet
from s4nd.data.labeled import NORMALIZATION, DataError, Splits
from s4nd.data.series.masks import blackout, future, missing_segments, random_missing
from s4nd.data.series.sets import load_series
from s4nd.data.synthetic.moving import MOTIONS, MovingSet
from s4nd.data.synthetic.shapes import ShapeSet
from s4nd.resolution import area_weights

__all__ = [
    'MOTIONS',
    'NORMALIZATION',
    'Batches',
    'ClipError',
    'ClipFiles',
    'ClipGrid',
    'DataError',
    'ImageSet',
    'MovingSet',
    'PixelSet',
    'ShapeSet',
    'Splits',
    'area_weights',
    'blackout',
    'fashion_mnist',
    'future',
    'load_images',
    'load_series',
    'load_video',
    'missing_segments',
    'random_missing',
    'read_clip',
    'resize',
]
