"""train.py from end to end, at a size of seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s4nd import train
from s4nd.models import load_checkpoint
from s4nd.tasks.images import ImageTask
from s4nd.training.checkpoint import CheckpointError, read_metadata, save_weights
from s4nd.training.config import ConfigError, load_config

SCRIPT = str(Path(__file__).parents[1] / 'train.py')
MODEL = 'name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}'
CONFIG = f"""
model: {{{MODEL}}}
data: {{kind: shapes, size: 8, batch_size: 10, train_count: 40, test_count: 20}}
eval: {{sizes: [16, 8]}}
epochs: 2
device: cpu
"""


@pytest.fixture
def run(tmp_path: Path):
    path = tmp_path / 'tiny.yaml'
    path.write_text(CONFIG)

    def start(*options: str, out: str = 'run') -> dict:
        return train.main([str(path), f'out={tmp_path / out}', *options])

    return start


def test_a_run_leaves_everything_and_is_the_same_again(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, again = run(), run(out='again')
    names = {'config.yaml', 'metrics.csv', 'last.safetensors', 'best.safetensors', 'resume.pt', 'resume-before.pt'}
    names |= {'config.json', 'report.json', 'report.txt', 'report.png'}
    assert {path.name for path in (tmp_path / 'run').iterdir()} == names
    printed = capsys.readouterr().out
    assert all(
        str(tmp_path / 'run' / name) in printed for name in names - {'config.json', 'resume.pt', 'resume-before.pt'}
    )
    assert (
        json.loads((tmp_path / 'run' / 'report.json').read_text())['results'] == report['results'] == again['results']
    )
    assert set(report['results']) == {
        f'{metric}@{size}' for metric in ('accuracy', 'cross_entropy') for size in (8, 16)
    }
    assert report['skipped_files'] == {'count': 0, 'first': []} and len(report['training']['history']) == 2
    saved = load_config(tmp_path / 'run' / 'config.yaml')
    assert saved.model.args['img_size'] == [8, 8] and saved.model.args['num_classes'] == 10 and not saved.resume


def test_an_interrupted_run_goes_on_where_it_stopped(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    with monkeypatch.context() as patch:
        epochs = ImageTask.train_batches

        def stop(self, epoch: int):
            if epoch == 1:
                raise KeyboardInterrupt
            return epochs(self, epoch)

        patch.setattr(ImageTask, 'train_batches', stop)
        with pytest.raises(KeyboardInterrupt):
            run(out='parts')
    with pytest.raises(ConfigError, match=r'holds an earlier run \(resume.pt\): resume=true goes on'):
        run(out='parts')
    resumed = train.main([str(tmp_path / 'parts' / 'config.yaml'), 'resume=true'])
    assert resumed['results'] == whole['results']
    first, second = (load_file(tmp_path / name / 'last.safetensors') for name in ('run', 'parts'))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_evaluation_alone_gives_the_same_numbers_at_any_size(run, tmp_path: Path) -> None:
    report = run()
    weights = tmp_path / 'run' / 'last.safetensors'
    arguments = [str(tmp_path / 'run' / 'config.yaml'), 'eval_only=true', f'checkpoint={weights}']
    again = train.main([*arguments, 'eval.sizes=[8,12,16]'])
    assert again['results'].items() >= report['results'].items() and 'accuracy@12' in again['results']
    assert (tmp_path / 'run' / 'evaluation.json').is_file()
    # The grid is the checkpoint's: the size that this configuration would train at does not matter.
    elsewhere = ['data.size=16', 'eval.sizes=[8]', f'out={tmp_path / "e"}']
    other = train.main([str(tmp_path / 'tiny.yaml'), *arguments[1:], *elsewhere])
    assert other['results'] == {key: report['results'][key] for key in ('accuracy@8', 'cross_entropy@8')}


def test_training_can_start_from_weights_of_another_size(run, tmp_path: Path) -> None:
    run('max_steps=1')
    weights = tmp_path / 'run' / 'last.safetensors'
    report = run(f'checkpoint={weights}', 'data.size=16', 'optim.lr=0', 'max_steps=1', out='larger')
    options = ['eval_only=true', f'checkpoint={weights}', 'eval.sizes=[16]']
    before = train.main([str(tmp_path / 'run' / 'config.yaml'), *options])
    assert report['results']['cross_entropy@16'] == pytest.approx(before['results']['cross_entropy@16'], rel=1e-4)
    # The layers keep the grid that the weights were trained on, through saving and loading.
    left = tmp_path / 'larger' / 'last.safetensors'
    after = train.main([str(tmp_path / 'larger' / 'config.yaml'), 'eval_only=true', f'checkpoint={left}'])
    assert after['results'] == report['results'] and after['axes']['size']['trained'] == '16'
    assert load_checkpoint(left).img_size == (8, 8)


STAGES = ['data.size=12', 'data.sizes=[6,8,12]', 'data.stage_epochs=[2,2,1]', 'epochs=5', 'optim.ema=0.5']


@pytest.mark.parametrize('stop_at', [1, 2, 3])  # in the first stage, between two, in the second
def test_a_run_in_stages_goes_on_in_the_middle_of_one(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole = run(*STAGES)
    epochs = ImageTask.train_batches

    def stop(self, epoch: int):
        if epoch == stop_at:
            raise KeyboardInterrupt
        return epochs(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTask, 'train_batches', stop)
        with pytest.raises(KeyboardInterrupt):
            run(*STAGES, out='parts')
    metadata = read_metadata(tmp_path / 'parts' / 'last.safetensors')
    assert metadata['size'] == '12' and json.loads(metadata['args'])['img_size'] == [12, 12]
    resumed = train.main([str(tmp_path / 'parts' / 'config.yaml'), 'resume=true'])
    assert resumed['results'] == whole['results'] and resumed['axes'] == whole['axes']
    first, second = (load_file(tmp_path / name / 'last.safetensors') for name in ('run', 'parts'))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    last = tmp_path / 'run' / 'last.safetensors'
    again = train.main([str(tmp_path / 'run' / 'config.yaml'), 'eval_only=true', f'checkpoint={last}'])
    assert again['results'] == whole['results'] and load_checkpoint(last).img_size == (12, 12)


def test_stages_leave_the_grid_as_it_was(run, tmp_path: Path) -> None:
    still = ['data.size=12', 'optim.lr=0', 'optim.ssm_lr=0', 'optim.warmup_epochs=0', 'eval.sizes=[16]']
    report = run(*still, 'data.sizes=[6,12]', 'data.stage_epochs=[1,1]')
    same = run(*still, out='same')
    assert report['results'] == same['results']
    assert load_checkpoint(tmp_path / 'run').img_size == (12, 12)


def test_the_best_weights_may_be_of_an_earlier_epoch(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([50.0, 40.0])
    monkeypatch.setattr(ImageTask, 'evaluate', lambda *_: {'accuracy@12': next(accuracies)})
    stages = ['data.size=12', 'data.sizes=[6,12]', 'data.stage_epochs=[1,1]', 'data.val_fraction=0.25']
    report = run(*stages, 'eval.weights=best')
    assert report['training']['best']['epoch'] == 1
    weights = f'checkpoint={tmp_path / "run" / "best.safetensors"}'
    best = train.main([str(tmp_path / 'run' / 'config.yaml'), 'eval_only=true', weights, f'out={tmp_path / "e"}'])
    assert best['results'] == report['results']


def test_stages_need_a_model_that_takes_other_sizes(run, tmp_path: Path) -> None:
    (tmp_path / 'tiny.yaml').write_text(CONFIG.replace(MODEL, 'name: test_vit'))
    with pytest.raises(ConfigError, match=r'data\.sizes: test_vit takes no images of 6: '):
        run(*STAGES)


def test_mixed_sizes_train_on_the_nominal_grid(run, tmp_path: Path) -> None:
    report = run('data.sizes=[6,8,12x16]', 'eval.sizes=[8,12x16]')
    assert set(report['results']) == {f'{m}@{s}' for m in ('accuracy', 'cross_entropy') for s in ('8', '12x16')}
    assert report['axes']['size']['trained'] == '8' and load_checkpoint(
        tmp_path / 'run' / 'last.safetensors'
    ).img_size == (8, 8)


def test_any_timm_model_trains(run, tmp_path: Path) -> None:
    path = tmp_path / 'tiny.yaml'
    path.write_text(CONFIG.replace(MODEL, 'name: test_convnext'))
    assert run('data.size=32', 'eval.sizes=[32]', 'max_steps=1')['model'] == 'test_convnext'


def test_the_best_weights_are_chosen_on_held_out_images(run, tmp_path: Path) -> None:
    report = run('eval.weights=best', 'data.val_fraction=0.25', 'epochs=3', 'optim.lr=0.05')
    weights = f'checkpoint={tmp_path / "run" / "best.safetensors"}'
    best = train.main([str(tmp_path / 'run' / 'config.yaml'), 'eval_only=true', weights, f'out={tmp_path / "e"}'])
    assert report['results'] == best['results']
    accuracies = [entry['accuracy@8'] for entry in report['training']['history']]
    assert report['training']['best'] == {'epoch': accuracies.index(max(accuracies)) + 1, 'accuracy@8': max(accuracies)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.args.bandlimitt=1'], r"s4nd_isotropic_mini.* no keyword 'bandlimitt'; did you mean 'bandlimit'\?"),
        (['model.name=s4nd_isotropc_mini'], r"no model 's4nd_isotropc_mini'; did you mean 's4nd_isotropic_mini'\?"),
        (['eval_only=true'], r'eval_only=true needs checkpoint='),
        (['data.kind=folder', 'data.root=/nowhere/at/all'], r'/nowhere/at/all does not exist'),
        (['epoch=3'], r"unknown option 'epoch'; did you mean 'epochs'\?"),
    ],
)
def test_mistakes_are_one_clear_error(run, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(*options)


def test_weights_of_another_model_are_refused(run, tmp_path: Path) -> None:
    save_weights(tmp_path / 'w.safetensors', torch.nn.Linear(2, 2), {'model': 'conv2d_isotropic_mini'})
    with pytest.raises(CheckpointError, match='weights of conv2d_isotropic_mini, expected s4nd_isotropic_mini'):
        run('eval_only=true', f'checkpoint={tmp_path / "w.safetensors"}')


def test_two_processes_share_the_epoch_and_the_evaluation(run, tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', SCRIPT]
    run('max_steps=1')
    done = subprocess.run(
        [*command, str(tmp_path / 'tiny.yaml'), f'out={tmp_path / "two"}'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / 'two' / 'report.json').read_text())
    assert report['training']['updates'] == 4  # 40 images, 2 processes of 10 images, 2 epochs
    weights = f'checkpoint={tmp_path / "two" / "last.safetensors"}'
    alone = train.main([str(tmp_path / 'two' / 'config.yaml'), 'eval_only=true', weights, f'out={tmp_path / "one"}'])
    assert alone['results'] == pytest.approx(report['results'], rel=1e-5)


def test_without_arguments_it_explains_itself() -> None:
    with pytest.raises(ConfigError, match=r's4nd train cifar10/'):
        train.main([])
