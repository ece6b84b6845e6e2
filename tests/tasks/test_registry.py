"""Tasks are found by name, and what every task can count on."""

import pytest
import torch
from torch import nn

from s4nd.options import ConfigError
from s4nd.seeds import derived_seed, generator
from s4nd.tasks import Chosen, Task, task_class, task_names
from s4nd.training.config import RunConfig


def test_tasks_are_found_by_name() -> None:
    assert {'image', 'video', 'series'} <= set(task_names())
    for name in task_names():
        found = task_class(name)
        assert issubclass(found, Task) and issubclass(found.Config, RunConfig)
    with pytest.raises(ConfigError, match=r"task: expected one of image, video, .*, got 'imge'; did you mean 'image'"):
        task_class('imge')


@pytest.mark.parametrize('count', [1, 2, 3])
def test_batches_of_an_epoch_are_shared_evenly(count: int) -> None:
    whole = Chosen(torch.arange(7).unbind(), int)
    shares = [list(whole.shard(index, count)) for index in range(count)]
    assert [len(share) for share in shares] == [7 // count] * count
    assert [len(whole.shard(index, count)) for index in range(count)] == [7 // count] * count
    assert sorted(number for share in shares for number in share) == list(range(7 // count * count))


def test_a_task_without_axes_is_measured_as_it_is_watched() -> None:
    class Plain(Task):
        Config = RunConfig

        @classmethod
        def from_config(cls, config: RunConfig) -> 'Plain':
            return cls(config)

        def make_model(self, args: dict) -> nn.Module:
            return nn.Linear(**args)

        def train_batches(self, epoch: int) -> Chosen:
            return Chosen([], lambda chosen: chosen)

        def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            return model(batch).mean()

        def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            return {'error': 1.0}

    config = RunConfig()
    config.model.args = {'in_features': 2, 'out_features': 3}
    task = Plain.from_config(config)
    assert task.build_model().weight.shape == (3, 2)
    assert task.evaluate_at(nn.Identity(), torch.device('cpu'), []) == {'error': 1.0}
    assert task.metadata == {'args': '{"in_features": 2, "out_features": 3}'}
    assert (task.axes, task.skipped, task.notes(), task.example('1', 2)) == ({}, [], {}, None)


def test_seeds_of_parts_differ_and_repeat() -> None:
    assert derived_seed(3, 5) == 3 * 1_000_003 + 5
    first, again, other = (torch.rand(4, generator=generator(3, number)) for number in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
