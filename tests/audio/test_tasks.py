"""The autoregressive task: what the model sees, what it is scored by, and how it is built."""

import functools
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import audio
from audio.data.parts import AudioData
from audio.data.plucked import PluckedClips
from audio.generation import load_generator
from audio.io import write_audio
from audio.models import build_model
from audio.quantization import Quantizer
from audio.tasks import PADDING, AudioConfig, AudioEval, AutoregressiveTask, shift_right
from s4nd import hippo
from s4nd.tasks import Resampled, Task
from s4nd.training.checkpoint import load_weights, read_metadata
from s4nd.training.config import ModelConfig, load_config
from s4nd.training.loop import fit

CONFIGS = Path(__file__).parents[2] / 'configs'

CONFIG = """
task: audio
model: {name: sashimi, args: {d_model: 4, n_layers: 1, pool: [2], d_state: 4}}
data: {kind: plucked, sample_rate: 1000, clip_samples: 64, batch_size: 2, train_count: 5, test_count: 3, bits: 4}
seed: 3
"""


def config(tmp_path: Path, *overrides: str, model: str = '') -> object:
    path = tmp_path / 'run.yaml'
    lines = [f'model: {model}' if model and line.startswith('model:') else line for line in CONFIG.splitlines()]
    path.write_text('\n'.join(lines))
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
    data = AudioData(bits=6, sample_rate=1000, batch_size=2)
    run = AudioConfig(model=ModelConfig('sashimi'), seed=1, data=data, eval=AudioEval(limit=limit))
    return AutoregressiveTask(run, parts)


def test_it_is_a_task() -> None:
    assert isinstance(task(), Task)
    stored = {'args': '{}', 'sample_rate': '1000'}
    assert task().metadata == {**stored, 'quantizer': Quantizer(bits=6).to_json()}


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
    assert job.monitor in metrics and not job.maximize


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
        (['model.name=wavenet'], "'wavenet'; known: audio_classifier, sashimi, sashimi_diffusion"),
        (['model.args.d_modle=4'], "takes no 'd_modle'; did you mean 'd_model'"),
        (['model.args.krenel=s4d'], "takes no 'krenel'; did you mean 'kernel'"),
        (['model.args.n_smm=2'], "takes no 'n_smm'; did you mean 'n_ssm'"),
        (['model.args.bits=4'], "sashimi takes no 'bits'"),
        (['model.args.num_classes=3'], 'num_classes is 3, but the data has no classes'),
        (
            ['model.name=audio_classifier'],
            'a classifier needs classes, expected folder or name, got none',
        ),
        (['model.name=sashimi_diffusion', 'model.args.bits=4'], "sashimi_diffusion takes no 'bits'"),
        (['model.name=sashimi_diffusion', 'model.args.mel=[16,16]'], r'model\.args\.mel=\[16, 16\]: .*no spectrograms'),
        (['data.kind=folder'], 'data.root must be given: a folder of audio files'),
        (['data.kind=folder', 'data.root=/no/such/folder'], 'data.root: /no/such/folder does not exist'),
    ],
)
def test_bad_configurations(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.build(config(tmp_path, *overrides))


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Three words by two speakers, ten takes each, .1 s at 1000 Hz: each word a tone of its own."""
    folder = tmp_path / 'spoken'
    folder.mkdir()
    torch.manual_seed(0)
    time = torch.arange(100) / 1000
    for number, word in enumerate(('yes', 'no', 'stop')):
        for speaker, take in itertools.product(('ann', 'bob'), range(10)):
            wave = torch.sin(2 * math.pi * (30 + 60 * number) * time + torch.rand(1)) + 0.1 * torch.randn(100)
            write_audio(folder / f'{word}_{speaker}_{take}.wav', 0.5 * wave, 1000)
    return folder


def labeled(tmp_path: Path, folder: Path, *overrides: str, model: str = '') -> object:
    words = ['data.kind=folder', f'data.root={folder}', 'data.labels=name', 'data.split=files', 'data.val_fraction=0.2']
    words += ['data.clip_samples=96', 'data.batch_size=6', 'device=cpu', 'optim.warmup_epochs=0']
    return config(tmp_path, *words, *overrides, model=model)


def label_of(clips: object, index: int) -> str:
    return clips.windows[index][1].file.path.name.partition('_')[0]


def test_classes_come_from_the_names(tmp_path: Path, spoken: Path) -> None:
    run = labeled(tmp_path, spoken)
    model, job = audio.build(run)
    assert job.classes == ('no', 'stop', 'yes') and run.model.args['num_classes'] == model.num_classes == 3
    assert json.loads(job.metadata['classes']) == ['no', 'stop', 'yes']
    for clips in job.parts.values():
        assert [clips.classes[label] for label in clips.labels] == [label_of(clips, i) for i in range(len(clips))]
    # Each row of a batch still has its own label.
    clips = job.parts['train']
    rows = [job.prepare(clips[i][None], torch.tensor([clips.recorded[i]])) for i in range(len(clips))]
    label_by_codes = {row.numpy().tobytes(): label for row, label in zip(rows, clips.labels, strict=True)}
    codes, labels = zip(*job.train_batches(0), strict=True)
    assert len(torch.cat(labels)) == len(clips) == 36
    for row, label in zip(torch.cat(codes), torch.cat(labels), strict=True):
        assert label_by_codes[row.numpy().tobytes()] == label
    _, unlabeled = audio.build(labeled(tmp_path, spoken, 'data.labels=none'))
    assert unlabeled.classes == () and isinstance(next(iter(unlabeled.train_batches(0))), Tensor)


def test_the_loss_leaves_padding_out(tmp_path: Path, spoken: Path) -> None:
    """Recordings of 100 samples in clips of 128: loss, gradients and bits per sample are those of the 100."""
    model, job = audio.build(labeled(tmp_path, spoken, 'data.clip_samples=128', 'data.labels=none'))
    model.double()
    codes = next(iter(job.train_batches(0)))
    assert codes.shape == (6, 128) and (codes[:, :100] >= 0).all() and (codes[:, 100:] == PADDING).all()
    gradients = []
    for part in (codes, codes[:, :100]):
        loss = job.loss(model, part)
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for padded, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)
    assert job.count(codes) == 600
    longer = codes.clone()
    longer[0, 60:] = PADDING
    single = [job.loss(model, row[None]) * job.count(row[None]) for row in longer]
    torch.testing.assert_close(job.loss(model, longer), sum(single) / job.count(longer), atol=1e-6, rtol=1e-6)


def test_classes_come_from_the_folders(tmp_path: Path, spoken: Path) -> None:
    sorted_into = tmp_path / 'words'
    for path in spoken.iterdir():
        word = sorted_into / path.name.partition('_')[0]
        word.mkdir(parents=True, exist_ok=True)
        path.rename(word / path.name)
    _, job = audio.build(labeled(tmp_path, sorted_into, 'data.labels=folder'))
    assert job.classes == ('no', 'stop', 'yes')
    clips = job.parts['test']
    assert [clips.classes[label] for label in clips.labels] == [label_of(clips, i) for i in range(len(clips))]


def test_the_class_reaches_the_model(tmp_path: Path, spoken: Path) -> None:
    run = labeled(tmp_path, spoken, 'epochs=2', f'out={tmp_path / "out"}')
    model, job = audio.build(run)
    before = model.class_embedding.weight.clone()
    codes, label = next(iter(job.train_batches(0)))
    first = job.loss(model, (codes, label)).item()
    assert first != pytest.approx(job.loss(model, (codes, (label + 1) % 3)).item(), rel=1e-6)
    summary = fit(model, job, run, tmp_path / 'out')
    assert not torch.equal(before, model.class_embedding.weight)
    assert summary['history'][-1]['val_nll'] < first / math.log(2)


def test_classification_is_measured_on_the_same_clips_at_every_rate(tmp_path: Path, spoken: Path) -> None:
    model = '{name: audio_classifier, args: {dims: [4, 8], depths: [1], pool: [4], d_state: 8, reach: 24}}'
    run = labeled(tmp_path, spoken, 'epochs=10', 'optim.lr=0.01', f'out={tmp_path / "out"}', model=model)
    model, job = audio.build(run)
    assert isinstance(job, Task) and job.monitor == 'accuracy@1000' and job.maximize
    assert run.model.args['clip_samples'] == 96 and run.model.args['num_classes'] == 3
    fit(model, job, run, tmp_path / 'out')
    seen = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    results = job.evaluate_at(model.eval(), 'cpu', ['500', '1000'])
    assert {shape[1] for shape in seen} == {48, 96} and sum(shape[0] for shape in seen) == 2 * len(job.parts['test'])
    # Three tones below 250 Hz: learned, and known again with half the samples.
    assert results['accuracy@1000'] == results['accuracy@500'] == 100
    assert results['cross_entropy@500'] < math.log(3) / 2
    # The baseline runs at the rate of training: a tone below both Nyquist limits comes back.
    seen.clear()
    job.evaluate_at(Resampled(model, job), 'cpu', ['500', '2000'])
    assert {shape[1] for shape in seen} == {96}
    tone = torch.sin(2 * math.pi * 100 * torch.arange(192) / 2000)[None]
    assert (job.resample(tone) - tone[:, ::2])[:, 8:-8].abs().max() < 0.01


def test_accuracy_counts_the_right_ones(tmp_path: Path, spoken: Path) -> None:
    model = '{name: audio_classifier, args: {dims: [2, 2], depths: [1], pool: [4], d_state: 4}}'
    _, job = audio.build(labeled(tmp_path, spoken, 'data.batch_size=5', model=model))
    labels = torch.tensor(job.parts['val'].labels)

    def always_stop(waves: Tensor) -> Tensor:
        return torch.tensor([[0.0, 3.0, 0.0]]).repeat(len(waves), 1)

    score = job.evaluate(always_stop, 'cpu')
    assert score['accuracy@1000'] == pytest.approx(100 * float((labels == 1).float().mean()), abs=1e-3)
    logits = always_stop(torch.zeros(len(labels), 1))
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert score['cross_entropy@1000'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('labels', 'average'), [('none', None), ('name', 0.8)])
def test_diffusion_learns(tmp_path: Path, spoken: Path, labels: str, average: float | None) -> None:
    """Also the averaged weights, of kernels without a band limit."""
    model = (
        '{name: sashimi_diffusion, args: {d_model: 8, n_layers: 1, pool: [4], d_state: 4, condition: 8, kernel: s4d, '
        'steps: 20, beta_max: 0.3}}'
    )
    words = [f'data.labels={labels}', 'data.batch_size=9', 'epochs=6', 'optim.lr=0.02', f'out={tmp_path / "out"}']
    words += [] if average is None else [f'optim.ema={average}']
    run = labeled(tmp_path, spoken, *words, model=model)
    model, job = audio.build(run)
    assert isinstance(job, Task) and job.diffusion.steps == 20
    before = job.evaluate(model, 'cpu')
    # The untrained model predicts no noise, so its error is the variance of the noise; every evaluation draws alike.
    assert before['val_loss'] == pytest.approx(1, abs=0.1) and before == job.evaluate(model, 'cpu')
    fit(model, job, run, tmp_path / 'out')
    after = job.evaluate(model.eval(), 'cpu')
    assert after['val_loss'] < 0.8 * before['val_loss'] and after['test_loss'] < 0.8 * before['test_loss']
    metadata = read_metadata(tmp_path / 'out' / 'best.safetensors')
    assert (metadata['model'], metadata['sample_rate'], 'classes' in metadata) == (
        'sashimi_diffusion', '1000', labels == 'name',
    )  # fmt: skip
    again = build_model('sashimi_diffusion', json.loads(metadata['args']))
    load_weights(tmp_path / 'out' / 'last.safetensors', again)
    assert job.evaluate(again.eval(), 'cpu') == after
    assert all(value.isfinite().all() for value in again.state_dict().values())


def test_the_number_of_classes_must_be_the_datas(tmp_path: Path, spoken: Path) -> None:
    with pytest.raises(ValueError, match='num_classes is 4, but the data has 3 classes'):
        audio.build(labeled(tmp_path, spoken, 'model.args.num_classes=4'))


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


@pytest.mark.parametrize('name', ['digits_s4', 'digits_conv1d', 'diffusion_digits'])
def test_shipped_configurations_of_spoken_digits_build(name: str) -> None:
    path = CONFIGS / 'audio' / f'{name}.yaml'
    run = load_config(path)
    args = dict(run.model.args, num_classes=10)
    if run.model.name == 'audio_classifier':
        args['clip_samples'] = run.data.clip_samples
        assert min(run.eval.sample_rates) < run.data.sample_rate
    model, waves = build_model(run.model.name, args).eval(), torch.randn(1, run.data.clip_samples // 2)
    with torch.no_grad():
        if run.model.name == 'audio_classifier':
            assert model(waves).shape == (1, 10)
        else:
            assert model(waves, torch.tensor([200]), torch.tensor([9])).shape == waves.shape
    assert f'python train.py configs/audio/{name}.yaml' in path.read_text()


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
