"""The loop: an interrupted run ends as an uninterrupted one, bad numbers stop it by name."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.data.images.options import ImageData
from s4nd.options import ConfigError
from s4nd.tasks import Task
from s4nd.tasks.images import ImageConfig
from s4nd.training.checkpoint import STATES, CheckpointError, load_state, load_weights, read_metadata
from s4nd.training.config import ModelConfig, OptimConfig, SaveConfig, load_config
from s4nd.training.loop import NonFiniteError, _Training, fit
from s4nd.training.stopping import Interrupted


class Batches:
    def __init__(self, task: 'Line', epoch: int, first: int = 0) -> None:
        self.task, self.epoch, self.first = task, epoch, first

    def __len__(self) -> int:
        return 6 - self.first

    def skip(self, count: int) -> 'Batches':
        return Batches(self.task, self.epoch, self.first + count)

    def shard(self, index: int, count: int) -> 'Batches':
        assert (index, count) == (0, 1)
        return self

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        for number in range(6):
            if (self.epoch, number) == self.task.stop_at:
                self.task.stop()
            x = torch.randn(8, 4, generator=generator)
            if (self.epoch, number) == self.task.spoil_at:
                x[0, 0] = float('nan')
            if number >= self.first:
                yield x, x.sum(1, keepdim=True)


class Line(Task):
    monitor = 'error'

    def __init__(self, stop_at: tuple[int, int] | None = None, spoil_at: tuple[int, int] | None = None) -> None:
        self.stop_at, self.spoil_at = stop_at, spoil_at
        super().__init__(settings())
        self.evaluations = 0

    @property
    def metadata(self) -> dict[str, str]:
        return {**super().metadata, 'unit': 'meters'}

    @classmethod
    def from_config(cls, config: ImageConfig) -> 'Line':
        return cls()

    def stop(self) -> None:
        raise KeyboardInterrupt

    def make_model(self, args: Mapping[str, object]) -> nn.Module:
        return Net(**args)

    def train_batches(self, epoch: int) -> Batches:
        return Batches(self, epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        self.evaluations += 1
        x = torch.linspace(-1, 1, 40, device=device).reshape(10, 4)
        return {'error': F.mse_loss(model(x), x.sum(1, keepdim=True)).item()}


class Net(nn.Sequential):
    def __init__(self, width: int = 8) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.GELU(), nn.Linear(width, 1))


def settings(**options: object) -> ImageConfig:
    names = [name for name in options if name in OptimConfig.__dataclass_fields__]
    optim = OptimConfig(**{'lr': 0.01, 'warmup_epochs': 0.5, **{name: options.pop(name) for name in names}})
    config = ImageConfig(model=ModelConfig(name='net'), optim=optim, epochs=3, device='cpu', seed=5)
    for name, value in options.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize('options', [{}, {'ema': 0.9}, {'accumulate': 2}, {'ema': 0.9, 'accumulate': 4}])
@pytest.mark.parametrize('stop_at', [(1, 0), (2, 3)])
def test_resuming_ends_as_an_uninterrupted_run(tmp_path: Path, options: dict, stop_at: tuple[int, int]) -> None:
    whole, stopped = Net(), Net()
    summary = fit(whole, Line(), settings(**options), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, Line(stop_at=stop_at), settings(**options), tmp_path / 'parts')
    resumed = Net()
    with torch.no_grad():
        resumed[0].weight.zero_()  # nothing may come from the fresh model
    again = fit(resumed, Line(), settings(resume=True, **options), tmp_path / 'parts')
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert again['history'] == summary['history'] and again['best'] == summary['best']
    assert again['updates'] == 3 * (6 // options.get('accumulate', 1))


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    first = fit(Net(), Line(), settings(), tmp_path)
    task, model = Line(stop_at=(0, 0)), Net()
    assert fit(model, task, settings(resume=True), tmp_path)['history'] == first['history']
    assert task.evaluations == 0


def test_it_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    model, config = Net(), settings(epochs=20)
    summary = fit(model, Line(), config, tmp_path)
    errors = [entry['error'] for entry in summary['history']]
    assert errors[-1] < 0.5 * errors[0] and summary['best']['error'] == min(errors)
    names = {'config.yaml', 'metrics.csv', 'last.safetensors', 'best.safetensors', 'resume.pt', 'resume-before.pt'}
    assert {path.name for path in tmp_path.iterdir()} == names
    metadata = load_weights(tmp_path / 'last.safetensors', Net(), 'net')
    expected = {'task': 'image', 'model': 'net', 'format': '1', 'args': '{}', 'epoch': '20', 'unit': 'meters'}
    assert metadata == expected
    assert not model.training


def test_averaged_weights_are_the_ones_left_saved_and_measured(tmp_path: Path) -> None:
    averaged, plain, saved = Net(), Net(), Net()
    summary = fit(averaged, Line(), settings(ema=0.9), tmp_path / 'ema')
    fit(plain, Line(), settings(), tmp_path / 'plain')
    load_weights(tmp_path / 'ema' / 'last.safetensors', saved)
    assert torch.equal(saved[0].weight, averaged[0].weight) and not torch.equal(plain[0].weight, averaged[0].weight)
    with torch.no_grad():
        error = Line().evaluate(saved.eval(), torch.device('cpu'))['error']
    assert error == pytest.approx(summary['history'][-1]['error'])


def test_max_steps_ends_within_an_epoch_and_the_schedule_with_it(tmp_path: Path) -> None:
    summary = fit(Net(), Line(), settings(max_steps=8), tmp_path)
    assert (summary['updates'], summary['epochs']) == (8, 2)
    assert summary['history'][-1]['lr'] == pytest.approx(1e-6, rel=1e-3)


def test_accumulated_batches_are_one_update_each_group(tmp_path: Path) -> None:
    assert fit(Net(), Line(), settings(accumulate=4), tmp_path)['updates'] == 3
    with pytest.raises(ValueError, match=r'an epoch has 6 batches, fewer than .* 7'):
        fit(Net(), Line(), settings(accumulate=7), tmp_path)


def test_a_spoilt_batch_is_named_and_the_checkpoint_survives(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r'nan at update 9 \(epoch 2\): first bad tensor: batch entry 0'):
        fit(Net(), Line(spoil_at=(1, 2)), settings(), tmp_path)
    metadata = load_weights(tmp_path / 'last.safetensors', Net())
    assert metadata['epoch'] == '1'
    fit(Net(), Line(), settings(resume=True), tmp_path)


def test_a_spoilt_parameter_and_a_spoilt_output_are_named(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model[4].bias.fill_(float('inf'))
    with pytest.raises(NonFiniteError, match=r'first bad tensor: 4\.bias'):
        fit(model, Line(), settings(), tmp_path)

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 10).sqrt()

    with pytest.raises(NonFiniteError, match=r'the output of 2 \(Root\)'):
        fit(nn.Sequential(nn.Linear(4, 4), nn.Identity(), Root(), nn.Linear(4, 1)), Line(), settings(), tmp_path)
    assert not (tmp_path / 'last.safetensors').exists()


def test_a_buffer_may_be_infinite_but_not_nan(tmp_path: Path) -> None:
    model = Net()
    model.register_buffer('limit', torch.tensor(float('inf')))
    fit(model, Line(), settings(), tmp_path)
    model.limit.fill_(float('nan'))
    with pytest.raises(NonFiniteError, match='limit is not finite'):
        fit(model, Line(), settings(), tmp_path)


def test_parameters_gone_bad_in_the_last_update_are_not_saved(tmp_path: Path) -> None:
    class Late(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = super().loss(model, batch)
            loss.register_hook(lambda gradient: gradient * float('inf'))
            return loss

    config = settings(max_steps=1)
    with pytest.raises(NonFiniteError, match=r'after update 1 .* 0\.weight is not finite'):
        fit(Net(), Late(), config, tmp_path)
    assert not (tmp_path / 'resume.pt').exists()


def test_resuming_nothing_or_another_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='nothing to resume'):
        fit(Net(), Line(), settings(resume=True), tmp_path)
    fit(Net(), Line(), settings(), tmp_path)
    with pytest.raises(CheckpointError, match='does not fit net'):
        fit(Net(width=9), Line(), settings(resume=True), tmp_path)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'model': ModelConfig(name='web')}, r"model\.name: .*resume\.pt was trained with 'net', .* to 'web'"),
        ({'model': ModelConfig(name='net', args={'width': 9})}, r'model\.args\.width: .* with None, .* to 9'),
        ({'ema': 0.9}, r'optim\.ema: .* with None, .* to 0\.9'),
        ({'weight_decay': 5.0}, r'optim\.weight_decay: .* with 0\.05, .* to 5\.0'),
        ({'name': 'sgd'}, r"optim\.name: .* with 'adamw', .* to 'sgd'"),
        ({'seed': 6}, r'seed: .* with 5, .* to 6'),
        ({'data': ImageData(batch_size=7)}, r'data\.batch_size: .* with 128, .* to 7'),
    ],
)
def test_resuming_refuses_what_it_cannot_change(tmp_path: Path, changed: dict, message: str) -> None:
    fit(Net(), Line(), settings(max_steps=3), tmp_path)
    before = (tmp_path / 'config.yaml').read_text()
    with pytest.raises(ConfigError, match=message):
        fit(Net(), Line(), settings(resume=True, **changed), tmp_path)
    assert (tmp_path / 'config.yaml').read_text() == before


@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_resuming_takes_another_learning_rate_and_end(tmp_path: Path, schedule: str) -> None:
    options = {'schedule': schedule, 'warmup_epochs': 0.0}
    fit(Net(), Line(), settings(max_steps=6, **options), tmp_path)
    changed = {**options, 'lr': 0.02, 'epochs': 2}
    summary = fit(Net(), Line(), settings(resume=True, **changed), tmp_path)
    assert [entry['epoch'] for entry in summary['history']] == [1, 2] and summary['updates'] == 12
    assert summary['history'][1]['lr'] == pytest.approx(0.02 if schedule == 'constant' else 1e-6, rel=1e-3)
    saved = load_config(tmp_path / 'config.yaml')
    assert (saved.optim.lr, saved.epochs, saved.resume) == (0.02, 2, False)


def test_resuming_a_run_from_before_an_option(tmp_path: Path) -> None:
    """What a run began without had its default."""
    fit(Net(), Line(), settings(max_steps=3), tmp_path)
    state = torch.load(tmp_path / 'resume.pt', weights_only=False)
    assert state['config'].pop('channels_last') is False
    torch.save(state, tmp_path / 'resume.pt')
    with pytest.raises(ConfigError, match=r'channels_last: .* with False, .* to True'):
        fit(Net(), Line(), settings(resume=True, channels_last=True), tmp_path)
    assert fit(Net(), Line(), settings(resume=True, max_steps=6), tmp_path)['updates'] == 6


def test_an_unknown_monitor(tmp_path: Path) -> None:
    task = Line()
    task.monitor = 'acuracy'
    with pytest.raises(ValueError, match=r"monitor 'acuracy' is not among its metrics: .*'error'"):
        fit(Net(), task, settings(), tmp_path)


@pytest.mark.parametrize('bad', ['metric', 'average'])
def test_a_bad_metric_or_average_is_never_saved(tmp_path: Path, bad: str) -> None:
    class Bad(Line):
        def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            found = super().evaluate(model, device)
            if self.evaluations < 2:
                return found
            if bad == 'average':
                model[0].weight.fill_(float('nan'))
                return found
            return {**found, 'error': float('nan')}

    names = ('last.safetensors', 'best.safetensors', 'resume.pt')
    fit(Net(), Line(), settings(ema=0.9, max_steps=6), tmp_path / 'one')
    with pytest.raises(NonFiniteError, match={'metric': 'error is nan', 'average': r'the average of 0\.weight'}[bad]):
        fit(Net(), Bad(), settings(ema=0.9), tmp_path / 'bad')
    state = load_state(tmp_path / 'bad' / 'resume.pt')
    assert state['epoch'] == 1 and state['best']['epoch'] == 1
    for name in names[:2]:
        assert read_metadata(tmp_path / 'bad' / name)['epoch'] == '1'
    summary = fit(Net(), Line(), settings(ema=0.9, resume=True), tmp_path / 'bad')
    whole = fit(Net(), Line(), settings(ema=0.9), tmp_path / 'whole')
    assert summary['history'] == whole['history']


def test_two_states_are_kept_and_the_older_serves_where_the_newer_is_damaged(tmp_path: Path) -> None:
    whole = Net()
    fit(whole, Line(), settings(), tmp_path / 'whole')
    fit(Net(), Line(), settings(max_steps=12), tmp_path / 'cut')
    states = [load_state(tmp_path / 'cut' / name)['updates'] for name in STATES]
    assert states == [12, 6]
    (tmp_path / 'whole' / STATES[0]).write_bytes(b'half')
    again = Net()
    fit(again, Line(), settings(resume=True), tmp_path / 'whole')
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize('options', [{'ema': 0.9}, {'accumulate': 2}])
def test_a_signal_saves_after_the_update_and_the_run_ends_equal(tmp_path: Path, number: int, options: dict) -> None:
    class Told(Line):
        def stop(self) -> None:
            signal.raise_signal(number)

    whole, parts = Net(), Net()
    fit(whole, Line(), settings(**options), tmp_path / 'whole')
    updates = 9 if 'ema' in options else 5
    message = rf'interrupted by {signal.Signals(number).name}: saved after update {updates} of .*resume=true'
    with pytest.raises(Interrupted, match=message) as caught:
        fit(Net(), Told(stop_at=(1, 2)), settings(**options), tmp_path / 'parts')
    assert caught.value.code == 128 + number and signal.getsignal(number) is not caught
    fit(parts, Line(), settings(resume=True, **options), tmp_path / 'parts')
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert {p.name for p in (tmp_path / 'parts').iterdir()} == {p.name for p in (tmp_path / 'whole').iterdir()}


def test_a_signal_during_the_evaluation_loses_nothing(tmp_path: Path) -> None:
    class Told(Line):
        def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError('the evaluation went on')

    with pytest.raises(Interrupted, match='saved after update 6 of 18'):
        fit(Net(), Told(), settings(), tmp_path / 'parts')
    parts, whole = Net(), Net()
    again = fit(parts, Line(), settings(resume=True), tmp_path / 'parts')
    assert again['history'] == fit(whole, Line(), settings(), tmp_path / 'whole')['history']
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize('save', [SaveConfig(updates=2), SaveConfig(minutes=0)])
def test_states_within_an_epoch_are_resumed_at_the_same_batch(tmp_path: Path, save: SaveConfig) -> None:
    whole, parts = Net(), Net()
    summary = fit(whole, Line(), settings(ema=0.5), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), Line(stop_at=(1, 5)), settings(ema=0.5, save=save), tmp_path / 'parts')
    state = load_state(tmp_path / 'parts' / 'resume.pt')
    assert (state['epoch'], state['updates'], state['done']) == (1, *((10, 4) if save.updates else (11, 5)))
    again = fit(parts, Line(), settings(ema=0.5, resume=True), tmp_path / 'parts')
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert again['history'] == summary['history'] and again['best'] == summary['best']


def test_a_run_stopped_before_its_first_state_begins_again(tmp_path: Path) -> None:
    whole, again = Net(), Net()
    fit(whole, Line(), settings(), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), Line(stop_at=(0, 3)), settings(), tmp_path / 'parts')
    fit(again, Line(), settings(resume=True), tmp_path / 'parts')
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_run_killed_between_its_files_writes_the_rest(tmp_path: Path) -> None:
    fit(Net(), Line(), settings(), tmp_path)
    for name in ('last.safetensors', 'best.safetensors', 'metrics.csv'):
        (tmp_path / name).unlink()
    fit(Net(), Line(), settings(resume=True), tmp_path)
    assert (tmp_path / 'last.safetensors').is_file() and (tmp_path / 'metrics.csv').is_file()


def test_one_run_at_a_time_and_no_rests_of_killed_ones(tmp_path: Path) -> None:
    dead = subprocess.Popen(['true'])
    dead.wait()
    rest = tmp_path / f'.resume.{re.sub("[^a-zA-Z0-9_-]", "-", socket.gethostname())}.{dead.pid}.tmp.pt'
    rest.write_bytes(b'half')
    script = f'from s4nd.training.folder import claimed\nwith claimed({str(tmp_path)!r}): print(1, flush=True); input()'
    other = subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == '1\n'
    assert not rest.exists()
    with pytest.raises(ConfigError, match=f'is in use by process {other.pid} on .*: out=… writes elsewhere'):
        fit(Net(), Line(), settings(), tmp_path)
    other.kill()
    other.wait()
    fit(Net(), Line(), settings(), tmp_path)
    assert not (tmp_path / '.lock').exists()


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    task = Line()
    with pytest.raises(OSError, match=r'cannot be written: .*file is no folder'):
        fit(Net(), task, settings(), tmp_path / 'file' / 'out')
    assert task.evaluations == 0


def test_a_full_disk_names_the_file_and_keeps_the_older_state(tmp_path: Path) -> None:
    """With a limit on the size of files, which fails as a full disk does: within a write."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training.test_loop import Line, Net, fit, settings
fit(Net(), Line(), settings(max_steps=6), {str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (70000, 70000))
fit(Net(2000), Line(), settings(epochs=1), {str(tmp_path / 'wide')!r})
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert 'File too large' in last and 'GB free' in last and 'resume.pt' in last, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / 'wide').iterdir()} == {'config.yaml'}
    assert load_state(tmp_path / 'resume.pt')['updates'] == 6


def test_an_accelerator_is_waited_for_every_tenth_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    item, begin = Tensor.item, _Training.begin

    def counted(tensor: Tensor) -> float:
        waits.append(1)
        return item(tensor)

    def as_on_a_gpu(run: _Training) -> None:
        begin(run)
        run.interval = 10
        monkeypatch.setattr(Tensor, 'item', counted)

    monkeypatch.setattr(_Training, 'begin', as_on_a_gpu)
    fit(Net(), Line(), settings(epochs=20, optim=OptimConfig(name='sgd')), tmp_path)
    # 12 looks within 120 updates, and a few at the end of each of the 20 epochs.
    assert 12 + 20 <= len(waits) <= 12 + 3 * 20
