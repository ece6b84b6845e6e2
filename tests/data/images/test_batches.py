"""Batches: every image once an epoch, crops and mirrors right, the same for the same seed."""

import torch
import torch.nn.functional as F

from s4nd.data.images.batches import Batches, random_crop


def numbered(count: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, size, size).contiguous()
    return images, torch.arange(count)


def test_an_epoch_shows_every_image_once_with_its_label() -> None:
    images, labels = numbered(20)
    batches = list(Batches(images, labels, 5, seed=0))
    seen = torch.cat([labels for _, labels in batches])
    assert sorted(seen.tolist()) == list(range(20)) and seen.tolist() != list(range(20))
    assert all(torch.equal(images[:, 0, 0, 0].long(), labels) for images, labels in batches)


def test_the_seed_decides_and_the_rest_of_a_batch_is_left_out() -> None:
    images, labels = numbered(23)
    options = {'crop_padding': 1, 'flip': True}
    first, second, other = (list(Batches(images, labels, 5, seed, **options)) for seed in (1, 1, 2))
    assert len(first) == len(Batches(images, labels, 5, 1)) == 4
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True))
    assert not all(torch.equal(b, d) for (_, b), (_, d) in zip(first, other, strict=True))
    assert len(list(Batches(images, labels, 50, 0))) == 1


def test_shards_are_the_epoch() -> None:
    images, labels = numbered(20)
    whole = [labels.tolist() for _, labels in Batches(images, labels, 2, 7, flip=True)]
    shards = [Batches(images, labels, 2, 7, flip=True).shard(index, 3) for index in range(3)]
    parts = [[labels.tolist() for _, labels in shard] for shard in shards]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole[:9]


def test_a_crop_equals_the_slice_of_the_padded_image() -> None:
    images = torch.randint(0, 256, (9, 3, 6, 7), dtype=torch.uint8)
    offsets = torch.tensor([[row, column] for row in (0, 2, 4) for column in (0, 1, 4)])
    cropped, padded = random_crop(images, offsets, 2), F.pad(images, (2, 2, 2, 2))
    for number, (row, column) in enumerate(offsets.tolist()):
        assert torch.equal(cropped[number], padded[number, :, row : row + 6, column : column + 7])


def test_crops_reach_every_offset_and_mirrors_half_of_the_images() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    images = image.expand(1000, 1, 4, 4).contiguous()
    (cropped, _), *_ = Batches(images, torch.zeros(1000), 1000, 0, crop_padding=1)
    assert len(cropped.unique(dim=0)) == 9
    (mirrored, _), *_ = Batches(images, torch.zeros(1000), 1000, 0, flip=True)
    flipped = (mirrored == image.flip(-1)).all(-1).all(-1).all(-1)
    assert (flipped | (mirrored == image).all(-1).all(-1).all(-1)).all() and 400 < flipped.sum() < 600
    assert torch.equal(images, image.expand(1000, 1, 4, 4))  # the stored images are as they were
