"""Raw audio: SaShiMi, quantizers, data and generation. Its name is `s4nd.audio`; a checkout also has it as `audio`.

Train with `s4nd train` and a configuration from configs/audio; generate with `generate` or `s4nd generate`.
"""

if __name__ == 'audio':
    from s4nd._checkout import alias

    alias()

from .generation import Generator, Sampling, generate, load_generator
from .models.backbone import SaShiMiBackbone
from .models.sashimi import SaShiMi
from .quantization import Quantizer
from .tasks import AudioTask, AutoregressiveTask, build

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
