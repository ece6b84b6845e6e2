"""How good is generated sound: bits per sample, FID, IS, mIS and AM, by the published protocol (arXiv 2202.09729).

`nll` measures a model on a part of its data. `evaluate` passes a folder of generated clips through a spectrogram
classifier (train.py configs/audio/digits_mel.yaml) and compares them with the classifier's own data, or `real`: with
training clips for the FID and the AM, and with a row of real test clips. Where the autoregressive model that generated
the clips is known, `generated_bits` gives their likelihoods, and one more row drops the least likely 40 % and the most
likely 5 %, as every published autoregressive figure does: the published code tunes the two thresholds, but always
arrives at these. Figures of different classifiers do not compare.

Shape legend: N, M = clips, D = features, K = classes, L = samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from s4nd.training.checkpoint import config_beside, find_weights, load_weights, read_metadata, stored_args
from s4nd.training.config import load_config

from ..data.files import class_of, scan_folder
from ..generation.generator import class_numbers, load_generator
from ..io import read_audio
from ..models import SPECTROGRAM_NAME, build_model
from ..models.spectrogram import SpectrogramClassifier
from ..tasks import AudioConfig, AudioTask, AutoregressiveTask, shift_right

# Dropped before scoring: the least likely 40 % and the most likely 5 %.
LOWER, UPPER = 0.40, 0.95
PAIRS = 10_000
BATCH = 32


@dataclass(frozen=True)
class Seen:
    """What the classifier makes of clips: features (N, D) and class probabilities (N, K)."""

    features: Tensor
    probabilities: Tensor

    def __getitem__(self, index: Tensor) -> 'Seen':
        return Seen(self.features[index], self.probabilities[index])

    def __len__(self) -> int:
        return len(self.features)


def fid(a: Tensor, b: Tensor) -> float:
    """Compute the Fréchet distance of the Gaussians fitted to features a (N, D) and b (M, D).

    It is ‖μ-ν‖² + tr(S + T - 2 (S T)^½) in float64: Heusel et al. 2017 (arXiv 1706.08500), equation 6. Raises
    ValueError for fewer than two clips.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f'the FID needs at least two clips on each side, got {len(a)} and {len(b)}')
    a, b = a.double(), b.double()
    S, T = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(S)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # (S T)^½ and (S^½ T S^½)^½ have the same trace, and the second is symmetric.
    cross = torch.linalg.eigvalsh(root @ T @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + S.trace() + T.trace() - 2 * cross
    return max(distance.item(), 0.0)


def inception_score(probabilities: Tensor, seed: int = 0) -> float:
    """Compute the IS of class probabilities (N, K): exp of the mean KL of one random half to the mean of the other.

    Salimans et al. 2016 (arXiv 1606.03498), with the halves of the published audio code.
    """
    p = _shuffled(probabilities, seed)
    half = len(p) // 2
    return _kl(p[:half], p[half:].mean(0)).mean().exp().item()


def modified_inception_score(probabilities: Tensor, seed: int = 0, pairs: int = PAIRS) -> float:
    """Compute the mIS of class probabilities (N, K): exp of the mean KL over random pairs (arXiv 1706.02071)."""
    p = probabilities.double()
    i, j = torch.randint(len(p), (2, pairs), generator=torch.Generator().manual_seed(seed))
    return _kl(p[i], p[j]).mean().exp().item()


def am_score(real: Tensor, generated: Tensor) -> float:
    """Compute the AM of class probabilities: KL(mean of real ‖ mean of generated) + mean entropy of generated.

    Zhou et al. 2018 (arXiv 1703.02000), equation 24.
    """
    real, generated = real.double(), generated.double()
    entropy = -torch.xlogy(generated, generated).sum(1).mean()
    return (_kl(real.mean(0), generated.mean(0)) + entropy).item()


def likelihood_rejection(bits: Tensor, lower: float = LOWER, upper: float = UPPER) -> Tensor:
    """Choose the clips (N bits per sample) that stay without the least likely `lower` and those above `upper`."""
    order = bits.argsort(descending=True, stable=True)
    return order[round(lower * len(bits)) : round(upper * len(bits))]


def scores(real: Seen, generated: Seen, seed: int = 0) -> dict[str, float]:
    """Compute n, FID, IS, mIS and AM of generated clips against real ones."""
    p = generated.probabilities
    return {
        'n': len(generated),
        'FID': fid(real.features, generated.features),
        'IS': inception_score(p, seed),
        'mIS': modified_inception_score(p, seed),
        'AM': am_score(real.probabilities, p),
    }


@torch.no_grad()
def see(classifier: SpectrogramClassifier, clips: Dataset[Tensor] | Sequence[Tensor]) -> Seen:
    """Compute features and probabilities of all clips (clip_samples,)."""
    found = [classifier.eval().features(waves) for waves in DataLoader(cast(Dataset[Tensor], clips), BATCH)]
    return Seen(
        torch.cat([features for features, _ in found]), torch.cat([probabilities for _, probabilities in found])
    )


@torch.no_grad()
def bits_of_clips(model: nn.Module, codes: Tensor, zero_code: int, label: Tensor | None = None) -> Tensor:
    """Compute bits per sample (N,) of codes (N, L), with classes (N,) if any, under an autoregressive model."""
    found = []
    for i in range(len(codes)):
        given = {} if label is None else {'label': label[i : i + 1]}
        logits = model(shift_right(codes[i : i + 1], zero_code), **given)
        found.append(F.cross_entropy(logits[0].float(), codes[i]) / math.log(2))
    return torch.stack(found)


def nll(checkpoint: str | Path, part: str = 'test', real: str | None = None) -> dict[str, Any]:
    """Measure bits per sample of a trained model on a part of the data of its run (at `real`, if it has moved).

    Raises:
        FileNotFoundError: no such run.
        ValueError: another part or kind of model.
    """
    config = _config_of(checkpoint, real)
    config.eval.limit = None
    task = AudioTask.from_config(config)
    if not isinstance(task, AutoregressiveTask):
        raise ValueError(f'{checkpoint} holds a {config.model.name}: only an autoregressive model has bits per sample')
    if part not in task.parts:
        raise ValueError(f'unknown part {part!r}: expected one of {", ".join(task.parts)}')
    with torch.no_grad():
        bits = task.nll(task.load_model(find_weights(checkpoint)), 'cpu', part)
    return {'checkpoint': str(checkpoint), 'part': part, 'clips': len(task.parts[part]), 'bits': bits}


def load_classifier(checkpoint: str | Path) -> SpectrogramClassifier:
    """Load a trained spectrogram classifier. Raises FileNotFoundError, or ValueError for weights of another model."""
    path = find_weights(checkpoint)
    metadata = read_metadata(path)
    if metadata.get('model') != SPECTROGRAM_NAME:
        raise ValueError(f'{path} holds the weights of {metadata.get("model")}, expected {SPECTROGRAM_NAME}')
    model: Any = build_model(SPECTROGRAM_NAME, stored_args(path, metadata))
    load_weights(path, model, SPECTROGRAM_NAME)
    return model.eval()


def evaluate(
    generated: str | Path,
    classifier: str | Path,
    *,
    bits: Tensor | None = None,
    real: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute all metrics of generated clips: rows for real test clips, for all clips, and for those after rejection.

    Args:
        generated: folder of sound files of any rate; each is cut or filled up with silence to the classifier's length.
            A silent one counts as any other.
        classifier: run of a spectrogram classifier; its data are the real clips.
        bits: bits per sample (N,) of the files, in order of their names, under the autoregressive model that generated
            them (`generated_bits`), for the rejection; None: no such row.
        real: where the classifier's data lies now, if not where it was.
        seed: of the halves of the IS and the pairs of the mIS.
    """
    config = _config_of(classifier, real)
    judge = load_classifier(classifier)
    task = AudioTask.from_config(config)
    files, passed_over = scan_folder(generated, silent=True)
    data = config.data
    waves = [_window(file.path, data.sample_rate, data.clip_samples) for file in files]
    if data.normalize != 'none':
        waves = [wave / wave.abs().max().clamp(min=1e-8) for wave in waves]
    train, test, made = (see(judge, clips) for clips in (task.parts['train'], task.parts['test'], waves))
    labels = torch.tensor(task.parts['test'].labels)
    rows = {'real test clips': scores(train, test, seed), 'generated, all': scores(train, made, seed)}
    if bits is not None:
        if len(bits) != len(files):
            raise ValueError(f'{generated}: {len(files)} usable files, but likelihoods of {len(bits)}')
        kept = likelihood_rejection(bits)
        rows[f'generated, {LOWER:.0%} least and {1 - UPPER:.0%} most likely dropped'] = scores(train, made[kept], seed)
    return {
        'generated': str(generated),
        'passed_over': len(passed_over),
        'classifier': str(classifier),
        'classifier_test_accuracy': 100 * (test.probabilities.argmax(1) == labels).double().mean().item(),
        'real_training_clips': len(train),
        'seed': seed,
        'rows': rows,
    }


def generated_bits(checkpoint: str | Path, generated: str | Path, labels: str = 'none') -> Tensor:
    """Compute bits per sample (N,) of the files in a folder, in order of their names, under the model that made them.

    labels: where the class of a file is written ('folder' or 'name'), for a model with classes. Raises ValueError for a
    model that has no likelihoods, a missing `labels` or a class that the model does not know.
    """
    source = load_generator(checkpoint)
    if source.quantizer is None:
        raise ValueError(f'{checkpoint} is a diffusion model: only an autoregressive model has likelihoods')
    if bool(source.classes) != (labels != 'none'):
        wish = f'expected labels=folder or labels=name ({", ".join(source.classes)})' if source.classes else 'has none'
        raise ValueError(f'labels={labels!r} does not fit the classes of {checkpoint}: {wish}')
    found = []
    for file in scan_folder(generated, silent=True)[0]:
        codes = source.quantizer.encode(read_audio(file.path, sample_rate=source.sample_rate)[0])
        label = class_numbers(source, class_of(file.path, labels), 1) if source.classes else None
        found.append(bits_of_clips(source.model, codes[None], source.quantizer.zero_code, label))
    return torch.cat(found)


def table(report: dict[str, Any]) -> str:
    """Format the rows of `evaluate`, with what they were measured with."""
    lines = [
        f'classifier {report["classifier"]}: {report["classifier_test_accuracy"]:.2f} % of the test clips right; '
        f'reference: {report["real_training_clips"]} training clips; seed {report["seed"]}',
        f'{report["generated"]}: {report["rows"]["generated, all"]["n"]} clips, {report["passed_over"]} passed over',
        f'{"":<55}{"n":>6}{"FID":>9}{"IS":>8}{"mIS":>9}{"AM":>8}',
    ]
    for name, row in report['rows'].items():
        lines.append(f'{name:<55}{row["n"]:>6}{row["FID"]:>9.3f}{row["IS"]:>8.3f}{row["mIS"]:>9.2f}{row["AM"]:>8.3f}')
    if len(report['rows']) == 2:
        lines.append('no rejection: the checkpoint of an autoregressive model that generated the clips was not given')
    return '\n'.join(lines)


def _window(path: Path, sample_rate: int, samples: int) -> Tensor:
    wave = read_audio(path, sample_rate=sample_rate)[0][:samples]
    return F.pad(wave, (0, samples - len(wave)))


def _config_of(checkpoint: str | Path, real: str | None) -> AudioConfig:
    """The configuration of the run that a checkpoint belongs to."""
    path = config_beside(find_weights(checkpoint))
    if path is None:
        raise FileNotFoundError(f'no config.yaml beside {checkpoint}, which says what data it was trained on')
    config = load_config(path, [] if real is None else [f'data.root={real}'])
    if not isinstance(config, AudioConfig):
        raise ValueError(f'{checkpoint} is a run of task {config.task}, expected audio')
    if config.data.root is None and config.data.kind != 'plucked':
        raise ValueError(f'real must be given (real=…): recordings of the kind that {checkpoint} was trained on')
    return config


def _shuffled(rows: Tensor, seed: int) -> Tensor:
    return rows.double()[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=1e-12))).sum(-1)
