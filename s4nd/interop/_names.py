"""What loaders of published weights share: arrays by name, each taken once, and an error for the first that is left."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.layers.block import GatedLayer
from s4nd.layers.s4 import S4


class Names:
    """The tensors of a state dict under a prefix, in float64; complex ones as pairs in a last axis of size 2.

    Args:
        weights: tensors or NumPy arrays by name.
        prefix: of the names; others are not looked at.
    """

    def __init__(self, weights: Mapping[str, Any], prefix: str = '') -> None:
        self._weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        self._prefix = prefix
        self._left = dict.fromkeys(self._weights)

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def has(self, prefix: str) -> bool:
        """Whether any name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self._weights)

    def modules(self, prefix: str) -> list[str]:
        """Prefixes of the members of a list of modules: `prefix`0., `prefix`1., … as far as there are names."""
        found: list[str] = []
        while self.has(f'{prefix}{len(found)}.'):
            found.append(f'{prefix}{len(found)}.')
        return found

    def take(self, name: str) -> Tensor:
        """Return one tensor; raises ValueError where it is missing."""
        if name not in self._weights:
            known = ', '.join(list(self._weights)[:8])
            raise ValueError(f'no {self._prefix}{name} in the published weights, which hold {known} …')
        self._left.pop(name, None)
        value = torch.as_tensor(self._weights[name]).detach()
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        return value.double() if value.is_floating_point() else value

    def take_all(self, prefix: str, ours: str = '') -> dict[str, Tensor]:
        """Return all tensors under a prefix, with `ours` in its place."""
        return {ours + name.removeprefix(prefix): self.take(name) for name in self._weights if name.startswith(prefix)}

    def drop(self, *names: str) -> None:
        """Leave out names that hold nothing."""
        for name in names:
            self._left.pop(name, None)

    def check_empty(self) -> None:
        """Raise ValueError, naming the first, if a name was not taken."""
        if self._left:
            raise ValueError(f'{self._prefix}{next(iter(self._left))} has no place in this model')


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into a module, which keeps its dtype and device; the grid may be absent.

    Raises:
        ValueError: naming the first tensor that is missing, has no place, or has another shape.
    """
    own = module.state_dict()
    for name, value in own.items():
        if name not in state:
            if not name.endswith('training_grid'):
                raise ValueError(f'the published weights give no {name}, which {type(module).__name__} has')
        elif state[name].shape != value.shape:
            raise ValueError(f'{name}: expected shape {list(value.shape)}, got {list(state[name].shape)}')
    for name in state:
        if name not in own:
            raise ValueError(f'{name} has no place in {type(module).__name__}')
    module.load_state_dict({name: value for name, value in state.items()}, strict=False)


def build_gated(names: Names, layer: S4, state: dict[str, Tensor], place: Mapping[str, Any]) -> GatedLayer:
    """Put GELU after a layer, and output_linear.0 and GLU where the weights have them; fill all and check `names`.

    Args:
        names: of the block; those of the layer were taken.
        state: tensors of the layer, under 'layer.'.
        place: device and dtype.
    """
    gated = 'output_linear.0.weight' in names
    block = GatedLayer(layer, layer.d_model, layer.channels * layer.d_model, gate=gated, **place)
    if gated:
        state['linear.weight'] = names.take('output_linear.0.weight').flatten(1)
        state['linear.bias'] = names.take('output_linear.0.bias').flatten()
    fill(block, state)
    names.check_empty()
    return block
