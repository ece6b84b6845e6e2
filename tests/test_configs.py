"""Every shipped configuration makes some updates on small files of its kind, with its own augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

import s4nd.data.images.augment  # noqa: F401 (guards timm's operations)
from audio.io import write_audio
from s4nd import train
from s4nd.data import ShapeSet
from s4nd.training.config import load_config
from tests.audio.data.test_files import speech_commands
from tests.data.clips.test_files import write_frames
from tests.data.clips.test_named import hmdb51

CONFIGS = {name: load_config(train.find_config(name)) for name in train.shipped_configs()}
PICTURES = [
    name for name, config in CONFIGS.items() if config.task == 'image' and config.data.kind in ('cifar10', 'imagenet')
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
    config = CONFIGS[name]
    large = config.data.kind == 'imagenet'
    count = 8 if config.optim.accumulate == 1 else 4 * config.optim.accumulate
    write_jpegs(tmp_path / 'data' / 'train', count, (40, 64, 91) if large else (32,))
    write_jpegs(tmp_path / 'data' / ('val' if large else 'test'), 2, (40, 64) if large else (32,))
    words = [
        f'data.root={tmp_path / "data"}', f'out={tmp_path / "out"}', 'data.cache=null', 'data.batch_size=4',
        'max_steps=3', 'device=cpu', 'precision=fp32', 'threads=1', 'eval.limit=4',
    ]  # fmt: skip
    if large:
        words += ['data.size=32', 'data.workers=0', 'eval.sizes=[32]', 'model.args.depths=[1,1,1,1]']
    report = train.main([name, *words])
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


SEQUENCES = [name for name, config in CONFIGS.items() if config.task == 'sequence']


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
    data = CONFIGS[name].data
    (tmp_path / 'data').mkdir()
    words = [
        f'out={tmp_path / "out"}', 'data.train_count=4', 'data.test_count=2', 'data.batch_size=2', 'max_steps=2',
        'device=cpu', 'threads=1', 'eval.limit=2', 'model.args.d_model=8', 'model.args.n_layers=1',
    ]  # fmt: skip
    words += [f'data.length={576 if data.kind == "pathfinder" else 64}', 'data.lag=5', 'data.shortest=null']
    if data.root is None and data.kind in ('cifar10', 'fashion_mnist', 'text', 'folder', 'listops_files', 'retrieval'):
        words += [f'data.root={write_sequences(tmp_path / "data", data.kind)}']
    if 'kernel_args' in CONFIGS[name].model.args['layer_args']:
        words += ['model.args.layer_args.kernel_args.n_ssm=1']
    report = train.main([name, *words])
    assert report['training']['updates'] == 2 and all(np.isfinite(list(report['results'].values())))


def of_task(task: str) -> list[str]:
    return [name for name, config in CONFIGS.items() if config.task == task]


@pytest.mark.parametrize('name', of_task('forecast'))
def test_updates_on_a_table(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 2))
    lines = ['date,HUFL,OT', *(f'2016-07-01 {i},{a},{b}' for i, (a, b) in enumerate(rows))]
    (tmp_path / 'x.csv').write_text('\n'.join(lines))
    words = [
        f'data.root={tmp_path / "x.csv"}', 'data.target=OT', f'out={tmp_path / "out"}', 'data.context=16',
        'data.horizon=4', 'data.batch_size=4', 'max_steps=2', 'eval.limit=4', f'eval.picture={tmp_path / "f.png"}',
        'device=cpu',
    ]  # fmt: skip
    words += [] if name.endswith('dlinear') else ['model.args.d_model=8', 'model.args.n_layers=1']
    report = train.main([name, *words])
    assert report['training']['updates'] == 2 and {'mse', 'mae', 'crps', 'mse_linear'} <= set(report['results'])
    assert all(np.isfinite(list(report['results'].values()))) and (tmp_path / 'f.png').is_file()


def write_recordings(root: Path, kind: str) -> Path:
    """Noise in the layout of `kind`, at a rate that no configuration has."""
    random = np.random.default_rng(0)
    if kind in ('sc09', 'speech_commands'):
        speech_commands(root)
    elif kind == 'digits':  # two digits; by their index two of each for training, one for validation and test
        for number in range(8):
            wave = torch.from_numpy(random.uniform(-1, 1, 5512)).float()
            write_audio(root / f'{number % 2}_theo_{(0, 5, 10, 11)[number // 2]}.wav', wave, 11025)
    else:
        write_audio(root / 'a.flac', torch.from_numpy(random.uniform(-1, 1, 6 * 11025)).float(), 11025)
    return root


@pytest.mark.parametrize('name', of_task('audio'))
def test_updates_on_recordings(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    words = [
        f'out={tmp_path / "out"}', f'data.cache={tmp_path / "cache"}', 'data.batch_size=2', 'max_steps=2', 'epochs=2',
        'device=cpu', 'threads=1', 'eval.limit=2', 'data.train_count=4', 'data.test_count=2', 'eval.sample_rates=[]',
        'data.clip_samples=1600',
    ]  # fmt: skip
    if config.data.kind != 'plucked':
        words += [f'data.root={write_recordings(tmp_path / "data", config.data.kind)}']
    if config.model.name == 'sashimi':
        words += ['model.args.d_model=8', 'model.args.n_layers=1']
    report = train.main([name, *words])
    assert report['training']['updates'] == 2 and report['skipped_files']['count'] == 0
    assert all(np.isfinite(list(report['results'].values())))


def write_clips(root: Path, kind: str) -> list[str]:
    """Fashion-MNIST of a few items, or clips of two classes with the lists of HMDB-51; the words that name them."""
    if kind in ('fashion_mnist', 'moving'):
        root.mkdir(exist_ok=True)
        write_sequences(root, 'fashion_mnist')
        return [f'data.root={root}']
    root.mkdir()
    hmdb51(root / 'lists')
    for number, name in enumerate(('run/a', 'run/b', 'jump/d', 'jump/e')):
        write_frames(root / 'clips' / name, 12 + number, (40, 48))
    return [f'data.root={root / "clips"}', f'data.split_files={root / "lists"}', 'data.stored_rate=8']


def try_clips(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """Two updates of a recipe, after two of the recipe that it is inflated from."""
    config = CONFIGS[name]
    words = [
        f'out={folder / Path(config.out).name}', 'max_steps=2', 'epochs=2', 'data.batch_size=2', 'data.workers=0',
        'optim.accumulate=1', 'eval.sizes=[]', 'data.train_count=12', 'data.test_count=12',
        'device=cpu', 'precision=fp32', 'threads=1', 'eval.limit=2',
    ]  # fmt: skip
    words += [f'data.size={32 if config.data.size == 224 else 16}']
    source = getattr(config.model, 'inflate', None)
    if source is not None:
        (before,) = [other for other in CONFIGS if other.endswith(f'/{Path(source).name}')]
        try_clips(before, folder, *more)
        words += [f'model.inflate={folder / Path(source).name}']
    if config.data.kind == 'imagenet':
        write_jpegs(folder / 'pictures' / 'train', 2, (40, 64))
        write_jpegs(folder / 'pictures' / 'val', 2, (40, 64))
        words += [f'data.root={folder / "pictures"}', 'model.args.depths=[1,1,1,1]', 'model.args.dims=[8,8,8,8]']
    else:
        words += write_clips(folder / 'data', config.data.kind)
    return train.main([name, *words, *more])


@pytest.mark.parametrize('name', ['video/fashion_s4nd', *of_task('video')])
def test_updates_on_clips(tmp_path: Path, name: str) -> None:
    report = try_clips(name, tmp_path)
    assert report['training']['updates'] == 2 and report['skipped_files']['count'] == 0
    assert all(np.isfinite(list(report['results'].values())))


@pytest.mark.parametrize('name', ['demo/shapes_conv2d', 'demo/shapes_s4nd', 'series/sines'])
def test_updates_on_embedded_sets(tmp_path: Path, name: str) -> None:
    words = ['data.train_count=8', 'data.test_count=4', 'data.batch_size=4', 'max_steps=2', 'eval.limit=4']
    report = train.main([name, *words, f'out={tmp_path / "out"}', 'device=cpu', 'threads=1'])
    assert report['training']['updates'] == 2


def test_every_configuration_is_tried() -> None:
    tried = {
        'video/fashion_s4nd',
        *PICTURES,
        *SEQUENCES,
        *of_task('audio'),
        *of_task('video'),
        *of_task('series'),
        *of_task('forecast'),
    }
    assert tried | {'demo/shapes_conv2d', 'demo/shapes_s4nd'} == set(CONFIGS)
