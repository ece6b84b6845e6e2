"""Raw audio: SaShiMi, quantizers, data and generation.

Train with train.py and a configuration from configs/audio; generate with `generate` or the command `s4nd generate`.
"""

from audio.generation import Generator, Sampling, generate, load_generator
from audio.models.backbone import SaShiMiBackbone
from audio.models.sashimi import SaShiMi
from audio.quantization import Quantizer
from audio.tasks import AudioTask, AutoregressiveTask, build

__all__ = [
    'AudioTask',
    'AutoregressiveTask',
    'Generator',
    'Quantizer',
    'SaShiMi',
    'SaShiMiBackbone',
    'Sampling',
    'build',
    'generate',
    'load_generator',
]
