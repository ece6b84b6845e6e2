"""Models of timm, ours among them, by name and keywords."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
from torch import nn

from s4nd.models import is_ours
from s4nd.options import ConfigError, built, nearest

__all__ = ['check_name', 'is_ours', 'make_timm_model']


def check_name(name: str) -> None:
    """Raise ConfigError, naming the nearest of our models, where timm knows no model `name`."""
    if not timm.is_model(name):
        ours = [model for model in timm.list_models() if is_ours(model)]
        raise ConfigError(f"model.name: timm has no model '{name}'{nearest(name, ours)}")


def make_timm_model(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Build the model `name` from exactly these keywords.

    Raises:
        ConfigError: an unknown name or keyword, or a value that the model refuses.
    """
    check_name(name)
    # timm's factory drops what is null, known or not; the model's own function does not.
    build = timm.model_entrypoint(name) if None in args.values() else partial(timm.create_model, name)
    return built(build, args)
