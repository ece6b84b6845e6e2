"""train.py on clips, from end to end, at a size of seconds."""

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from s4nd import train
from s4nd.models import load_checkpoint
from s4nd.tasks.clips import VideoConfig, VideoTask
from s4nd.tasks.images import ImageConfig
from s4nd.training.checkpoint import CheckpointError, read_metadata
from s4nd.training.config import ConfigError, load_config
from tests.data.clips.test_files import write_frames
from tests.data.clips.test_named import write_fashion

CONFIG = """
task: video
model: {name: s4nd_isotropic3d_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5, patch: 2}}
data: {kind: moving, size: 8, frame_rate: 4, seconds: 1, batch_size: 6, train_count: 12, test_count: 12}
eval: {sizes: [16, 8], frame_rates: [2, 8, 4]}
epochs: 2
device: cpu
"""


@pytest.fixture
def run(tmp_path: Path):
    path = tmp_path / 'tiny.yaml'
    path.write_text(CONFIG)
    write_fashion(tmp_path / 'fashion')

    def start(*options: str, out: str = 'run') -> dict:
        return train.main([str(path), f'data.root={tmp_path / "fashion"}', f'out={tmp_path / out}', *options])

    return start


def test_a_run_is_evaluated_across_sizes_and_frame_rates(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, again = run(), run(out='again')
    assert report['results'] == again['results']
    names = ['8', '16', '2fps', '4fps', '8fps']
    assert list(report['results']) == [f'{metric}@{name}' for name in names for metric in ('accuracy', 'cross_entropy')]
    assert report['results']['accuracy@8'] == report['results']['accuracy@4fps']
    assert {name: axis['trained'] for name, axis in report['axes'].items()} == {'size': '8', 'frame_rate': '4fps'}
    assert report['short_clips'] == report['skipped_files'] == {'count': 0, 'first': []}
    assert json.loads((tmp_path / 'run' / 'report.json').read_text())['results'] == report['results']
    assert (tmp_path / 'run' / 'report.png').is_file()
    assert 'accuracy@2fps  accuracy@4fps  accuracy@8fps' in capsys.readouterr().out
    saved = load_config(tmp_path / 'run' / 'config.yaml')
    assert isinstance(saved, VideoConfig)
    assert saved.model.args['img_size'] == [8, 8] and saved.model.args['num_frames'] == 4
    # The folder is one of the hub's form, which timm reads.
    ours = load_checkpoint(tmp_path / 'run')
    theirs = timm.create_model(f'local-dir:{tmp_path / "run"}', pretrained=True).eval()
    clip = torch.randn(2, 1, 5, 8, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs(clip), ours(clip), atol=0, rtol=0)
    assert (theirs.num_frames, theirs.img_size) == (4, (8, 8))


def test_an_interrupted_run_goes_on_where_it_stopped(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    epochs = VideoTask.train_batches

    def stop(self, epoch: int):
        if epoch == 1:
            raise KeyboardInterrupt
        return epochs(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(VideoTask, 'train_batches', stop)
        with pytest.raises(KeyboardInterrupt):
            run(out='parts')
    resumed = train.main([str(tmp_path / 'parts' / 'config.yaml'), 'resume=true'])
    assert resumed['results'] == whole['results']
    first, second = (load_file(tmp_path / name / 'last.safetensors') for name in ('run', 'parts'))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_checkpoint_is_evaluated_and_trained_further_on_other_grids(run, tmp_path: Path) -> None:
    report = run('max_steps=1')
    weights = tmp_path / 'run' / 'last.safetensors'
    given = [str(tmp_path / 'run' / 'config.yaml'), 'eval_only=true', f'checkpoint={weights}']
    again = train.main([*given, 'eval.frame_rates=[8]', 'eval.sizes=[16]', f'out={tmp_path / "e"}'])
    assert set(again['results']) == {
        f'{metric}@{name}' for metric in ('accuracy', 'cross_entropy') for name in ('16', '8fps')
    }
    assert again['results'].items() <= report['results'].items()
    assert load_checkpoint(weights).num_frames == 4
    # Training goes on at twice the frame rate and size; the layers keep the grid that the weights were trained on.
    grid = ['data.size=16', 'data.frame_rate=8', 'eval.sizes=[16]', 'eval.frame_rates=[]']
    both = run(f'checkpoint={weights}', 'optim.lr=0', 'max_steps=1', *grid, out='finer')
    before = train.main([*given, *grid, f'out={tmp_path / "f"}'])
    assert both['results']['cross_entropy@16'] == pytest.approx(before['results']['cross_entropy@16'], rel=1e-4)
    assert (
        load_checkpoint(tmp_path / 'finer').num_frames == 4
        and read_metadata(tmp_path / 'finer' / 'last.safetensors')['frame_rate'] == '8fps'
    )


def test_frame_by_frame_a_model_of_images_is_trained(run, tmp_path: Path) -> None:
    report = run('model.name=s4nd_isotropic_mini', 'model.args.patch=null', 'model.frame_by_frame=true')
    assert len(report['results']) == 10


def test_a_video_model_begins_with_an_image_model(run, tmp_path: Path) -> None:
    images = tmp_path / 'images.yaml'
    images.write_text("""
model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, patch: 2}}
data: {kind: fashion_mnist, size: 16, batch_size: 4}
max_steps: 1
device: cpu
""")
    train.main([str(images), f'data.root={tmp_path / "fashion"}', f'out={tmp_path / "images"}'])
    config = tmp_path / 'inflated.yaml'
    lines = CONFIG.replace(
        'args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5, patch: 2}', 'args: {timescale: 1.5}'
    )
    config.write_text(lines)
    words = [
        str(config),
        f'data.root={tmp_path / "fashion"}',
        f'model.inflate={tmp_path / "images"}',
        'data.train_count=6',
    ]
    still = ['optim.lr=0', 'optim.ssm_lr=0', 'epochs=1', f'out={tmp_path / "still"}']
    report = train.main([*words, *still])
    image, video = load_checkpoint(tmp_path / 'images'), load_checkpoint(tmp_path / 'still')
    assert video.num_frames == 4 and video.img_size == (16, 16) and video.num_classes == 12
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected, got = image.forward_features(x), video.forward_features(x[:, :, None].expand(-1, -1, 4, -1, -1))
    assert torch.allclose(got, expected[:, :, None].expand_as(got), atol=1e-5)
    weights = tmp_path / 'still' / 'last.safetensors'
    again = train.main([str(tmp_path / 'still' / 'config.yaml'), 'eval_only=true', f'checkpoint={weights}'])
    assert again['results'] == report['results']
    # It trains, and goes on after an interruption.
    out = f'out={tmp_path / "moved"}'
    train.main([*words, out, 'max_steps=1'])
    resumed = train.main([*words, out, 'resume=true'])
    assert resumed['training']['epochs'] == 2
    with pytest.raises(ConfigError, match=r"s4nd\.inflate takes no 'time_scale'; did you mean 'timescale'"):
        train.main([*words, out, 'overwrite=true', 'model.args.time_scale=2'])
    with pytest.raises(ConfigError, match='expected one of them to begin with, got both'):
        train.main([*words, out, 'overwrite=true', f'checkpoint={weights}'])


def test_a_folder_of_clips_with_broken_and_short_ones(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        for label in ('run', 'jump'):
            write_frames(tmp_path / 'clips' / label / str(number), 1 if number == 2 else 6, (10, 12 + number))
    (tmp_path / 'clips' / 'run' / '1' / 'frame_3.png').write_bytes(b'no image')
    options = ['data.kind=folder', f'data.root={tmp_path / "clips"}', 'data.stored_rate=4', 'data.val_fraction=0.25']
    with caplog.at_level(logging.WARNING):
        report = run(*options, 'data.workers=0', 'data.batch_size=2', 'data.flip=true', 'data.rand_augment_layers=1')
    assert report['skipped_files']['count'] == 1 and report['skipped_files']['first'][0].startswith(
        'run/1: frame_3.png'
    )
    assert report['short_clips'] == {'count': 2, 'first': ['jump/2', 'run/2']}
    assert [entry['epoch'] for entry in report['training']['history']] == [1, 2]


def test_mistakes_are_named(run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'data\.frame_rates'; did you mean 'data\.frame_rate'"):
        run('data.frame_rates=[4]')
    with pytest.raises(
        ConfigError,
        match=r"model\.name: timm has no model 's4nd_isotropic3d_min'; did you mean 's4nd_isotropic3d_mini'",
    ):
        run('model.name=s4nd_isotropic3d_min')
    with pytest.raises(ConfigError, match=r"eval\.frame_rates: expected numbers, \[7\.5, 15\], got '4fps'"):
        run('eval.frame_rates=4fps')
    run('max_steps=1')
    weights = tmp_path / 'run' / 'last.safetensors'
    with pytest.raises(
        CheckpointError, match='holds the weights of s4nd_isotropic3d_mini, expected s4nd_convnext3d_nano'
    ):
        run('eval_only=true', f'checkpoint={weights}', 'model.name=s4nd_convnext3d_nano')


@pytest.mark.parametrize('path', sorted(Path('configs/video').glob('*.yaml')), ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path: Path) -> None:
    config = load_config(path)
    assert (
        isinstance(config, VideoConfig if config.task == 'video' else ImageConfig)
        and path.read_text().startswith('# ')
        and str(path) in path.read_text()
    )
