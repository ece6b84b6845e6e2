"""Two processes share the work of one: the same weights, each example read once, stopped and resumed together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file

from s4nd.options import ConfigError
from s4nd.training.config import load_config
from s4nd.training.device import check_device, make_accelerator
from s4nd.training.loop import fit
from tests.training.test_loop import Line, Net, settings


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Where the runs of tests/training/two.py lie, and their exit codes."""
    folder = tmp_path_factory.mktemp('two')
    words = [sys.executable, '-m', 'tests.training.two', str(folder)]
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600, env=env)
    return SimpleNamespace(folder=folder, codes=json.loads(done.stdout))


def difference(runs: SimpleNamespace, one: str, other: str) -> float:
    first, second = (load_file(runs.folder / name / 'last.safetensors') for name in (one, other))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first if first[name].numel())


def report(runs: SimpleNamespace, name: str) -> dict:
    return json.loads((runs.folder / name / 'report.json').read_text())


def noted(runs: SimpleNamespace, name: str, process: int) -> dict:
    return json.loads((runs.folder / f'{name}.{process}.json').read_text())


@pytest.mark.parametrize('name', ['images_two', 'images_sharded', 'sound_two', 'sound_sharded'])
def test_two_processes_train_the_weights_of_one_at_the_same_global_batch(runs: SimpleNamespace, name: str) -> None:
    alone = f'{name.partition("_")[0]}_one'
    assert {code for codes in runs.codes[name] for code in codes} <= {0}
    assert difference(runs, alone, name) < 2e-6
    one, two = report(runs, alone), report(runs, name)
    assert one['results'] == pytest.approx(two['results'], rel=1e-5)
    for first, second in zip(one['training']['history'], two['training']['history'], strict=True):
        assert first == pytest.approx(second, rel=1e-5)  # the loss is the mean over the processes


def test_a_sharded_model_lies_in_parts(runs: SimpleNamespace) -> None:
    for name, whole in (('images_sharded', 1122), ('sound_sharded', 4480)):
        parts = [noted(runs, name, process) for process in (0, 1)]
        assert sum(part['held'] for part in parts) == parts[0]['whole'] == whole
        assert max(part['held'] for part in parts) < 0.6 * whole
    log = (runs.folder / 'images_sharded.0.log').read_text()
    assert '2 processes, each with a part of the model (FSDP)' in log
    assert [noted(runs, 'images_two', process)['held'] for process in (0, 1)] == [1122, 1122]


def test_each_process_reads_its_own_share_of_a_tar_that_is_unpacked_once(runs: SimpleNamespace) -> None:
    counts = [noted(runs, 'sound_two', process)['read'] for process in (0, 1)]
    whole = noted(runs, 'sound_one', 0)['read']
    assert sum(counts) == whole and max(counts) < 0.6 * whole
    assert len(list((runs.folder / 'cache_two').iterdir())) == 1  # and no temporary folder beside it


def test_a_signal_to_one_process_ends_both_and_both_go_on(runs: SimpleNamespace) -> None:
    assert runs.codes['stopped'] == [[143, 143], [0, 0]] and runs.codes['whole'] == [[0, 0]]
    assert difference(runs, 'whole', 'stopped') == 0
    assert 'resume=true goes on from there' in (runs.folder / 'stopped.0.log').read_text()


def test_a_diverged_run_ends_in_both_and_names_it(runs: SimpleNamespace) -> None:
    assert runs.codes['diverged'] == [[1, 1]]
    for process in (0, 1):
        assert 'the loss is nan at update 2' in (runs.folder / f'diverged.{process}.log').read_text()


def test_only_the_first_process_writes_lines(runs: SimpleNamespace) -> None:
    first, second = ((runs.folder / f'images_two.{process}.log').read_text() for process in (0, 1))
    assert '1,122 parameters, fp32 on cpu' in first and ', 2 processes' in first and second == ''


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ('gpu', 'cuda:x'):
        with pytest.raises(ConfigError, match=rf"device: expected auto, cpu, mps, cuda or cuda:1, got '{wrong}'"):
            load_config(None, ['model.name=x', f'device={wrong}'])
    assert load_config(None, ['model.name=x', 'device=cuda:1']).device == 'cuda:1'
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    chosen: list[str] = []
    monkeypatch.setattr('torch.cuda.set_device', chosen.append)
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    with pytest.raises(ConfigError, match=r'device: no cuda:2 here, there is cpu, cuda:0, cuda:1'):
        check_device('cuda:2')
    check_device('cuda:1')
    assert chosen == ['cuda:1'] and os.environ['ACCELERATE_TORCH_DEVICE'] == 'cuda:1'
    os.environ['LOCAL_WORLD_SIZE'] = '2'
    with pytest.raises(ConfigError, match='cuda:1 is one device, expected device=cuda'):
        check_device('cuda:1')


def test_a_launcher_that_began_one_process_for_two_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # What accelerate launch --cpu --num_processes 2 sets: it needs MPI to begin more than one.
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    monkeypatch.setenv('MASTER_PORT', '29500')
    with pytest.raises(ConfigError, match=r'begins one process, whatever --num_processes says: expected torchrun'):
        make_accelerator(load_config(None, ['model.name=x', 'device=cpu']))


@pytest.mark.filterwarnings('ignore:.*no supported trackers')
def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('accelerate.accelerator.filter_trackers', lambda *_: [])
    with pytest.raises(ConfigError, match='track: wandb is not installed: pip install wandb'):
        make_accelerator(load_config(None, ['model.name=x', 'device=cpu', 'track=wandb']))


def test_a_tracker_is_told_the_options_and_the_figures_of_each_epoch(tmp_path: Path) -> None:
    told: list[tuple] = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory = 'test', False

        def __init__(self) -> None:
            super().__init__(_blank=True)

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict) -> None:
            told.append(('options', values))

        def log(self, values: dict, step: int | None = None, **_: object) -> None:
            told.append((step, values))

    history = fit(Net(), Line(), settings(), tmp_path, Accelerator(cpu=True, log_with=Tracker()))['history']
    assert told[0][1]['optim.lr'] == 0.01 and told[0][1]['model.args'] == '{}'
    assert told[1:] == [(6 * entry['epoch'], entry) for entry in history]
