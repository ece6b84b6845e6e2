"""`python -m s4nd.evaluate`: a checkpoint at many sizes."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from s4nd import evaluate, save_for_hf, train
from s4nd.models import load_checkpoint
from s4nd.tasks import make_task
from s4nd.training.checkpoint import CheckpointError, find_weights, read_metadata
from s4nd.training.config import ConfigError, load_config
from tests.data.clips.test_named import write_fashion

CIFAR10_CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
CONFIG = """
model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}}
data: {kind: shapes, size: 8, batch_size: 10, train_count: 40, test_count: 20}
epochs: 1
device: cpu
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'tiny.yaml').write_text(CONFIG)
    train.main([str(folder / 'tiny.yaml'), f'out={folder / "run"}', 'eval.sizes=[6x10,8]'])
    return folder / 'run'


def test_a_run_is_evaluated_at_every_size_as_train_py_does_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate.main([f'checkpoint={trained}', 'sizes=[6x10,8,16,10x6]', f'out={tmp_path}'])
    written = json.loads((trained / 'report.json').read_text())
    assert report['results'].items() >= written['results'].items() and 'accuracy@6x10' in written['results']
    names = ['6x10', '8', '10x6', '16']
    assert set(report['results']) == {f'{metric}@{n}' for metric in ('accuracy', 'cross_entropy') for n in names}
    assert list(report['milliseconds']) == names and min(report['milliseconds'].values()) > 0
    assert json.loads((tmp_path / 'evaluation.json').read_text()) == report
    table = (tmp_path / 'evaluation.txt').read_text()
    assert f'\n20 images measured\n{table}' in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[0].split()[-4:] == ['accuracy@6x10', 'accuracy@10x6', 'accuracy@8', 'accuracy@16']
    assert '*' in lines[2].split()[-2] and lines[3].split()[:3] == ['ms', 'per', 'input']
    with Image.open(tmp_path / 'evaluation.png') as picture:
        assert picture.size == (1120, 840)


def test_the_resized_baseline_has_metrics_and_times_beside_the_direct_ones(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate.main([f'checkpoint={trained}', 'sizes=[8,16]', 'resample=true', f'out={tmp_path}'])
    baseline = report['resampled']
    assert set(baseline['results']) == set(report['results']) and min(baseline['milliseconds'].values()) > 0
    assert baseline['results']['cross_entropy@8'] == report['results']['cross_entropy@8']
    # The same scenes, drawn finer and averaged: the model sees the pixels of training, up to bytes.
    assert baseline['results']['cross_entropy@16'] == pytest.approx(report['results']['cross_entropy@8'], abs=0.01)
    assert 'run, resampled' in capsys.readouterr().out


@pytest.mark.parametrize('words', [['series/delay'], ['demo/sashimi'], ['demo/shapes_s4nd', 'data.sequence=true']])
def test_a_task_without_sizes_or_rates_has_no_resized_baseline(words: list[str]) -> None:
    config = load_config(train.find_config(words[0]), [*words[1:], 'eval.resample=true'])
    with pytest.raises(ConfigError, match=r'eval\.resample=true needs inputs with a size or a rate'):
        make_task(config)


def test_weights_alone_need_only_be_told_the_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(trained / 'last.safetensors', tmp_path / 'weights.safetensors')
    told = ['data.kind=shapes', 'data.test_count=20', 'data.batch_size=10', 'device=cpu']
    report = evaluate.main([f'checkpoint={alone}', *told])
    written = json.loads((trained / 'report.json').read_text())
    assert report['results'] == {key: written['results'][key] for key in ('accuracy@8', 'cross_entropy@8')}
    assert {path.name for path in tmp_path.iterdir()} == {'weights.safetensors', 'evaluation.json', 'evaluation.txt'}
    assert evaluate.main([f'checkpoint={alone}', *told, 'limit=7'])['test_examples'] == {'measured': 7, 'total': 20}
    assert '7 of 20 images measured; eval.limit=null measures all' in capsys.readouterr().out


@pytest.fixture(scope='module')
def forms(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model as a run, as folders of the hub (ours, timm's), as a file of one, and as timm's train.py leaves it."""
    model, folder = load_checkpoint(trained), tmp_path_factory.mktemp('forms')
    save_for_hf(model, folder / 'hub')
    timm.models.save_for_hf(model, folder / 'timm', safe_serialization=True)
    args = Namespace(model_kwargs={**trained_args(trained)}, num_classes=None, in_chans=None, gp=None)
    (folder / 'train').mkdir()
    torch.save({'arch': 's4nd_isotropic_mini', 'args': args, 'state_dict': model.state_dict()},
               folder / 'train' / 'last.pth.tar')  # fmt: skip
    return {
        'run': trained, 'hub': folder / 'hub', 'timm': folder / 'timm', 'file': folder / 'hub' / 'model.safetensors',
        'train.py': folder / 'train', 'last.pth.tar': folder / 'train' / 'last.pth.tar',
    }  # fmt: skip


def trained_args(run: Path) -> dict:
    return json.loads(read_metadata(run / 'best.safetensors')['args'])


@pytest.mark.parametrize('form', ['run', 'hub', 'timm', 'file', 'train.py', 'last.pth.tar'])
def test_weights_in_every_form(trained: Path, forms: dict[str, Path], form: str, tmp_path: Path) -> None:
    told = ['data.kind=shapes', 'data.test_count=20', 'data.batch_size=10', 'device=cpu', f'out={tmp_path}']
    report = evaluate.main([f'checkpoint={forms[form]}', 'sizes=[8,6x10]', *told])
    assert report['results'] == json.loads((trained / 'report.json').read_text())['results']


def test_a_run_is_a_folder_of_the_hub(trained: Path) -> None:
    ours, theirs = load_checkpoint(trained), timm.create_model(f'local-dir:{trained}', pretrained=True).eval()
    x = torch.randn(2, 3, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), atol=0, rtol=0)
    assert theirs.img_size == (8, 8) and theirs.pretrained_cfg['label_names'] == json.loads(
        read_metadata(trained / 'best.safetensors')['classes']
    )


def test_weights_that_name_no_model(trained: Path, tmp_path: Path) -> None:
    save_file(load_checkpoint(trained).state_dict(), tmp_path / 'model.safetensors')
    for read in (load_checkpoint, lambda path: evaluate.main([f'checkpoint={path}'])):
        with pytest.raises(CheckpointError, match=r'names no model: expected metadata, or a config\.json beside it'):
            read(tmp_path)


@pytest.mark.parametrize(
    ('words', 'error', 'message'),
    [
        ([], ConfigError, r'expected checkpoint='),
        (['checkpoint=/no/such'], FileNotFoundError, r'no checkpoint at /no/such'),
        (['sizes=[8,0]'], ConfigError, r"eval.sizes: expected a size of at least 1, .* got '0'"),
        (['siz=[8]'], ConfigError, r"unknown option 'siz'"),
        (
            ['model.name=conv2d_isotropic_mini'],
            CheckpointError,
            r'of s4nd_isotropic_mini, expected conv2d_',
        ),
    ],
)
def test_mistakes(trained: Path, words: list[str], error: type[Exception], message: str) -> None:
    given = words if not words or words[0].startswith('checkpoint') else [f'checkpoint={trained}', *words]
    with pytest.raises(error, match=message):
        evaluate.main(given)


def test_images_of_other_classes_are_refused(trained: Path, tmp_path: Path) -> None:
    for split in ('train', 'test'):
        for label in 'abc':
            (tmp_path / split / label).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / split / label / '0.png')
    words = ['data.kind=folder', f'data.root={tmp_path}', 'data.cache=null']
    with pytest.raises(CheckpointError, match='tells 10 classes apart, the data are of 3'):
        evaluate.main([f'checkpoint={trained}', *words])


def test_a_folder_is_measured_whole_by_weights_that_ship(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Class folders alone, no word about splits; other names of classes are no error, and are said."""
    weights, known = find_weights('s4nd_isotropic_mini.cifar10'), CIFAR10_CLASSES
    for label in known:
        (tmp_path / label).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / label / '0.png')
    words = [f'data.root={tmp_path}', 'data.cache=null', 'eval_only=true']
    task = make_task(load_config(weights.with_suffix('.yaml'), words))
    assert task.splits.test.labels.tolist() == list(range(10))
    task.load_model(weights)
    assert not caplog.records
    (tmp_path / 'airplane').rename(tmp_path / 'aeroplane')
    make_task(load_config(weights.with_suffix('.yaml'), words)).load_model(weights)
    assert '["airplane", ' in caplog.text and 'the data aeroplane, automobile' in caplog.text


def test_clips_are_measured_at_sizes_and_frame_rates_also_from_weights_alone(tmp_path: Path) -> None:
    write_fashion(tmp_path / 'fashion')
    (tmp_path / 'clips.yaml').write_text("""
task: video
model: {name: s4nd_isotropic3d_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, patch: 2}}
data: {kind: moving, size: 8, frame_rate: 4, seconds: 1, batch_size: 6, train_count: 6, test_count: 6}
max_steps: 1
device: cpu
""")
    root = f'data.root={tmp_path / "fashion"}'
    train.main([str(tmp_path / 'clips.yaml'), root, f'out={tmp_path / "run"}'])
    report = evaluate.main([f'checkpoint={tmp_path / "run"}', 'sizes=[8,16]', 'frame_rates=[2,4]'])
    assert list(report['milliseconds']) == ['8', '16', '2fps', '4fps']
    assert report['axes']['frame_rate'] == {'unit': 'frames per second', 'trained': '4fps', 'points': ['2fps', '4fps']}
    alone = shutil.copy(tmp_path / 'run' / 'last.safetensors', tmp_path / 'weights.safetensors')
    words = [root, 'data.seconds=1', 'data.test_count=6', 'data.train_count=6', 'device=cpu', 'frame_rates=[2]']
    again = evaluate.main([f'checkpoint={alone}', *words])
    assert again['results'].items() <= report['results'].items() and set(again['milliseconds']) == {'8', '2fps'}


def test_series_have_metrics_and_no_points(tmp_path: Path) -> None:
    (tmp_path / 'series.yaml').write_text("""
task: series
model: {name: sssd_s4, args: {d_model: 4, n_layers: 1, condition: 4, mixer_args: {d_state: 4}, diffusion: {steps: 8}}}
data: {length: 32, train_count: 32, test_count: 4}
eval: {samples: 1}
max_steps: 1
device: cpu
""")
    trained = train.main([str(tmp_path / 'series.yaml'), f'out={tmp_path / "run"}'])
    report = evaluate.main([f'checkpoint={tmp_path / "run"}'])
    assert report['results'] == trained['results'] and report['axes'] == {} and 'milliseconds' not in report
    assert set(report['results']) == {'val_loss', 'test_loss', 'mse_random:0.5', 'mse_gap:16', 'mse_forecast:16'}
