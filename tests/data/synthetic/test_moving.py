"""Moving items: the same scene on every grid, and frames that tell nothing of the motion."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor

from s4nd.data import MOTIONS, ClipGrid, MovingSet
from s4nd.data.clips.options import VideoData

SECONDS = 2.0


def items(count: int = 5) -> Tensor:
    """Bright blobs, each with its middle elsewhere, so that their turning can be seen."""
    line = torch.linspace(-1, 1, 28)
    places = torch.linspace(-0.5, 0.5, count)
    blobs = [torch.exp(-8 * ((line[:, None] - place) ** 2 + (line - 0.3) ** 2)) for place in places]
    return (255 * torch.stack(blobs)[:, None]).to(torch.uint8)


def clips(count: int = 24, seed: int = 0) -> MovingSet:
    return MovingSet.draw(items(), count, seed)


def grid(size: int = 16, frame_rate: float = 4.0) -> ClipGrid:
    return ClipGrid((size, size), frame_rate, SECONDS)


def test_clips_are_bytes_and_the_classes_come_in_turn() -> None:
    moving = clips(30)
    shown = moving.at(ClipGrid((8, 12), 4.0, SECONDS))
    assert shown.shape == (30, 1, 8, 8, 12) and shown.dtype == torch.uint8
    assert moving.labels.tolist() == [index % 12 for index in range(30)] and len(MOTIONS) == 12
    assert shown.float().std() > 10  # there is something to see


def test_a_clip_follows_from_seed_epoch_and_number_alone() -> None:
    few, many = clips(13).at(grid()), clips(40).at(grid())
    assert torch.equal(few, many[:13])
    assert torch.equal(clips(40).select(torch.tensor([7, 30])).at(grid()), many[[7, 30]])
    assert not torch.equal(clips(13, seed=1).at(grid()), few)
    batches = [clips().train_batches(VideoData(batch_size=10), grid(), epoch) for epoch in (0, 0, 1)]
    first, again, other = (next(iter(part)) for part in batches)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and len(batches[0]) == 2


def test_another_size_is_the_same_scene() -> None:
    large = clips().at(grid(64)).float()
    for size in (16, 32):
        mean = F.avg_pool3d(large, (1, 64 // size, 64 // size))
        assert (clips().at(grid(size)) - mean).abs().max() <= 1  # bytes are rounded
    # 24 does not divide the sample points of 64: the same scene all the same.
    coarse = F.avg_pool3d(clips().at(grid(24)).float(), (1, 3, 3))
    assert (F.avg_pool3d(large, (1, 8, 8)) - coarse).abs().max() < 6


def test_another_frame_rate_is_the_same_scene() -> None:
    # The middle of a frame is the middle of the second of three.
    slow, fast = clips().at(grid(frame_rate=4.0)), clips().at(grid(frame_rate=12.0))
    assert slow.shape[2] == 8 and fast.shape[2] == 24
    assert (fast[:, :, 1::3].float() - slow.float()).abs().max() <= 1
    # Between two frames of half the rate lies one of theirs, at a pose between.
    poses = [clips().pose(torch.tensor(grid(frame_rate=rate).times())) for rate in (4.0, 8.0)]
    middle = poses[1][:, ::2] + ((poses[1][:, 1::2] - poses[1][:, ::2] + 0.5) % 1 - 0.5) / 2
    straight = clips().labels < MOTIONS.index('clockwise')
    assert ((middle - poses[0] + 0.5) % 1 - 0.5)[straight].abs().max() < 1e-5


def shift(shares: Tensor) -> Tensor:
    """The way between neighboring frames on a circle of length 1, the short way round."""
    return (shares.diff(dim=1) + 0.5) % 1 - 0.5


def test_every_motion_is_what_its_name_says() -> None:
    moving = clips(240)
    pose = moving.pose(torch.arange(0, SECONDS, 1 / 32))
    step = shift(pose) * 32  # a second
    for label, name in enumerate(MOTIONS):
        down, right, turn, growth = step[moving.labels == label].unbind(2)
        moves = {'down': down, 'right': right, 'turn': turn, 'growth': growth}
        axis, sign = {
            'left': ('right', -1), 'right': ('right', 1), 'up': ('down', -1), 'down': ('down', 1),
            'zoom in': ('growth', 1), 'zoom out': ('growth', -1), 'spin right': ('turn', 1), 'spin left': ('turn', -1),
        }.get(name, (None, 0))  # fmt: skip
        for other, speed in moves.items():
            if other == axis:
                assert (sign * speed > 0.19).all() and speed.std(1).max() < 1e-3
            elif name not in ('clockwise', 'anticlockwise', 'bounce'):
                assert speed.abs().max() < 1e-3
        bend = right[:, :-1] * down[:, 1:] - down[:, :-1] * right[:, 1:]
        if name in ('clockwise', 'anticlockwise'):  # y points down, so a positive bend is clockwise
            assert (bend * (1 if name == 'clockwise' else -1) > 0).all()
        if name == 'bounce':  # along a line, at one speed, and back
            speed = torch.hypot(down, right)
            forth = (down * down[:, :1] + right * right[:, :1]).sign()
            assert bend.abs().max() < 1e-3 and ((forth.diff(dim=1) != 0).sum(1) >= 1).all()
            assert (speed.median(1).values > 0.17).all()


def test_an_item_is_drawn_at_its_pose() -> None:
    """Brightness pulls the mean of a picture towards the item: its place on the torus, from the angle of a moment."""
    bright = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    moving = MovingSet.draw(bright, 48, 0)
    shown = moving.at(ClipGrid((32, 32), 4.0, SECONDS))[:, 0].float()
    pose = moving.pose(torch.tensor(ClipGrid((32, 32), 4.0, SECONDS).times()))
    wave = torch.exp(2j * math.pi * (torch.arange(32) + 0.5) / 32)
    figure = (shown > 110).float()  # clouds reach 0.3, the figure begins at 0.5
    for axis, across in ((0, figure.sum(3)), (1, figure.sum(2))):
        place = torch.einsum('nts,s->nt', across.cfloat(), wave).angle() / (2 * math.pi)
        assert ((place - pose[..., axis] + 0.5) % 1 - 0.5).abs().max() < 0.02
    side = figure.sum((2, 3)).sqrt() / 32
    assert (side.log() - (pose[..., 3] * math.log(0.62 / 0.28) + math.log(0.28))).abs().max() < 0.12


def test_a_spin_to_the_right_turns_the_picture_clockwise() -> None:
    """On a bar, which has a direction to measure: the angle of its second moment grows (y points down)."""
    bar = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    bar[..., 12:16, :] = 255
    for name, sign in (('spin right', 1), ('spin left', -1)):
        moving = MovingSet.draw(bar, 600, 0)
        moving = moving.select((moving.labels == MOTIONS.index(name)).nonzero().flatten())
        times = torch.tensor(grid(64, 8.0).times())
        centered = (moving.pose(times)[..., :2] - 0.5).abs().amax((1, 2)) < 0.15
        moving = moving.select(centered.nonzero().flatten())
        figure = (moving.at(grid(64, 8.0))[:, 0].float() - 85).clamp(min=0)
        line = torch.arange(64.0)
        weight = figure / figure.sum((2, 3), keepdim=True)
        y = line[:, None] - (weight * line[:, None]).sum((2, 3), keepdim=True)
        x = line - (weight * line).sum((2, 3), keepdim=True)
        angle = torch.atan2(2 * (weight * x * y).sum((2, 3)), (weight * (x * x - y * y)).sum((2, 3))) / (2 * math.pi)
        assert len(moving.indices) >= 2 and (shift(angle) * sign > 0).all()


@pytest.mark.parametrize('time', [0.0, 1.0, 1.9])
def test_at_any_instant_the_pose_is_uniform_whatever_the_class(time: float) -> None:
    moving = clips(12 * 400)
    pose = moving.pose(torch.tensor([time]))[:, 0]
    lowest = min(
        kstest(pose[moving.labels == label, axis].numpy(), 'uniform').pvalue for label in range(12) for axis in range(4)
    )
    assert lowest > 1e-3  # of 48; a start that depends on the class gives 1e-20


@pytest.mark.parametrize('time', [0.01, 1.9])
def test_the_statistics_of_a_frame_do_not_depend_on_the_class(time: float) -> None:
    moving = clips(12 * 80)
    shown = moving.at(ClipGrid((8, 8), 0.5 / time, 2 * time))[:, 0, 0].float()
    means = torch.stack([shown[moving.labels == label].mean(0) for label in range(12)])
    error = shown.std(0) / 80**0.5
    assert ((means - shown.mean(0)) / error).square().mean() < 1.25  # 1 if nothing but chance is at work


def test_shards_and_evaluation_see_every_clip_once() -> None:
    batches = clips(23).eval_batches(VideoData(), grid(), 5)
    assert len(batches) == 5
    seen = [shown for index in (0, 1) for shown, _ in batches.shard(index, 2)]
    assert sorted(torch.cat(seen).flatten(1).sum(1).tolist()) == sorted(clips(23).at(grid()).flatten(1).sum(1).tolist())
    assert len(clips(5).train_batches(VideoData(batch_size=16), grid(), 0)) == 1


@pytest.mark.parametrize('wrong', [items()[:, 0], items().float(), items()[:0], items().expand(-1, 3, -1, -1)])
def test_items_that_cannot_be_used(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r'expected items as bytes \(M, 1, h, h\), got torch'):
        MovingSet.draw(wrong, 5, 0)
