"""Every shipped configuration of pictures makes some updates on small JPEG files, with its own augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

import s4nd.data.images.augment  # noqa: F401 (guards timm's operations)
from s4nd import train
from s4nd.data import ShapeSet
from s4nd.training.config import load_config

PICTURES = [
    name
    for name in train.shipped_configs()
    if load_config(train.find_config(name)).task == 'image'
    and load_config(train.find_config(name)).data.kind in ('cifar10', 'imagenet')
]


def write_jpegs(root: Path, count: int, sides: tuple[int, ...]) -> None:
    """Scenes of two classes with noise over them, as a camera stores them: JPEG of several qualities and shapes."""
    scenes, random = ShapeSet.draw(4 * count, seed=3), np.random.default_rng(0)
    for number in range(2 * count):
        side = sides[number % len(sides)]
        picture = scenes.select(torch.tensor([number])).at(side)[0].permute(1, 2, 0).numpy().astype(int)
        picture = (picture + random.integers(-20, 20, picture.shape)).clip(0, 255).astype(np.uint8)
        picture = picture[: side - number % 5] if len(sides) > 1 else picture
        path = root / f'class{number % 2}' / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=60 + number % 40)


@pytest.mark.parametrize('name', PICTURES)
def test_updates_on_jpeg_files(tmp_path: Path, name: str) -> None:
    config = load_config(train.find_config(name))
    large = config.data.kind == 'imagenet'
    count = 8 if config.optim.accumulate == 1 else 4 * config.optim.accumulate
    write_jpegs(tmp_path / 'data' / 'train', count, (40, 64, 91) if large else (32,))
    write_jpegs(tmp_path / 'data' / ('val' if large else 'test'), 2, (40, 64) if large else (32,))
    words = [
        f'data.root={tmp_path / "data"}', f'out={tmp_path / "out"}', 'data.cache=null', 'data.batch_size=4',
        'max_steps=3', 'device=cpu', 'precision=fp32', 'threads=1', 'eval.limit=4',
    ]  # fmt: skip
    words += ['data.size=32', 'data.workers=0', 'eval.sizes=[32]'] if large else []
    report = train.main([str(train.find_config(name)), *words])
    assert report['training']['updates'] == 3 and report['skipped_files']['count'] == 0


@pytest.mark.parametrize('operation', sorted(auto_augment.NAME_TO_OP))
def test_each_operation_of_the_policies_takes_each_magnitude(tmp_path: Path, operation: str) -> None:
    write_jpegs(tmp_path, 1, (48,))
    image = Image.open(next(tmp_path.rglob('*.jpg')))
    hparams = {'translate_const': 20, 'img_mean': (124, 116, 104), 'interpolation': Image.Resampling.BILINEAR}
    for magnitude in range(11):
        changed = auto_augment.AugmentOp(operation, prob=1.0, magnitude=magnitude, hparams=hparams)(image)
        assert changed.size == image.size and changed.mode == 'RGB'


def test_no_bits_left_are_a_black_picture() -> None:
    white = Image.new('RGB', (4, 4), 'white')
    black = auto_augment.AugmentOp('PosterizeIncreasing', prob=1.0, magnitude=10, hparams={})(white)
    assert not np.array(black).any()


def test_an_unknown_policy_is_named(tmp_path: Path) -> None:
    write_jpegs(tmp_path / 'train', 2, (32,))
    write_jpegs(tmp_path / 'val', 2, (32,))
    words = [f'data.root={tmp_path}', f'out={tmp_path / "out"}', 'data.batch_size=2', 'data.auto_augment=rand-k9']
    with pytest.raises(ValueError, match=r"data\.auto_augment: expected one of timm's policies.* got 'rand-k9'"):
        train.main(['imagenet/s4nd_convnext_tiny', 'device=cpu', 'precision=fp32', 'optim.accumulate=1', *words])
