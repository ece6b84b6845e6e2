"""Raw audio: SaShiMi, quantizers, data and generation.

Train with train.py and a configuration from configs/audio; generate with `generate` or `python -m audio.generate`.
"""

from audio.backbone import SaShiMiBackbone
from audio.generation import Generator, generate, load_generator
from audio.imputation import SSSDS4, impute
from audio.quantization import Quantizer
from audio.sashimi import SaShiMi
from audio.task import AutoregressiveTask, build

__all__ = [
    'SSSDS4',
    'AutoregressiveTask',
    'Generator',
    'Quantizer',
    'SaShiMi',
    'SaShiMiBackbone',
    'build',
    'generate',
    'impute',
    'load_generator',
]
