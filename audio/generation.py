"""Sampling audio from a trained model, one sample at a time."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audio.quantization import Quantizer
from audio.sashimi import SaShiMi
from audio.task import MODEL_NAME, build_model
from s4nd.training.checkpoint import load_weights, read_metadata


@dataclass(frozen=True)
class Generator:
    """A trained model with what turns its codes into sound; sample_rate in Hz."""

    model: SaShiMi
    quantizer: Quantizer
    sample_rate: int


def load_generator(checkpoint: str | Path, device: torch.device | str = 'cpu') -> Generator:
    """Load a weights file, or the best (else the last) weights of a run's folder.

    Raises FileNotFoundError where there is none, ValueError for weights that are not a SaShiMi's or lack what
    generation needs.
    """
    path = _weights_file(Path(checkpoint))
    metadata = read_metadata(path)
    if metadata.get('model') != MODEL_NAME:
        found = metadata.get('model', 'an unnamed model')
        raise ValueError(f'{path} holds the weights of {found}, expected {MODEL_NAME}')
    missing = [key for key in ('args', 'quantizer', 'sample_rate') if key not in metadata]
    if missing:
        raise ValueError(f'{path}: its metadata lacks {", ".join(missing)}')
    quantizer = Quantizer.from_json(metadata['quantizer'])
    model = build_model(MODEL_NAME, json.loads(metadata['args']), quantizer.bits)
    load_weights(path, model, MODEL_NAME)
    return Generator(model.to(device).eval(), quantizer, int(metadata['sample_rate']))


@torch.no_grad()
def sample_codes(
    model: SaShiMi,
    length: int,
    first: int,
    *,
    batch: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw codes (batch, length) int64 on the model's device; the same seed gives the same codes.

    Args:
        model: in eval mode.
        length: samples to draw.
        first: code put before the first sample, as in training (silence).
        temperature: > 0; below 1 sharpens the distribution.
        top_p: in (0, 1]; keep the likeliest codes that together hold this probability.
        progress: called with the number of samples drawn so far, after each.

    Raises ValueError for values outside these ranges.
    """
    check_sampling(length, temperature, top_p)
    device = model.head.weight.device
    random = torch.Generator(device).manual_seed(seed)
    state, system, period = model.init_state(batch), model.system(), model.backbone.period
    codes = torch.empty(batch, length, dtype=torch.int64, device=device)
    code = torch.full((batch,), first, dtype=torch.int64, device=device)
    for i in range(length):
        logits, state = model.step(code, state, system=system, phase=i % period)
        code = draw(logits, temperature, top_p, random)
        codes[:, i] = code
        if progress is not None:
            progress(i + 1)
    return codes


def check_sampling(length: int, temperature: float, top_p: float) -> None:
    """Raise ValueError for values that `sample_codes` cannot use."""
    if length < 1:
        raise ValueError(f'the length must be at least one sample, got {length}')
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f'temperature must be positive and finite, got {temperature}')
    if not 0 < top_p <= 1:
        raise ValueError(f'top_p must be in (0, 1], got {top_p}')


def draw(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> Tensor:
    """One code for each row of logits (B, n) -> (B,)."""
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        ordered, index = probabilities.sort(-1, descending=True)
        # The code that crosses the bound stays, so at least one does.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        return index.gather(-1, torch.multinomial(ordered, 1, generator=random))[:, 0]
    return torch.multinomial(probabilities, 1, generator=random)[:, 0]


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f'no checkpoint at {path}')
        return path
    for name in ('best.safetensors', 'last.safetensors'):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f'no best.safetensors or last.safetensors in {path}')
