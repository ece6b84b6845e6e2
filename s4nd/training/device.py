"""Where a run computes: the device, the precision and the processes that work on it together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, ProjectConfiguration, parse_flag_from_env
from torch import nn

from s4nd.ops.dispatch import CHANNELS_LAST
from s4nd.options import ConfigError
from s4nd.training.config import RunConfig

__all__ = ['check_device', 'in_channels_last', 'is_sharded', 'make_accelerator']


def make_accelerator(config: RunConfig) -> Accelerator:
    """Device, precision, gradient accumulation and trackers as configured; also sets the number of CPU threads.

    Several processes come from torchrun or accelerate launch. Where accelerate is told to shard the model (FSDP), it is
    sharded on CPUs as well.

    Raises:
        ConfigError: there is no such device, processes would not work together, or a tracker is not installed.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_device(config.device)
    cpu = config.device == 'cpu' or (config.device == 'auto' and not torch.accelerator.is_available())
    if cpu:
        _check_launcher()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision='no' if config.precision == 'fp32' else config.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        log_with=None if config.track == 'none' else config.track,
        project_config=ProjectConfiguration(config.out, logging_dir=config.out),
    )
    if config.track != 'none' and not accelerator.log_with:
        raise ConfigError(f'track: {config.track} is not installed: pip install {config.track}')
    expected = int(os.environ.get('WORLD_SIZE', 1))
    if accelerator.num_processes != expected:
        raise ConfigError(f'device={config.device}: {expected} processes were started, but each would train alone')
    if parse_flag_from_env('ACCELERATE_USE_FSDP'):
        _prepare_sharding(accelerator)
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the model (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def check_device(name: str) -> None:
    """Make 'cuda:1' the device of this process, and see that there is what `device=name` asks for.

    Raises:
        ConfigError: there is no such device, or several processes on one machine were given the same.
    """
    kind, _, index = name.partition(':')
    if kind in ('auto', 'cpu'):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = [*(f'cuda:{number}' for number in range(count)), *(['mps'] if torch.backends.mps.is_available() else [])]
    if name not in there and not (name == 'cuda' and count):
        raise ConfigError(f'device: no {name} here, there is {", ".join(["cpu", *there])}')
    if not index:
        return
    if int(os.environ.get('LOCAL_WORLD_SIZE', 1)) > 1:
        raise ConfigError(f'device: {name} is one device, expected device=cuda where several processes take one each')
    os.environ['ACCELERATE_TORCH_DEVICE'] = name
    torch.cuda.set_device(name)


@contextmanager
def in_channels_last(model: nn.Module) -> Iterator[None]:
    """Put the weights of `model` into channels_last, and as long as the context lasts its inputs (clips: the 3-D one).

    Weights alone would leave the choice to each convolution: a backward pass takes half as long again.
    """

    def arrange(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x.contiguous(memory_format=CHANNELS_LAST[x.dim()])
            if isinstance(x, torch.Tensor) and x.dim() in CHANNELS_LAST
            else x
            for x in inputs
        )

    hook = model.to(memory_format=torch.channels_last).register_forward_pre_hook(arrange)
    try:
        yield
    finally:
        hook.remove()


def _check_launcher() -> None:
    """Raise ConfigError where `accelerate launch --cpu` was asked for several processes: it begins one without MPI."""
    asked = parse_flag_from_env('ACCELERATE_USE_CPU') and 'MASTER_PORT' in os.environ
    if asked and not any(name in os.environ for name in ('WORLD_SIZE', 'PMI_SIZE', 'OMPI_COMM_WORLD_SIZE')):
        raise ConfigError(
            'accelerate launch --cpu begins one process, whatever --num_processes says: '
            'expected torchrun --nproc-per-node=2 -m s4nd train … device=cpu'
        )


def _prepare_sharding(accelerator: Accelerator) -> None:
    """Have accelerate shard the model on CPUs too, which it does by itself on other devices only."""
    state = AcceleratorState()
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # accelerate keeps the type in two places and copies the second over the first.
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if state.fsdp_plugin is None or state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError('FSDP: expected accelerate launch --use_fsdp --fsdp_version 2, and two processes or more')
    # Every process builds the whole model once, from the same seed, and keeps its part.
    state.fsdp_plugin.cpu_ram_efficient_loading = False
