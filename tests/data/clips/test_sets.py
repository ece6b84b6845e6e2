"""Clips in files: cut and augmented alike over all frames, broken and short ones named, counted and got over."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from s4nd.data import ClipFiles, ClipGrid, DataError
from s4nd.data.clips.options import VideoData
from tests.data.clips.test_files import numbers, write_frames

GRID = ClipGrid((8, 8), 4.0, 1.0)


def clips(root: Path, counts: list[int], **options: object) -> ClipFiles:
    for number, count in enumerate(counts):
        write_frames(root / f'c{number}', count, (8, 8))
    labels = torch.arange(len(counts)) % 2
    names = tuple(f'c{number}' for number in range(len(counts)))
    return ClipFiles(root, names, labels, ('a', 'b'), stored_rate=4.0, **options)


def data(**options: object) -> VideoData:
    return VideoData(
        kind='folder', workers=options.pop('workers', 0), batch_size=options.pop('batch_size', 2), **options
    )


def shown(batches: object) -> list[list[int]]:
    """The frame numbers of every clip."""
    return [numbers(clip.transpose(0, 1)) for batch, _ in batches for clip in batch]


def test_evaluation_shows_the_middle_of_every_clip_once(tmp_path: Path) -> None:
    files = clips(tmp_path, [4, 8, 12])
    batches = files.eval_batches(data(), GRID, 2)
    seen = list(batches)
    assert [batch.shape for batch, _ in seen] == [(2, 3, 4, 8, 8), (1, 3, 4, 8, 8)]
    assert torch.cat([labels for _, labels in seen]).tolist() == [0, 1, 0]
    assert shown(seen) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    # At half and twice the rate: the same second.
    assert shown(files.eval_batches(data(), ClipGrid((8, 8), 2.0, 1.0), 2)) == [[1, 3], [3, 5], [5, 7]]
    assert shown(files.eval_batches(data(), ClipGrid((8, 8), 8.0, 1.0), 2))[1] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert files.skipped == () and not files.short


def test_training_begins_anywhere_and_follows_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    files = clips(tmp_path, [20, 20, 20, 20])
    first, again, other = (shown(files.train_batches(data(), GRID, epoch)) for epoch in (0, 0, 1))
    assert first == again != other
    assert shown(files.train_batches(data(workers=2), GRID, 0)) == first
    assert all(clip == list(range(clip[0], clip[0] + 4)) for clip in first) and len({clip[0] for clip in first}) > 1
    before = torch.random.get_rng_state()
    shown(files.train_batches(data(), GRID, 0))
    assert torch.equal(torch.random.get_rng_state(), before)  # the loop's own draws are left alone


def picture() -> np.ndarray:
    """A ramp to the right in red, downwards in green: where a pixel comes from can be read off."""
    ramp = np.arange(32, dtype=np.uint8) * 8
    return np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(0)), -1)


@pytest.fixture
def ramp(tmp_path: Path) -> ClipFiles:
    (tmp_path / 'ramp').mkdir()
    for number in range(4):
        Image.fromarray(picture()).save(tmp_path / 'ramp' / f'{number}.png')
    return ClipFiles(tmp_path, ('ramp',), torch.tensor([0]), ('a', 'b'), stored_rate=4.0)


def drawn(files: ClipFiles, options: VideoData, epochs: int = 12) -> Tensor:
    return torch.cat([clip for epoch in range(epochs) for clip, _ in files.train_batches(options, GRID, epoch)])


def test_all_frames_are_cut_and_mirrored_alike(ramp: ClipFiles) -> None:
    plain = drawn(ramp, data())
    whole = torch.from_numpy(picture()).permute(2, 0, 1).float().unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4))
    assert (plain.float() - whole[:, None]).abs().max() <= 0.5
    cut = drawn(ramp, data(crop_scale=0.25, flip=True)).float()
    assert (cut == cut[:, :, :1]).all()
    red, green = cut[:, 0, 0], cut[:, 1, 0]
    mirrored = red[:, 0, 0] > red[:, 0, -1]
    assert mirrored.any() and not mirrored.all() and (green[:, 0, 0] < green[:, -1, 0]).all()
    width = (red[:, 0, -1] - red[:, 0, 0]).abs() / 7  # of a pixel of the cut, 8 a stored one
    assert torch.allclose(width, (green[:, -1, 0] - green[:, 0, 0]) / 7, atol=0.2)
    assert width.min() > 0.45 * 32 and width.max() <= 32 and len(width.unique()) > 4
    assert len(green[:, 0, 0].unique()) > 4  # it lies anywhere


def test_rand_augment_changes_a_clip_and_all_frames_alike(ramp: ClipFiles) -> None:
    changed = drawn(ramp, data(rand_augment_layers=1))
    assert changed.shape == (12, 3, 4, 8, 8) and changed.dtype == torch.uint8
    assert (changed == changed[:, :, :1]).all()
    assert len({clip.numpy().tobytes() for clip in changed}) > 3
    assert torch.equal(changed, drawn(ramp, data(rand_augment_layers=1)))


def test_a_center_crop_at_evaluation(ramp: ClipFiles) -> None:
    ((clip, _),) = ramp.eval_batches(data(crop_pct=0.5), GRID, 2)
    assert torch.equal(clip[0, 0, 0, 0], torch.arange(8, 24).view(8, 2).float().mean(1).mul(8).to(torch.uint8))


def test_broken_clips_are_named_once_and_others_take_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = clips(tmp_path, [4, 4, 4, 4, 4, 4])
    (tmp_path / 'c1' / 'frame_2.png').write_bytes(b'no image')
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / 'c4' / 'frame_3.png')
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            batches = list(files.train_batches(data(), GRID, epoch))
            assert [len(labels) for _, labels in batches] == [2, 2, 2]  # none is smaller for it
        kept = torch.cat([labels for _, labels in files.eval_batches(data(), GRID, 2)])
    assert kept.tolist() == [0, 0, 1, 1]
    assert [reason.partition(':')[0] for reason in files.skipped] == ['c1', 'c4']
    assert 'frame_2.png cannot be read' in files.skipped[0] and 'frames of one size' in files.skipped[1]
    assert caplog.text.count('passed over') == 2


def test_a_batch_of_broken_clips_is_left_out_of_an_evaluation(tmp_path: Path) -> None:
    files = clips(tmp_path, [4, 4, 4])
    for number in (0, 1):
        (tmp_path / f'c{number}' / 'frame_2.png').write_bytes(b'no image')
    assert [len(labels) for _, labels in files.eval_batches(data(), GRID, 2)] == [1]
    (tmp_path / 'c2' / 'frame_2.png').write_bytes(b'no image')
    with pytest.raises(DataError, match='not one file of a batch can be read'):
        list(files.train_batches(data(), GRID, 0))


@pytest.mark.parametrize('workers', [0, 2])
def test_short_clips_are_held_and_counted(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    files = clips(tmp_path, [4, 2, 1, 3])
    with caplog.at_level(logging.WARNING):
        held = shown(files.eval_batches(data(workers=workers), GRID, 2))
    assert held == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 2]]
    assert files.short == {'c1': 0.5, 'c2': 0.25, 'c3': 0.75} and files.skipped == ()
    assert caplog.text.count('the last frame of a short clip is held') == 1 and 'c1 has 0.50 s only' in caplog.text
