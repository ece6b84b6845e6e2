"""The head of ViS4mer: S4 over a long sequence of features, with a pyramid over time (arXiv 2204.01692).

tokens -> linear, where the widths differ -> L x [x + dropout(S4 block(LayerNorm(x))) -> mean of each two tokens ->
linear d -> d/2 -> GELU] -> mean -> linear. A token is a frame's feature, or one of its patches.

Shape legend: B = batch, T = tokens (frames, where a frame is one token), D = features of a token, d = dim.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from s4nd.layers import S4
from s4nd.layers.base import check_floating
from s4nd.models._arguments import choose
from s4nd.models._parts import LayoutModule
from s4nd.optim import ssm_parameter_patterns

__all__ = ['ViS4merBlock', 'ViS4merHead', 'halve']


class ViS4merBlock(nn.Module):
    """One level: LayerNorm -> S4 -> GELU -> linear, added to the input, then half the tokens and half the width.

    Args:
        dim: width of the input, even.
        length: tokens of a training clip at this level, or None (see `ViS4merHead`).
        mixer_args: keywords of `S4`.
        proj_drop: dropout of whole features, behind the GELU and behind the linear map.
        drop_path: probability that a clip skips the residual branch in training.
        prenorm: whether the norm stands before S4, or after the sum.

    (B, T, dim) -> (B, T // 2, dim/2): an odd last token is dropped, but a single one is kept.
    """

    def __init__(
        self,
        dim: int,
        length: int | None,
        mixer_args: Mapping[str, Any],
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        prenorm: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.prenorm = prenorm
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = S4(dim, None if length is None else (length,), **mixer_args, **dd)
        self.out = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout1d(proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.reduce = nn.Linear(dim, dim // 2, **dd)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in (self.norm, self.mixer, self.out, self.reduce):
            module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x) if self.prenorm else x
        y = F.gelu(self.mixer(u.transpose(1, 2)))  # (B, dim, T)
        y = self.out(self.proj_drop(y).transpose(1, 2))
        y = self.proj_drop(y.transpose(1, 2)).transpose(1, 2)
        x = x + self.drop_path(y)
        x = x if self.prenorm else self.norm(x)
        return F.gelu(self.reduce(halve(x)))


def halve(x: Tensor) -> Tensor:
    """The mean of each two tokens, without an odd last one: (B, T, d) -> (B, T // 2, d); a single token stays."""
    if x.shape[1] == 1:
        return x
    # Unlike a pooling it keeps nothing for the gradients.
    first, second = x[:, : x.shape[1] // 2 * 2].unflatten(1, (x.shape[1] // 2, 2)).unbind(2)
    return (first + second) / 2


def _tokens_at(level: int, length: int) -> int:
    return max(1, length // 2**level)


class ViS4merHead(LayoutModule):
    """The pyramid over time of ViS4mer, on features: (B, T, in_chans) -> logits (B, num_classes).

    Any number of tokens runs. The classifier is timm's last linear layer, behind the mean over time; `global_pool=''`
    keeps time, and logits are (B, T', num_classes) for the T' tokens of the last level.

    Args:
        in_chans: D, features of a token.
        num_classes: outputs, 0: none.
        global_pool: 'avg', or '' for none.
        length: tokens of a training clip. Another number is then the same clip at another frame rate, and every level
            steps by length / tokens. It is stored with the weights, and adopted with them. None: the frame rate is that
            of training, and more tokens are a longer clip.
        dim: d, width of the first level; each level halves it. Published: 1024.
        depth: L, number of levels. Published: 3.
        mixer_args: keywords of `S4` (`timm.create_model` takes them one by one as well). By default, as published, it
            is causal and its kernel is 'nplr'; 's4' is the stable form of it.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout of whole features in the blocks. Published: 0.2.
        drop_path_rate: of the last level's residual branch, growing linearly from 0.
        prenorm: see `ViS4merBlock`. Published: True.

    Where in_chans equals dim the first linear map is not applied, as published; its weights are in the state dict
    (1,049,600 of the 3,584,074 at the published size) and are not trained.

    Raises:
        ValueError: sizes that do not fit each other, and in the forward for anything but (B, T >= 1, in_chans).
    """

    output_fmt = 'NLC'
    kernel = 'nplr'

    def __init__(
        self,
        in_chans: int = 1024,
        num_classes: int = 10,
        global_pool: str = 'avg',
        length: int | None = None,
        dim: int = 1024,
        depth: int = 3,
        mixer_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        prenorm: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if depth < 1 or dim < 1 or dim % 2**depth:
            raise ValueError(f'dim must be a multiple of 2^depth, as each level halves it, got {dim} and depth {depth}')
        if in_chans < 1 or (length is not None and length < 1):
            raise ValueError(f'in_chans and length must be at least 1, got {in_chans} and {length}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.grad_checkpointing = False
        self.feature_info = [
            dict(num_chs=dim // 2 ** (i + 1), reduction=2 ** (i + 1), module=f'blocks.{i}') for i in range(depth)
        ]
        self.num_features = self.head_hidden_size = dim // 2**depth
        self.proj = nn.Linear(in_chans, dim, **dd).requires_grad_(in_chans != dim)
        self.blocks = nn.Sequential(
            *(
                ViS4merBlock(
                    dim // 2**i,
                    None if length is None else _tokens_at(i, length),
                    {'kernel': self.kernel, **(mixer_args or {})},
                    proj_drop_rate,
                    drop,
                    prenorm,
                    **dd,
                )
                for i, drop in enumerate(calculate_drop_path_rates(drop_path_rate, depth))
            )
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    def init_weights(self) -> None:
        """Draw all weights but an encoder's anew: torch's initializations of linear maps, as published."""
        for module in (self.proj, *self.blocks, self.fc):
            if not isinstance(module, nn.Identity):
                module.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that timm's optimizers should not decay: the state-space ones."""
        return ssm_parameter_patterns(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, for layer-wise learning rates."""
        return {'stem': r'^encoder|^proj', 'blocks': r'^blocks\.(\d+)'}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute every level in the backward pass."""
        self.grad_checkpointing = enable

    @classmethod
    def mixer_class(cls, args: Mapping[str, Any]) -> type[nn.Module]:
        """The class that `mixer_args` are keywords of."""
        return S4

    @property
    def length(self) -> int | None:
        """Tokens of a training clip, None where it is not known."""
        grid = self.blocks[0].mixer.grid
        return None if grid is None else grid[0]

    def set_length(self, length: int) -> None:
        """Give every level the grid of a model built for `length` tokens; no parameter changes.

        More tokens are then a longer clip at the frame rate of training.

        Raises:
            ValueError: for less than one token.
        """
        if length < 1:
            raise ValueError(f'length must be at least 1 token, got {length}')
        for level, block in enumerate(self.blocks):
            block.mixer.grid = (_tokens_at(level, length),)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of `num_classes` outputs, 0: none. `global_pool` None keeps the pooling, '' drops it."""
        if global_pool is not None:
            self.global_pool = choose('global_pool', global_pool, ('avg', ''))
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.fc = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.fc.train(self.training)

    def tokens(self, x: Tensor) -> Tensor:
        """The input as tokens (B, T, D): here it is that already."""
        if x.dim() == 3 and x.shape[1] == self.in_chans != x.shape[2]:
            raise ValueError(
                f'expected features (batch, tokens, {self.in_chans}), got {list(x.shape)}: tokens and features are '
                'exchanged, x.transpose(1, 2) puts them right'
            )
        if x.dim() != 3 or x.shape[2] != self.in_chans or 0 in x.shape[1:]:
            raise ValueError(f'expected features (batch, tokens, {self.in_chans}), none empty, got {list(x.shape)}')
        check_floating(x)
        return x

    def _levels(self, x: Tensor) -> Iterator[Tensor]:
        """Level after level of the pyramid."""
        x = self.tokens(x)
        x = x if self.proj.in_features == self.proj.out_features else self.proj(x)
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x) if recompute else block(x)
            yield x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NLC',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Levels of the pyramid in `indices` (int: the last n; None: all), alone or after the final features.

        Args:
            norm: without effect: there is no norm after the last level.
            stop_early: stop at the last level asked for.
            output_fmt: 'NLC', (B, T', width), or 'NCL', (B, width, T').

        Raises:
            ValueError: another `output_fmt`.
        """
        choose('output_fmt', output_fmt, ('NLC', 'NCL'))
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        for index, level in enumerate(self._levels(x)):
            final = level
            if index in take_indices:
                intermediates.append(level.transpose(1, 2) if output_fmt == 'NCL' else level)
            if stop_early and index == max_index:
                break
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the levels in `indices` do not need; returns the indices that are kept."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        shorter = max_index < len(self.blocks) - 1
        if shorter:
            self.blocks = self.blocks[: max_index + 1]
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or shorter:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """The last level (B, T', num_features)."""
        for level in self._levels(x):
            final = level
        return final

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last level -> logits, or pooled features where `pre_logits`."""
        x = self.head_drop(x.mean(1) if self.global_pool == 'avg' else x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
