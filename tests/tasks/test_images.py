"""The image task: what the model sees, and what is counted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from s4nd.data import DataError, PixelSet, Splits, load_images
from s4nd.data.images.options import ImageData
from s4nd.data.images.resize import resize
from s4nd.tasks import Resampled
from s4nd.tasks.images import ImageConfig, ImageEval, ImageTask
from s4nd.training.config import ConfigError, ModelConfig

CPU = torch.device('cpu')
MEAN = torch.tensor([0.5, 0.5, 0.5])[:, None, None]


class Probe(nn.Module):
    """Gives fixed scores and remembers its input."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.seen = scores, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.scores.expand(len(x), -1)


def make(size: int = 8, stored: int = 8, count: int = 20, epochs: int = 10, **options: object) -> ImageTask:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, stored, stored), dtype=torch.uint8, generator=generator)
    images = PixelSet(images, torch.arange(count) % 4, ('a', 'b', 'c', 'd'))
    data = ImageData(kind='shapes', size=size, batch_size=10, **options)
    model = ModelConfig('probe', {'name': 'x'})
    return ImageTask(ImageConfig(data=data, model=model, epochs=epochs), Splits(images, None, images))


@pytest.mark.parametrize(('size', 'stored', 'padding'), [(8, 8, 0), (4, 8, 0), (4, 8, 1), (16, 8, 0), (3, 8, 2)])
def test_the_model_sees_normalized_images_at_the_training_size(size: int, stored: int, padding: int) -> None:
    task, probe = make(size, stored, crop_padding=padding), Probe(torch.zeros(4))
    for images, labels, shown in task.train_batches(0):
        loss = task.loss(probe, (images, labels, shown))
        assert images.dtype == torch.uint8 and probe.seen[-1].shape == (10, 3, size, size)
        assert loss.item() == pytest.approx(np.log(4))
    if padding == 0:
        expected = (resize(task.splits.train.images.float() / 255, size) - MEAN) / 0.25
        seen = torch.cat(probe.seen).sum((2, 3)).sort(0).values
        assert torch.allclose(seen, expected.sum((2, 3)).sort(0).values, atol=size * size * 4 / 255)


def test_a_sequence_is_an_image_row_by_row() -> None:
    task, picture, probe = make(4, sequence=True), make(4), Probe(torch.zeros(4))
    assert task.grid((4, 6)) == [24] and picture.grid((4, 6)) == [4, 6]
    batch = next(iter(task.train_batches(0)))
    task.loss(probe, batch)
    image = picture.prepare(batch[0], (4, 4))
    assert probe.seen[-1].shape == (10, 3, 16)
    assert torch.equal(probe.seen[-1][:, :, 5], image[:, :, 1, 1])
    assert torch.equal(probe.seen[-1], image.reshape(10, 3, 16))
    task.evaluate_at(probe, CPU, ['2x3'])
    assert probe.seen[-1].shape[1:] == (3, 6)


def test_epochs_differ_and_repeat() -> None:
    task = make(crop_padding=1, flip=True)
    first, again, second = (torch.cat([labels for _, labels, _ in task.train_batches(epoch)]) for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_label_smoothing_and_mixing_enter_the_loss() -> None:
    scores, labels = torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.zeros(10, dtype=torch.long)
    batch = (make().splits.train.images[:10], labels, (8, 8))
    smooth = make(label_smoothing=0.2).loss(Probe(scores), batch)
    assert smooth.item() == pytest.approx(F.cross_entropy(scores[None], labels[:1], label_smoothing=0.2).item())
    set_seed(0)
    probe = Probe(scores)
    mixed = make(mixup=1.0, label_smoothing=0.2).loss(probe, batch)
    assert mixed.item() == pytest.approx(smooth.item(), abs=1e-6)  # all of one class: only the pictures are mixed
    plain = Probe(scores)
    make().loss(plain, batch)
    assert not torch.equal(probe.seen[0], plain.seen[0])


@pytest.mark.parametrize('limit', [None, 8])
def test_accuracy_and_cross_entropy_are_counted_over_all_images(limit: int | None) -> None:
    task, scores = make(), torch.tensor([0.0, 3.0, 0.0, 0.0])
    task.config.eval = ImageEval(limit=limit)
    probe = Probe(scores)
    result = task.evaluate(probe, CPU)
    expected = F.cross_entropy(scores.expand(4, -1), torch.arange(4)).item()
    assert result == {'accuracy@8': 25.0, 'cross_entropy@8': pytest.approx(expected, rel=1e-6)}
    assert sum(len(x) for x in probe.seen) == (limit or 20) and task.monitor in result


def test_other_sizes_are_evaluated_in_batches_of_as_many_pixels() -> None:
    task, probe = make(), Probe(torch.zeros(4))
    results = task.evaluate_at(probe, CPU, ['4', '8', '16'])
    assert set(results) == {f'{metric}@{size}' for metric in ('accuracy', 'cross_entropy') for size in (4, 8, 16)}
    assert {x.shape[-1]: len(x) for x in probe.seen[::-1]} == {4: 10, 8: 10, 16: 2}


def test_epochs_are_watched_on_the_held_out_images() -> None:
    task = make()
    held = task.splits.train.select(torch.tensor([1, 5]))
    task.splits = Splits(task.splits.train, held, task.splits.test)
    assert task.evaluate(Probe(torch.tensor([0.0, 1.0, 0.0, 0.0])), CPU)['accuracy@8'] == 100.0


def test_options_that_cannot_go_together() -> None:
    splits = make().splits
    with pytest.raises(ConfigError, match=r'eval\.weights=best needs held-out images'):
        ImageTask(ImageConfig(eval=ImageEval(weights='best')), splits)
    with pytest.raises(ConfigError, match=r'data\.batch_size: .* expected an even number, got 9'):
        ImageTask(ImageConfig(data=ImageData(mixup=0.8, batch_size=9)), splits)


@pytest.mark.parametrize('padding', [0, 1])
def test_stages_are_shown_one_after_the_other(padding: int) -> None:
    task = make(size=8, sizes=[2, '4x6', 8], stage_epochs=[2, 1, 1], epochs=4, crop_padding=padding)
    probe = Probe(torch.zeros(4))
    for epoch, size in enumerate([(2, 2), (2, 2), (4, 6), (8, 8)]):
        for batch in task.train_batches(epoch):
            task.loss(probe, batch)
            assert probe.seen[-1].shape[2:] == batch[2] == size
    assert len(probe.seen) == 8
    assert task.metadata == {'args': json.dumps({'name': 'x'}), 'size': '8', 'classes': json.dumps(list('abcd'))}


def test_mixed_sizes_are_drawn_by_the_seed_a_batch() -> None:
    task, probe = make(size=8, sizes=[4, 8, 16], count=200), Probe(torch.zeros(4))
    drawn = [[shown for _, _, shown in task.train_batches(epoch)] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) == {(4, 4), (8, 8), (16, 16)}
    # Processes differ in their images, never in the size of a step.
    first, second = (list(task.train_batches(0).shard(index, 2)) for index in (0, 1))
    assert [batch[2] for batch in first] == [batch[2] for batch in second] and len(first) == 10
    assert not torch.equal(first[0][0], second[0][0])
    # Stored 8 × 8 images: 16 is interpolated at every step, 4 is the exact average.
    for batch in task.train_batches(0):
        task.loss(probe, batch)
        assert probe.seen[-1].shape[2:] == batch[2]
    assert task.monitor == 'accuracy@8' and task.metadata['size'] == '8'


def test_rendered_scenes_are_kept_as_large_as_the_largest_size_shown() -> None:
    data = ImageData(kind='shapes', size=8, sizes=[8, '6x16'], batch_size=10, train_count=20, test_count=10)
    task = ImageTask(ImageConfig(data=data), load_images(data))
    assert {images.shape for images, _, _ in task.train_batches(0)} == {(10, 3, 16, 16)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'sizes': [4, 8], 'stage_epochs': [3]}, r'data\.stage_epochs: expected one for each of .*\[4, 8\], got \[3\]'),
        ({'sizes': [4, 8], 'stage_epochs': [3, 2]}, r'data\.stage_epochs: expected epochs=4 in all, got \[3, 2\]'),
        ({'sizes': [8, 4], 'stage_epochs': [3, 1]}, r'data\.sizes: expected to end at data\.size=8, got \[8, 4\]'),
    ],
)
def test_stages_that_do_not_add_up(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(epochs=4, **options)


def test_non_square_sizes_are_evaluated_under_their_name() -> None:
    task, probe = make(), Probe(torch.zeros(4))
    assert set(task.evaluate_at(probe, CPU, ['4x8', '16'])) == {
        f'{metric}@{size}' for metric in ('accuracy', 'cross_entropy') for size in ('4x8', '16')
    }
    assert [tuple(x.shape) for x in probe.seen[:2]] == [(10, 3, 4, 8)] * 2
    expected = (resize(task.splits.test.images.float() / 255, (4, 8)) - MEAN) / 0.25
    assert torch.allclose(torch.cat(probe.seen[:2]), expected, atol=4 / 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (('train', 5), ('val', 3)):
        for label, value in (('ant', 40), ('bee', 200)):
            path = tmp_path / split / label
            path.mkdir(parents=True)
            for index in range(count):
                picture = np.full((10 + index, 12, 3), value + index, np.uint8)
                Image.fromarray(picture).save(path / f'{index}.png')
    return tmp_path


def stream(folder: Path, **options: object) -> tuple[ImageTask, ImageConfig]:
    data = ImageData(
        kind='folder', stream=True, root=str(folder), size=8, batch_size=4, workers=0, cache=None, **options
    )
    config = ImageConfig(data=data)
    return ImageTask(config, load_images(data)), config


def test_a_streamed_folder_trains_and_evaluates(folder: Path) -> None:
    task, _ = stream(folder, auto_augment='rand-m3', random_erasing=0.5, flip=True)
    probe = Probe(torch.tensor([1.0, 0.0]))
    batches = task.train_batches(0)
    assert len(batches) == 2
    for batch in batches:
        assert batch[0].shape == (4, 3, 8, 8) and batch[0].dtype == torch.float32
        assert torch.isfinite(task.loss(probe, batch))
    assert task.evaluate(probe, CPU)['accuracy@8'] == 50.0
    task.evaluate_at(probe, CPU, ['4'])
    # A plain picture stays plain under averaging: the normalized values are those of the files.
    values = {round(float(x), 3) for x in torch.cat(probe.seen[-2:])[:, 0, 0, 0]}
    expected = {round((value + index - 255 * 0.485) / (255 * 0.229), 3) for value in (40, 200) for index in range(3)}
    assert sorted(values) == pytest.approx(sorted(expected), abs=2e-3)


def test_streamed_batches_repeat_shard_and_reuse(folder: Path) -> None:
    task, config = stream(folder, repeats=2)
    train = task.splits.train
    batches = train.train_batches(config.data, seed=1)
    assert torch.equal(batches.order, train.train_batches(config.data, seed=1).order)
    assert batches.order.unique().numel() == 5 and len(batches.order) == 10
    assert [len(batches.shard(index, 2)) for index in (0, 1)] == [1, 1]
    whole = train.eval_batches(8, 0.9, 4, 0)
    assert [len(whole.shard(index, 2)) for index in (0, 1)] == [2, 1]
    seen = torch.cat([labels for index in (0, 1) for _, labels in whole.shard(index, 2)])
    assert seen.bincount().tolist() == [5, 5]


def test_a_stream_depends_on_no_worker_and_goes_on_in_the_middle(folder: Path) -> None:
    options = {'auto_augment': 'rand-m9-mstd0.5-inc1', 'random_erasing': 0.9, 'flip': True, 'repeats': 2}
    task, config = stream(folder, **options)
    train, other = task.splits.train, replace(config.data, workers=2)
    whole = list(train.train_batches(config.data, seed=3))
    for batches in (train.train_batches(other, seed=3), train.train_batches(config.data, seed=3)):
        assert all(torch.equal(x, y) for x, y in zip(next(zip(*batches)), next(zip(*whole)), strict=True))
    rest = list(train.train_batches(other, seed=3).skip(1))
    assert len(rest) == len(whole) - 1 > 0
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(rest, whole[1:], strict=True))
    assert not torch.equal(whole[0][0][0], whole[0][0][1])  # copies of one picture are augmented differently


def test_others_stand_in_for_unreadable_files_of_a_stream(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / 'train' / 'ant' / '0.png').write_bytes(b'no image')
    task, _ = stream(folder, mixup=0.5)
    for batch in task.train_batches(0):
        assert len(batch[1]) == 4 and torch.isfinite(task.loss(Probe(torch.zeros(2)), batch))
    assert sum(len(labels) for _, labels in task.splits.train.eval_batches(8, 1.0, 4, 0)) == 9
    (reason,) = task.splits.skipped
    assert reason.startswith('train/ant/0.png: not a picture') and caplog.text.count('ant/0.png') == 1


def test_a_stream_needs_classes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DataError, match='no image in a class folder'):
        load_images(ImageData(kind='imagenet', root=str(tmp_path / 'nothing')))


def test_resampled_images_are_those_of_training() -> None:
    task, probe = make(8, stored=16), Probe(torch.zeros(4))
    direct, resampled = Probe(torch.zeros(4)), Resampled(probe, task)
    task.evaluate_at(direct, CPU, ['8'])
    task.evaluate_at(resampled, CPU, ['16', '4', '6x12'])
    assert {tuple(x.shape[1:]) for x in probe.seen} == {(3, 8, 8)}
    # Area averages of area averages are the pixels of training, but for the rounding to bytes.
    finest = torch.cat(probe.seen)[:20]
    assert (finest - torch.cat(direct.seen)).abs().max() <= 4 * 0.5 / 255 + 1e-6
