"""Models of sound, by the names that configurations and weights have for them."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from s4nd.options import ConfigError, built, named_model, nearest

from .classifier import WaveClassifier
from .denoiser import DiffusionSaShiMi
from .sashimi import SaShiMi
from .spectrogram import SpectrogramClassifier

MODEL_NAME = 'sashimi'
DIFFUSION_NAME = 'sashimi_diffusion'
CLASSIFIER_NAME = 'audio_classifier'
SPECTROGRAM_NAME = 'spectrogram_classifier'
MODELS: dict[str, type[nn.Module]] = {
    MODEL_NAME: SaShiMi,
    DIFFUSION_NAME: DiffusionSaShiMi,
    CLASSIFIER_NAME: WaveClassifier,
    SPECTROGRAM_NAME: SpectrogramClassifier,
}

__all__ = ['MODELS', 'DiffusionSaShiMi', 'SaShiMi', 'SpectrogramClassifier', 'WaveClassifier', 'build_model']


def build_model(name: str, args: Mapping[str, Any], bits: int = 8) -> nn.Module:
    """Build a model from its name and keywords; `bits` is the depth of a SaShiMi's codes.

    Raises:
        ConfigError: for an unknown name or keyword, naming the nearest right one, and a missing or unfit value.
    """
    cls: Any = named_model(MODELS, name, 'model of sound')
    parameters = inspect.signature(cls).parameters.values()
    known = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ('bits', 'device', 'dtype')}
    flat = any(p.kind is p.VAR_KEYWORD for p in parameters)  # the class checks further keywords itself
    for key in args:
        if key in ('bits', 'device', 'dtype') or (key not in known and not flat):
            raise ConfigError(f"model.args: {name} takes no '{key}'{nearest(key, list(known))}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in args:
            raise ConfigError(f'model.args.{key}: must be given')
    return built(partial(cls, bits) if cls is SaShiMi else cls, args)
