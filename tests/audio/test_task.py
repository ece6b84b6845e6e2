"""The autoregressive task: what the model sees, what it is scored by, and how it is built."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import audio
from audio.datasets import PluckedClips
from audio.generation import load_generator
from audio.io import write_audio
from audio.quantization import Quantizer
from audio.task import AutoregressiveTask, build_model, shift_right
from s4nd import hippo
from s4nd.training.config import load_config
from s4nd.training.loop import Task, fit

CONFIGS = Path(__file__).parents[2] / 'configs'

CONFIG = """
task: audio
model: {name: sashimi, args: {d_model: 4, n_layers: 1, pool: [2], d_state: 4}}
data: {kind: plucked, sample_rate: 1000, clip_samples: 64, batch_size: 2, train_count: 5, test_count: 3, bits: 4}
seed: 3
"""


def config(tmp_path: Path, *overrides: str) -> object:
    path = tmp_path / 'run.yaml'
    path.write_text(CONFIG)
    return load_config(path, overrides)


class Uniform(nn.Module):
    """Equal logits, and a record of what came in."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes, self.seen = codes, []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens)
        return torch.zeros(*tokens.shape, self.codes)


def task(limit: int | None = None, counts: Iterable[int] = (7, 5, 4)) -> AutoregressiveTask:
    parts = {part: PluckedClips(n, 100, 1000, (n,)) for part, n in zip(('train', 'val', 'test'), counts, strict=True)}
    return AutoregressiveTask(parts, Quantizer(bits=6), 1000, 2, seed=1, limit=limit)


def test_it_is_a_task() -> None:
    assert isinstance(task(), Task)
    assert task().metadata == {'quantizer': Quantizer(bits=6).to_json(), 'sample_rate': '1000'}


def test_the_model_sees_the_target_shifted_right_from_silence() -> None:
    codes = torch.tensor([[3, 1, 2], [4, 5, 6]])
    assert shift_right(codes, 8).tolist() == [[8, 3, 1], [8, 4, 5]]
    model, job = Uniform(64), task()
    batch = next(iter(job.train_batches(0)))
    job.loss(model, batch)
    assert torch.equal(model.seen[0], shift_right(batch, 32))


def test_uniform_guess_costs_all_bits() -> None:
    job = task()
    assert job.loss(Uniform(64), next(iter(job.train_batches(0)))).item() == pytest.approx(6 * math.log(2), rel=1e-6)
    metrics = job.evaluate(Uniform(64), 'cpu')
    assert metrics == {'val_nll': pytest.approx(6, rel=1e-6), 'test_nll': pytest.approx(6, rel=1e-6)}
    assert job.monitor in metrics and not job.maximise


def test_evaluation_sees_each_clip_once_and_keeps_to_the_limit() -> None:
    for limit, count in ((None, 5 + 4), (3, 3 + 3), (100, 5 + 4)):
        model = Uniform(64)
        task(limit=limit).evaluate(model, 'cpu')
        assert sum(len(tokens) for tokens in model.seen) == count


def test_batches_follow_from_seed_and_epoch() -> None:
    first, again, later = (torch.cat(list(task().train_batches(epoch))) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert first.shape == (6, 100) and first.dtype == torch.int64
    assert len(task().train_batches(0)) == 3
    assert [len(batch) for batch in task(counts=(1, 1, 1)).train_batches(0)] == [1]


def test_build(tmp_path: Path) -> None:
    model, job = audio.build(config(tmp_path))
    assert model.bits == 4 and model.backbone.pool == (2,)
    assert [len(job.parts[part]) for part in ('train', 'val', 'test')] == [5, 3, 3]
    batch = next(iter(job.train_batches(0)))
    loss = job.loss(model, batch)
    loss.backward()
    assert batch.shape == (2, 64) and 0 < loss.item() < 10
    again, _ = audio.build(config(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_build_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / 'music').mkdir()
    write_audio(tmp_path / 'music' / 'a.wav', torch.rand(4000) - 0.5, 1000)
    _, job = audio.build(config(tmp_path, 'data.kind=folder', f'data.root={tmp_path / "music"}'))
    assert len(job.parts['train']) == 3520 // 64
    assert next(iter(job.train_batches(0))).shape == (2, 64)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (['model.name=wavenet'], "'wavenet': expected 'sashimi'"),
        (['model.args.d_modle=4'], 'no option d_modle: .*d_model'),
        (['model.args.bits=4'], 'no option bits'),
        (['data.kind=folder'], 'data.root: a folder of audio files must be given'),
        (['data.kind=folder', 'data.root=/no/such/folder'], 'data.root: no folder at /no/such/folder'),
    ],
)
def test_bad_configurations(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.build(config(tmp_path, *overrides))


def test_training_leaves_what_generation_needs(tmp_path: Path) -> None:
    run = config(tmp_path, 'epochs=1', 'max_steps=2', 'device=cpu', f'out={tmp_path / "out"}')
    model, job = audio.build(run)
    summary = fit(model, job, run, tmp_path / 'out')
    assert {'val_nll', 'test_nll'} <= summary['history'][-1].keys()
    source = load_generator(tmp_path / 'out')
    assert (source.quantizer, source.sample_rate) == (Quantizer('mu-law', 4), 1000)
    tokens = torch.randint(16, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(source.model(tokens), model(tokens))


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*sashimi*.yaml')), ids=lambda path: path.stem)
def test_shipped_configurations_build(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hippo, 'nplr', functools.lru_cache(hippo.nplr))
    run = load_config(path)
    Quantizer(run.data.quantizer, run.data.bits, run.data.convention)
    with torch.device('meta'):
        model = build_model(run.model.name, run.model.args, run.data.bits)
    assert model.head.weight.shape[0] == 2**run.data.bits
    # Every launch line of the header is one that the file answers to.
    assert f'python train.py configs/{path.relative_to(CONFIGS)}' in path.read_text()
