"""Every shipped configuration of pictures and of sequences makes some updates on small files of its kind."""

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


SEQUENCES = [name for name in train.shipped_configs() if load_config(train.find_config(name)).task == 'sequence']


def write_sequences(root: Path, kind: str) -> Path:
    """A few small files in the layout of `kind`; the folder or file that is data.root."""
    random = np.random.default_rng(0)
    if kind == 'cifar10':
        write_jpegs(root / 'train', 10, (32,))
        write_jpegs(root / 'test', 2, (32,))
    elif kind == 'fashion_mnist':
        for part in ('train', 't10k'):
            images, labels = random.integers(0, 256, (20, 8, 8), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
            for array, name in ((images, 'images-idx3'), (labels, 'labels-idx1')):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
                (root / f'{part}-{name}-ubyte').write_bytes(header + array.tobytes())
    elif kind == 'text':
        (root / 'x.txt').write_text('abc ' * 400)
        return root / 'x.txt'
    elif kind == 'folder':
        for number in range(20):
            path = root / ('train', 'test')[number % 2] / ('pos', 'neg')[number // 2 % 2] / f'{number}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('abc' * (number + 1))
    else:
        for listops, aan in (('train', 'train'), ('val', 'eval'), ('test', 'test')):
            (root / f'basic_{listops}.tsv').write_text('Source\tTarget\n' + '( ( [MAX 4 ) 2 ) ]\t4\n' * 4)
            (root / f'new_aan_pairs.{aan}.tsv').write_text('1.0\tA\tB\tone\tother\n' * 4)
    return root


@pytest.mark.parametrize('name', SEQUENCES)
def test_updates_on_sequences(tmp_path: Path, name: str) -> None:
    data = load_config(train.find_config(name)).data
    (tmp_path / 'data').mkdir()
    words = [
        f'out={tmp_path / "out"}', 'data.train_count=4', 'data.test_count=2', 'data.batch_size=2', 'max_steps=2',
        'device=cpu', 'threads=1', 'eval.limit=2', 'model.args.d_model=8', 'model.args.n_layers=1',
    ]  # fmt: skip
    words += [f'data.length={576 if data.kind == "pathfinder" else 64}', 'data.lag=5', 'data.shortest=null']
    if data.root is None and data.kind in ('cifar10', 'fashion_mnist', 'text', 'folder', 'listops_files', 'retrieval'):
        words += [f'data.root={write_sequences(tmp_path / "data", data.kind)}']
    if 'kernel_args' in load_config(train.find_config(name)).model.args['layer_args']:
        words += ['model.args.layer_args.kernel_args.n_ssm=1']
    report = train.main([str(train.find_config(name)), *words])
    assert report['training']['updates'] == 2 and all(np.isfinite(list(report['results'].values())))


FORECASTS = [name for name in train.shipped_configs() if load_config(train.find_config(name)).task == 'forecast']


@pytest.mark.parametrize('name', FORECASTS)
def test_updates_on_a_table(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 2))
    lines = ['date,HUFL,OT', *(f'2016-07-01 {i},{a},{b}' for i, (a, b) in enumerate(rows))]
    (tmp_path / 'x.csv').write_text('\n'.join(lines))
    words = [
        f'data.root={tmp_path / "x.csv"}', 'data.target=OT', f'out={tmp_path / "out"}', 'data.context=16',
        'data.horizon=4', 'data.batch_size=4', 'max_steps=2', 'eval.limit=4', f'eval.picture={tmp_path / "f.png"}',
        'model.args.d_model=8', 'model.args.n_layers=1', 'device=cpu',
    ]  # fmt: skip
    report = train.main([str(train.find_config(name)), *words])
    assert report['training']['updates'] == 2 and {'mse', 'mae', 'crps', 'mse_linear'} <= set(report['results'])
    assert all(np.isfinite(list(report['results'].values()))) and (tmp_path / 'f.png').is_file()
