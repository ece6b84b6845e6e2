"""Raw audio: SaShiMi, quantisers, data and generation.

Train with train.py and a configuration from configs/audio, generate with `python -m audio.generate`.
"""

from audio.quantization import Quantizer
from audio.sashimi import SaShiMi, SaShiMiBackbone
from audio.task import AutoregressiveTask, build

__all__ = ['AutoregressiveTask', 'Quantizer', 'SaShiMi', 'SaShiMiBackbone', 'build']
