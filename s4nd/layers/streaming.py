"""The contract of every causal layer and model that also runs one sample at a time.

    state = layer.init_state(batch)              a flat dict of tensors, batch first
    system = layer.system(step)                  the discretized recurrence, computed once
    y_t, state = layer.step(x_t, state, system)  one sample
    y, state = layer(x, state)                   a stretch of any length

Chunks of any size give what the whole clip gives. A state is a value: it is never changed in place.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

State = dict[str, Tensor]
System = Any  # nested lists and dicts of tensors, as a layer's `system` makes and its `step` takes them


@runtime_checkable
class Streaming(Protocol):
    """A causal layer or model that streams."""

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample."""
        ...

    def system(self, step: float = 1.0) -> System:
        """Discretize at `step`, the spacing of the samples in samples of the training grid."""
        ...

    def step(self, x: Tensor, state: State, system: System = None) -> tuple[Tensor, State]:
        """Take one sample; `system` None discretizes anew, which costs more than the step itself."""
        ...


def scoped(state: State, name: str) -> State:
    """Entries of `state` under 'name.', without that prefix."""
    prefix = f'{name}.'
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def within(name: str, state: State) -> State:
    """The entries of a part's state, under 'name.' in that of the whole."""
    return {f'{name}.{key}': value for key, value in state.items()}
