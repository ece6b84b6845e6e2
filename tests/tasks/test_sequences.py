"""Sequences as a task: every kind of target is learned and measured; sets are read from files; mistakes are named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.data import DataError
from s4nd.data.sequences.named import load_sequences
from s4nd.data.sequences.options import SequenceData
from s4nd.data.sequences.sets import IGNORED, SequenceSet
from s4nd.models.pairs import PairClassifier
from s4nd.tasks.sequences import SequenceConfig, SequenceTask
from s4nd.training.config import ConfigError, ModelConfig, OptimConfig
from s4nd.training.loop import fit

CPU = torch.device('cpu')
SMALL = {'d_model': 16, 'n_layers': 1, 'layer': 's4d', 'layer_args': {'d_state': 8}}


def make_task(data: SequenceData, args: dict | None = None, name: str = 'sequence', **options: object) -> SequenceTask:
    config = SequenceConfig(
        seed=1, model=ModelConfig(name, SMALL if args is None else args), data=data,
        optim=OptimConfig(lr=2e-2, ssm_lr=1e-2, weight_decay=0.0, warmup_epochs=0.1), **options,
    )  # fmt: skip
    return SequenceTask.from_config(config)


@pytest.mark.parametrize(
    ('data', 'chance', 'reached'),
    [
        (SequenceData('copying', length=6, memory=2, symbols=3, train_count=640, test_count=64, batch_size=16), 50, 80),
        (SequenceData('delay', length=128, lag=3, train_count=240, test_count=32, batch_size=8), 30, 80),
    ],
)
def test_training_learns(tmp_path: Path, data: SequenceData, chance: float, reached: float) -> None:
    task = make_task(data, epochs=3)
    model = task.build_model()
    before = task.measure(model.eval(), CPU, 'test')[task.monitor]
    fit(model, task, task.config, tmp_path)
    after = task.evaluate_at(model, CPU, [])
    assert before < chance and after[task.monitor] > reached
    again = task.load_model(tmp_path / 'last.safetensors')
    assert task.measure(again, CPU, 'test') == pytest.approx(after, rel=1e-4)


def test_measures_are_those_of_what_is_asked() -> None:
    task = make_task(SequenceData('induction', length=6, symbols=3, train_count=8, test_count=50))
    targets = task.parts['test'].targets

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full_like(x, 2), 5).float()

    right = (targets[:, -1] == 2).float().mean().item()
    found = _measured(task, model)
    assert found['accuracy'] == pytest.approx(100 * right, abs=1e-3)
    logits = model(targets.clamp(min=0))[:, -1]
    expected = torch.nn.functional.cross_entropy(logits, targets[:, -1])
    assert found['cross_entropy'] == pytest.approx(expected.item(), rel=1e-5)
    late = make_task(SequenceData('delay', length=64, lag=20, train_count=8, test_count=8))
    asked = late.parts['test'].targets[:, 20:]
    found = _measured(late, lambda x: x * 0 + 0.5)
    assert found['mse'] == pytest.approx((asked - 0.5).square().mean().item(), rel=1e-4)
    assert found['explained'] == pytest.approx(100 * (1 - found['mse'] / asked.var(correction=0).item()), rel=1e-3)


def _measured(task: SequenceTask, function: object) -> dict[str, float]:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    return task.evaluate_at(Model(), CPU, [])


def test_batches_follow_from_seed_and_epoch_and_padding_is_cut() -> None:
    task = make_task(SequenceData('listops', length=64, shortest=4, train_count=40, test_count=8, batch_size=8))
    first, again, later = (list(task.train_batches(epoch)) for epoch in (0, 0, 1))
    assert len(first) == len(task.train_batches(0)) == 5
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.inputs, two.inputs) and one.inputs.shape[1] == one.lengths.max() <= 64
    assert not torch.equal(torch.cat([b.targets for b in first]), torch.cat([b.targets for b in later]))


def write_text(root: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (('train', 20), ('test', 5)):
        for label, letter in (('pos', 'a'), ('neg', 'b')):
            for number in range(count):
                path = root / split / label / f'{number}.txt'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(letter * int(random.integers(1, 30)))
    (root / 'train' / 'unsup').mkdir()
    (root / 'train' / 'unsup' / '0.txt').write_text('c')


def test_class_folders_of_text_and_of_tokens(tmp_path: Path) -> None:
    write_text(tmp_path / 'text')
    parts = load_sequences(SequenceData('folder', root=str(tmp_path / 'text'), length=20, val_fraction=0.25))
    assert {name: len(part) for name, part in parts.items()} == {'train': 30, 'val': 10, 'test': 10}
    test = parts['test']
    assert (test.tokens, test.classes, test.inputs.shape[1]) == (257, 2, int(test.lengths.max()))
    for inputs, label, length in zip(test.inputs, test.targets, test.lengths, strict=True):
        assert inputs[:length].tolist() == [ord('ba'[label]) + 1] * length and not inputs[length:].any()
    for label in ('a', 'b'):
        (tmp_path / 'tokens' / label).mkdir(parents=True)
        for number in range(10):
            np.save(tmp_path / 'tokens' / label / f'{number}.npy', np.arange(1, 5 + number))
    parts = load_sequences(SequenceData('folder', root=str(tmp_path / 'tokens'), length=20))
    assert [len(parts[name]) for name in ('train', 'val', 'test')] == [16, 2, 2] and parts['train'].tokens == 14


def test_files_of_long_range_arena(tmp_path: Path) -> None:
    for part, name in (('train', 'train'), ('val', 'eval'), ('test', 'test')):
        lines = ['Source\tTarget', '( ( ( [MAX 4 ) 7 ) ] )\t7', '( ( [MIN 2 ) ] )\t2'] * (2 if part == 'train' else 1)
        (tmp_path / f'basic_{part}.tsv').write_text(
            '\n'.join([lines[0], *[x for x in lines if 'MA' in x or 'MI' in x]])
        )
        (tmp_path / f'new_aan_pairs.{name}.tsv').write_text('1.0\tA\tB\t"one text"\tother\n0.0\tA\tC\tx\ty z\n')
    parts = load_sequences(SequenceData('listops_files', root=str(tmp_path), length=10))
    assert parts['train'].targets.tolist() == [7, 2, 7, 2] and parts['val'].lengths.tolist() == [4, 3]
    pairs = load_sequences(SequenceData('retrieval', root=str(tmp_path), length=6))['test']
    assert pairs.inputs.shape == (2, 2, 6) and pairs.lengths.tolist() == [[6, 5], [1, 3]]
    assert bytes((pairs.inputs[0, 0] - 1).tolist()) == b'one te' and pairs.targets.tolist() == [1, 0]
    task = make_task(SequenceData('retrieval', root=str(tmp_path), length=6), name='pairs')
    model = task.build_model().eval()
    batch = task.batch(pairs, torch.arange(2))
    task.loss(model, batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    longer = torch.nn.functional.pad(batch.inputs, (0, 3), value=9)
    assert torch.allclose(model(batch.inputs, lengths=batch.lengths), model(longer, lengths=batch.lengths), atol=1e-5)


def test_text_is_asked_token_by_token(tmp_path: Path) -> None:
    path = tmp_path / 'x.txt'
    path.write_text('aé' * 400, encoding='utf-8')
    parts = load_sequences(SequenceData('text', root=str(path), length=8, unit='character'))
    train = parts['train']
    assert train.tokens == 2 and len(train) == 89 and torch.equal(train.inputs[:, 1:], train.targets[:, :-1])
    assert load_sequences(SequenceData('text', root=str(path), length=8))['train'].tokens == 256
    task = make_task(SequenceData('text', root=str(path), length=8, train_count=32, batch_size=8))
    assert len(task.train_batches(0)) == 4
    assert {'accuracy', 'cross_entropy', 'bits'} == set(task.evaluate(task.build_model(), CPU))


def test_images_are_read_pixel_by_pixel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    for part in ('train', 't10k'):
        header = b'\0\0\x08\x03' + np.array([20, 4, 4], '>i4').tobytes()
        (tmp_path / f'{part}-images-idx3-ubyte').write_bytes(header + images.tobytes())
        labels = np.arange(20, dtype=np.uint8) % 10
        (tmp_path / f'{part}-labels-idx1-ubyte').write_bytes(
            b'\0\0\x08\x01' + np.array([20], '>i4').tobytes() + labels.tobytes()
        )
    for kind in ('mnist', 'fashion_mnist'):
        plain = load_sequences(SequenceData(kind, root=str(tmp_path)))['test']
        assert torch.equal(plain.inputs[:, :, 0], torch.from_numpy(images).flatten(1)) and plain.classes == 10
        mixed = load_sequences(SequenceData(kind, root=str(tmp_path), permuted=True), seed=3)['test']
        assert not torch.equal(mixed.inputs, plain.inputs)
        assert torch.equal(mixed.inputs.sort(1).values, plain.inputs.sort(1).values)
        assert torch.equal(
            mixed.inputs, load_sequences(SequenceData(kind, root=str(tmp_path), permuted=True))['test'].inputs
        )
    batch = SequenceTask.batch(plain, torch.arange(3))
    assert batch.inputs.min() >= -0.5 and batch.inputs.max() <= 0.5 and batch.inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (SequenceData('folder'), r'data\.root must be given: class folders'),
        (SequenceData('text', root='/nowhere/x.txt'), r'data\.root: /nowhere/x\.txt does not exist'),
        (SequenceData('pathfinder', length=1000), r'data\.length: pathfinder expects the square .* got 1000'),
        (SequenceData('copying', length=8), 'memory must be at least 1 and at most half of the length 8, got 10'),
        (SequenceData('delay', length=8, lag=9), 'lag must be at least 1 and less than the length 8, got 9'),
    ],
)
def test_what_cannot_be_loaded(data: SequenceData, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sequences(data)


def test_broken_files_are_named(tmp_path: Path) -> None:
    for label in ('a', 'b'):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / '0.npy', np.array([1.5]))
    with pytest.raises(DataError, match=r'a/0\.npy: expected whole numbers \(length,\), got float64'):
        load_sequences(SequenceData('folder', root=str(tmp_path)))
    np.save(tmp_path / 'a' / '0.npy', np.array([-1]))
    with pytest.raises(DataError, match=r'expected tokens of 0 to 30000, got -1 to -1'):
        load_sequences(SequenceData('folder', root=str(tmp_path)))
    (tmp_path / 'a' / '0.txt').write_text('x')
    with pytest.raises(DataError, match=r'expected \.txt or \.npy files, got both'):
        load_sequences(SequenceData('folder', root=str(tmp_path)))
    (tmp_path / 'basic_train.tsv').write_text('Source\tTarget\n[AVG 1 ]\t1\n')
    with pytest.raises(DataError, match=r"basic_train\.tsv, line 2: ListOps: .* got '\[AVG'"):
        load_sequences(SequenceData('listops_files', root=str(tmp_path)))
    (tmp_path / 'short.txt').write_text('abc')
    with pytest.raises(DataError, match='3 tokens are too few for windows of'):
        load_sequences(SequenceData('text', root=str(tmp_path / 'short.txt')))


def test_mistakes_in_the_model_are_named() -> None:
    data = SequenceData('induction', length=8, train_count=8, test_count=4)
    with pytest.raises(ConfigError, match=r"no model of sequences 'sequnce'; did you mean 'sequence'"):
        make_task(data, name='sequnce').build_model()
    with pytest.raises(ConfigError, match=r'model\.args\.d_output: the data have 10, got 3'):
        make_task(data, {'d_output': 3}).build_model()
    with pytest.raises(ConfigError, match=r'model\.args\.d_modle'):
        make_task(data, {'d_modle': 3}).build_model()
    with pytest.raises(ValueError, match="head must be 'mean' or 'last'"):
        PairClassifier(4, 2, head='step')
    with pytest.raises(ValueError, match=r'expected pairs of sequences .* got shape \[2, 3, 4\]'):
        PairClassifier(4, 2, d_model=8, n_layers=1, tokens=True)(torch.zeros(2, 3, 4, dtype=torch.long))


def test_a_part_tells_what_it_asks() -> None:
    steps = SequenceSet(torch.zeros(2, 3, 1), torch.full((2, 3), IGNORED), classes=4)
    assert (steps.per_step, steps.features, steps.outputs) == (True, 1, 4)
    assert not SequenceSet(torch.zeros(2, 3, 1), torch.zeros(2, 1)).per_step
