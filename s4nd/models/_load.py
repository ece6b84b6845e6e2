"""An image model from a checkpoint of `train.py`."""

import json
from pathlib import Path
from typing import Any

import timm
from torch import nn

from s4nd.training.checkpoint import CheckpointError, find_weights, load_weights, read_metadata


def is_ours(name: str) -> bool:
    """Whether timm knows `name` as a model of this package."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith('s4nd.')


def load_checkpoint(path: str | Path, img_size: int | tuple[int, int] | None = None) -> nn.Module:
    """The trained model, in evaluation mode on the CPU, built with the arguments that the checkpoint names.

    Args:
        path: a weights file, or a run's folder (its best weights, else the last).
        img_size: re-anchor the model to this training size, in pixels (`set_input_size`): for training that goes on at
            another size. Not needed for running at one.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is damaged, or holds something else than the weights of an image model.
        ValueError: `img_size` is not one or two positive integers, is smaller than the model can see, or is given for
            a model that cannot be re-anchored.
    """
    path = find_weights(path)
    metadata = read_metadata(path)
    name = metadata.get('model', 'an unnamed model')
    if not timm.is_model(name):
        raise CheckpointError(f'{path} holds the weights of {name}, which is no image model')
    if 'args' not in metadata:
        raise CheckpointError(f'{path}: its metadata lacks args, the arguments that {name} was built with')
    model = _build(path, name, json.loads(metadata['args']))
    load_weights(path, model, name)
    if img_size is not None:
        if not hasattr(model, 'set_input_size'):
            raise ValueError(f'{name} cannot be re-anchored to another size, got img_size={img_size}')
        model.set_input_size(img_size=img_size)
    return model.eval()


def _build(path: Path, name: str, args: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **args)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: {name} cannot be built with its arguments {args} ({error})') from error
