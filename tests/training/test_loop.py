"""The loop: an interrupted run ends as an uninterrupted one, bad numbers stop it by name."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.tasks import Task
from s4nd.tasks.images import ImageConfig
from s4nd.training.checkpoint import CheckpointError, load_weights
from s4nd.training.config import ModelConfig, OptimConfig
from s4nd.training.loop import NonFiniteError, fit


class Batches:
    def __init__(self, task: 'Line', epoch: int) -> None:
        self.task, self.epoch = task, epoch

    def __len__(self) -> int:
        return 6

    def shard(self, index: int, count: int) -> 'Batches':
        assert (index, count) == (0, 1)
        return self

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        for number in range(len(self)):
            if (self.epoch, number) == self.task.stop_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=generator)
            if (self.epoch, number) == self.task.spoil_at:
                x[0, 0] = float('nan')
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
    averaging = {name: options.pop(name) for name in ('ema', 'accumulate') if name in options}
    optim = OptimConfig(lr=0.01, warmup_epochs=0.5, **averaging)
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
    names = {'config.yaml', 'last.safetensors', 'best.safetensors', 'resume.pt'}
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
    with pytest.raises(CheckpointError, match='is the run of net, expected web'):
        fit(Net(), Line(), settings(resume=True, model=ModelConfig(name='web')), tmp_path)
    with pytest.raises(CheckpointError, match='does not fit net'):
        fit(Net(width=9), Line(), settings(resume=True), tmp_path)
    with pytest.raises(CheckpointError, match=r'optim\.ema was off'):
        fit(Net(), Line(), settings(resume=True, ema=0.9), tmp_path)


def test_an_unknown_monitor(tmp_path: Path) -> None:
    task = Line()
    task.monitor = 'acuracy'
    with pytest.raises(ValueError, match=r"monitor 'acuracy' is not among its metrics: .*'error'"):
        fit(Net(), task, settings(), tmp_path)
