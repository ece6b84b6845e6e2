"""An image model from a checkpoint, and what it makes of a picture."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.models import get_deprecated_models
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, to_tensor

from s4nd.training.checkpoint import UNNAMED, CheckpointError, find_weights, load_weights, read_metadata, stored_args


def is_ours(name: str) -> bool:
    """Whether timm knows `name`, or knew it formerly, as a model of this package."""
    name = get_deprecated_models().get(name) or name
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith('s4nd.')


def load_checkpoint(path: str | Path) -> nn.Module:
    """The trained model, in evaluation mode on the CPU, built with the arguments that the checkpoint names.

    It is trained at the size that its weights were trained at, whatever the arguments say.

    Args:
        path: a weights file, or a run's folder (its best weights, else the last).

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is damaged, or holds something else than the weights of an image model.
    """
    path = find_weights(path)
    metadata = read_metadata(path)
    if 'model' not in metadata:
        raise CheckpointError(f'{path} {UNNAMED}')
    name = metadata['model']
    if not timm.is_model(name):
        raise CheckpointError(f'{path} holds the weights of {name}, which is no image model')
    if 'args' not in metadata:
        raise CheckpointError(f'{path}: its metadata lacks args, the arguments that {name} was built with')
    model = _build(path, name, stored_args(path, metadata))
    load_weights(path, model, name)
    return model.eval()


def class_names(path: str | Path) -> list[str]:
    """Read the names of the classes of a checkpoint, [] where it has none. Raises as `load_checkpoint`."""
    return json.loads(read_metadata(find_weights(path)).get('classes', '[]'))


@torch.no_grad()
def probabilities(model: nn.Module, picture: Image.Image) -> Tensor:
    """Compute the probability of each class, (K,), for a picture at its own size."""
    cfg: Any = model.pretrained_cfg
    x = normalize(to_tensor(picture.convert('RGB')), cfg['mean'], cfg['std'])
    return model.eval()(x[None]).softmax(-1)[0]


def _build(path: Path, name: str, args: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **args)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{path}: {name} cannot be built with its arguments {args} ({error})') from error
