"""The timm face that the model families share: stem -> stages -> norm -> head.

A family module builds the four parts and hands them to `Backbone`, which gives them timm's interface (feature levels,
pruning, checkpointing, head surgery, resizing). A stage is what yields one feature level.

Shapes: B batch, C channels, (H, W) pixels, (h, w) positions of a feature map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerScale, LayerScale2d, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.models._clip_conv import TimeConv
from s4nd.models._parts import Grid, image_size, set_grids
from s4nd.optim import ssm_parameter_patterns

_RESETTABLE = (S4ND, TimeConv, nn.LayerNorm, nn.BatchNorm2d, LayerScale, LayerScale2d)


class Stage(nn.Module):
    """Optional downsampling, then blocks that keep the size. One feature level.

    Args:
        blocks: modules (B, C, h, w) -> (B, C, h, w).
        downsample: module with `set_grid(grid) -> grid` that comes first, None for none.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    @torch.jit.ignore
    def set_grid(self, grid: Grid) -> Grid:
        """Re-anchor the layers to the grid that enters the stage; returns the grid that leaves it."""
        if not isinstance(self.downsample, nn.Identity):
            grid = self.downsample.set_grid(grid)
        set_grids(self.blocks, grid)
        return grid


class Backbone(nn.Module):
    """Base of the families: (B, in_chans, H, W) -> logits (B, num_classes).

    Any input size runs: every S4ND layer knows the grid that it was trained on and steps by grid / size.

    Args:
        stem: module (B, in_chans, H, W) -> (B, C, h, w) with `set_grid(img_size) -> grid` and `follows_size`.
        stages: `Stage` modules, one a feature level.
        norm: normalization of the last feature map, or Identity.
        head: timm classifier head (`ClassifierHead` or `NormMlpClassifierHead`).
        feature_info: one dict(num_chs, reduction) a stage, in the order of the stages.
        in_chans, num_classes, drop_rate: as in timm.
        img_size: height and width in pixels of the training images.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        head: nn.Module,
        feature_info: Sequence[Mapping[str, int]],
        in_chans: int,
        num_classes: int,
        img_size: Grid,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.img_size = img_size
        self.grad_checkpointing = False
        self.variant_args: dict[str, Any] = {}
        self.feature_info = [dict(info, module=f'stages.{i}') for i, info in enumerate(feature_info)]
        self.num_features: int = self.feature_info[-1]['num_chs']
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = head
        self.head_hidden_size: int = head.num_features
        self.init_weights(needs_reset=False)
        self._record_size()

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize the weights. `needs_reset=True` also re-draws what a constructor draws by itself, for storage
        that holds nothing yet (after `to_empty()`)."""
        # Kernels may hold networks, which have an initialization of their own.
        inside = {part for layer in self.modules() if isinstance(layer, S4ND) for part in layer.kernels.modules()}
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and module not in inside:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif needs_reset and isinstance(module, _RESETTABLE):
                module.reset_parameters()

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Re-anchor trained weights to another training size, in pixels, without changing what the model computes.

        Not needed for running at another size. Afterwards `bandlimit`, `window` and the step speak of the new
        grid, as they should when training goes on at this size. A stem that resamples its input to the training size
        (`stem='resample'`) keeps the token grid at every size, so there is nothing to anchor and the call is a no-op.

        Raises:
            ValueError: not one or two positive integers, or smaller than the model can see.
        """
        size = image_size(img_size)
        if min(size) < self.stem.min_size:
            raise ValueError(f'img_size must be at least {self.stem.min_size} a side, got {size}')
        if self.stem.follows_size:
            self._anchor(size, size)

    @torch.jit.ignore
    def _anchor(self, img_size: Grid, grid: tuple[int, ...]) -> None:
        """Re-anchor every layer to training inputs of `grid`, whose frames or images have `img_size` pixels."""
        for part in (self.stem, *self.stages):
            grid = part.set_grid(grid)
        self.img_size = img_size
        # What a model built at this size needs to be the same one, besides its weights.
        self._record_size(stem_extent=getattr(self.stem, 'extent', None), window=self._windows())
        self._describe_size()

    @torch.jit.ignore
    def _record_size(self, **args: Any) -> None:
        """Name the training size, and `args`, where timm looks for what goes into the hub's config.json, so that a
        loaded model has the same grids."""
        update_model_input_size(self, self.img_size, **args)

    @torch.jit.ignore
    def _describe_size(self) -> None:
        """Name the training size where timm's data configuration and the hub's config.json look for it."""
        cfg = getattr(self, 'pretrained_cfg', None)
        if cfg is not None and tuple(cfg['input_size'][1:]) != self.img_size:
            self.pretrained_cfg = {**cfg, 'input_size': (cfg['input_size'][0], *self.img_size), 'pool_size': None}
            self.default_cfg = self.pretrained_cfg

    @torch.jit.ignore
    def _windows(self) -> tuple[Any, ...] | None:
        """`window` as a constructor takes it: one for each axis if all grids agree, else so for each grid; or None."""
        on_grid: list[list[nn.Module]] = [[self.stem], *([stage.blocks] for stage in self.stages)]
        for modules, stage in zip(on_grid, self.stages, strict=False):
            modules.append(stage.downsample)
        layers = [[m for part in modules for m in part.modules()] for modules in on_grid]
        found = [next((m.window for m in ms if isinstance(m, S4ND) and m.spatial_dims > 1), None) for ms in layers]
        known = [window for window in found if window is not None]
        if not known:
            return None
        # Among layers of three axes, those that see one frame at a time have no window in time.
        time = max(known, key=len)[:-2]
        found, known = ([w and (*time, *w[-2:]) for w in windows] for windows in (found, known))
        return known[0] if len(set(known)) == 1 else tuple(window or known[0] for window in found)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that timm's optimizers should not decay: the state-space ones."""
        return ssm_parameter_patterns(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, for layer-wise learning rates."""
        fine = [
            (r'^stages\.(\d+)\.downsample', (0,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^norm', (99999,)),
        ]
        return {'stem': r'^stem', 'blocks': r'^stages\.(\d+)' if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute every block in the backward pass."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of `num_classes` outputs, 0: none. `global_pool` None keeps the pooling, '' drops it."""
        self._reset_head(num_classes, global_pool, reset_other=False)

    def _reset_head(self, num_classes: int, global_pool: str | None, reset_other: bool) -> None:
        self.num_classes = num_classes
        self.head.reset(
            num_classes, global_pool, reset_other=reset_other, in_features=self.num_features, **get_device_dtype(self)
        )
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages in `indices` (int: the last n; None: all), alone or after the final features.

        Args:
            norm: apply the final norm to the last level.
            stop_early: stop at the last level asked for.

        Raises:
            ValueError: `output_fmt` is not 'NCHW'.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates: list[Tensor] = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > max_index:
                return intermediates if intermediates_only else (x, intermediates)
            x = stage(x)
            if index in take_indices:
                intermediates.append(self.norm(x) if norm and index == last else x)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the levels in `indices` do not need; returns the indices that are kept."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        shorter = max_index < len(self.stages) - 1
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if shorter:
            self.stages = self.stages[: max_index + 1]
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or shorter:
            self._reset_head(0, '', reset_other=True)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> unpooled features (B, C, h, w)."""
        x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> logits (B, num_classes), or pooled features where `pre_logits`."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights as the model names them: without training wrappers and the prefixes of DDP and torch.compile."""
    for wrapper in ('state_dict', 'model'):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    return {name.removeprefix('module.').removeprefix('_orig_mod.'): value for name, value in state_dict.items()}


def model_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a model without weights: what the families have in common, and `kwargs`."""
    return {
        'url': '',
        'interpolation': 'bicubic',
        'first_conv': 'stem.proj',
        'classifier': 'head.fc',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2210.06583',
        **kwargs,
    }


def create(
    cls: type[Backbone], variant: str, pretrained: bool, model_args: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Backbone:
    """A registered model: the arguments of the variant, `depths` among them, under those of the caller."""
    args = {**model_args, **overrides}
    model = build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=tuple(range(len(args['depths']))), flatten_sequential=True),
        **args,
    )
    if isinstance(model, Backbone):
        model._describe_size()
        # Beside what timm remembers, the arguments of the caller, these make the model.
        model.variant_args = dict(model_args)
    return model
