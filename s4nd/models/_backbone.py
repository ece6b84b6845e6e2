"""The timm face that the model families share: stem -> stages -> norm -> head.

A family module builds the four parts and hands them to `Backbone`, which gives them timm's interface (feature levels,
pruning, checkpointing, head surgery, resizing). A stage is what yields one feature level.

Shapes: B batch, C channels, L1 … LD sizes of the axes: (H, W) pixels of images, (T, H, W) of clips, (h, w) and (t, h,
w) positions of feature maps.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerScale, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._input import get_model_args, update_model_args, update_model_input_size
from torch import Tensor, nn

from s4nd.layers import S4ND
from s4nd.layers.together import Request, made_ahead, untouched
from s4nd.models._arguments import complete, image_size, positive
from s4nd.models._clip_conv import TimeConv
from s4nd.models._mixers import assign_grid, mixer_class
from s4nd.models._parts import LayoutModule, from_map, to_map
from s4nd.ops import observed
from s4nd.optim import ssm_parameter_patterns
from s4nd.weights import shipped_args, shipped_names

for name in ('to_map', 'from_map'):  # as in _parts.py
    torch.fx.wrap(name)

_RESETTABLE = (S4ND, TimeConv, nn.LayerNorm, nn.BatchNorm2d, nn.BatchNorm3d, LayerScale)


class Stage(nn.Module):
    """Optional downsampling, then blocks that keep the size. One feature level.

    Args:
        blocks: modules (B, C, L1 … LD) -> the same.
        downsample: module with `resize(grid) -> grid` that comes first, None for none.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if torch.jit.is_scripting():
            return self.blocks(x)
        return self._mix(x)

    @torch.jit.unused
    def _mix(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        if observed() or isinstance(x, torch.fx.Proxy) or not torch.is_grad_enabled():
            return self.blocks(x)
        with made_ahead(_requests(self.blocks, list(x.shape[2:]))):
            return self.blocks(x)

    @torch.jit.ignore
    def resize(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Take another training grid; returns the one that leaves the stage."""
        if not isinstance(self.downsample, nn.Identity):
            grid = self.downsample.resize(grid)
        assign_grid(self.blocks, grid)
        return grid


def _requests(blocks: Iterable[nn.Module], size: list[int]) -> list[Request]:
    """What the mixers of blocks will ask for, where nothing stands between a block and the forward of its mixer."""
    mixers = [block.mixer for block in blocks if vars(type(block)).get('mixes_as_is', False) and untouched(block)]
    return [request for mixer in mixers if hasattr(mixer, 'requests') for request in mixer.requests(size)]


class Backbone(LayoutModule):
    """Base of the families: (B, in_chans, L1 … LD) -> logits (B, num_classes), averaged over all axes.

    Any input size runs, and for clips any number of frames: it is the same scene sampled differently, and every S4ND
    layer steps by grid / size. The training grid is stored with the weights, in the stem and in each layer: a model
    that loads them is trained at that size from then on, whatever size it was built for.

    Args:
        stem: module (B, in_chans, L1 … LD) -> (B, C, l1 … lD) with a `grid`, the training size, and `resize(grid)`.
        stages: `Stage` modules, one per feature level.
        norm: normalization of the last feature map, or Identity.
        head: timm classifier head (`ClassifierHead` or `NormMlpClassifierHead`).
        feature_info: one dict(num_chs, reduction) per stage, in the order of the stages.
        in_chans, num_classes, drop_rate: as in timm.
    """

    __jit_unused_properties__ = ['img_size', 'num_frames']
    mixers: tuple[str, ...] = ('s4nd',)  # names that `mixer` may have

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        head: nn.Module,
        feature_info: Sequence[Mapping[str, int]],
        in_chans: int,
        num_classes: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = [
            dict(info, module=f'stages.{i}') for i, info in enumerate(feature_info)
        ]
        self.num_features: int = self.feature_info[-1]['num_chs']
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = head
        self.head_hidden_size: int = head.num_features
        self.init_weights(needs_reset=False)
        self.register_load_state_dict_post_hook(_describe_size)

    @classmethod
    def mixer_class(cls, args: Mapping[str, Any]) -> type[nn.Module]:
        """The class that `mixer_args` are keywords of, for a model built with `args`.

        Raises:
            ValueError: for an unknown mixer.
        """
        return mixer_class(args.get('mixer', 's4nd'), cls.mixers, clips=args.get('num_frames') is not None)

    @torch.jit.ignore
    def model_args(self) -> dict[str, Any]:
        """Arguments of the constructor that build this model again, but for drop rates; made by `timm.create_model`."""
        return complete(type(self), {}, get_model_args(self))

    @property
    def img_size(self) -> tuple[int, ...]:
        """Height and width in pixels of the training images."""
        return self.stem.grid[-2:]

    @property
    def num_frames(self) -> int | None:
        """Frames of the training clips, None for a model of images."""
        return self.stem.grid[0] if len(self.stem.grid) == 3 else None

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
    def set_input_size(self, img_size: int | Sequence[int] | None = None, num_frames: int | None = None) -> None:
        """Give every layer the grid of a model built at this size, each kept where None; no parameter changes.

        It says that a sample is what it was: a kernel keeps its length in pixels, or frames, and a larger input is more
        scene at the same scale. It is not for running at another size: the same scene sampled differently needs no
        call.

        Raises:
            ValueError: for sizes that are not positive integers or smaller than the model sees, and for `num_frames` of
                a model of images.
        """
        size = self.img_size if img_size is None else image_size(img_size)
        if num_frames is not None and self.num_frames is None:
            raise ValueError(f'num_frames={num_frames}: this is a model of images')
        frames = self.num_frames if num_frames is None else positive('num_frames', num_frames)
        self._resize(size if frames is None else (frames, *size))

    @torch.jit.ignore
    def _resize(self, grid: tuple[int, ...]) -> None:
        for part in (self.stem, *self.stages):
            grid = part.resize(grid)
        _describe_size(self)

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
        """(B, in_chans, L1 … LD) -> unpooled features (B, C, l1 … lD)."""
        x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, l1 … lD) -> logits (B, num_classes), or pooled features where `pre_logits`."""
        return from_map(self.head(to_map(x), pre_logits=pre_logits), x)

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
    cls: type[nn.Module], variant: str, pretrained: bool, variant_args: Mapping[str, Any], given: Mapping[str, Any],
    feature_cfg: Mapping[str, Any] | None = None, filter_fn: Callable[..., dict[str, Tensor]] = checkpoint_filter_fn,
) -> Any:  # fmt: skip
    """Build a registered model from the variant's arguments and those that are given, flat keywords folded."""
    trained = shipped_args(variant, pretrained, given.get('pretrained_cfg'))
    if not pretrained and given.get('pretrained_cfg') is None and shipped_names(variant):
        # timm would describe what has weights, whose channels and classes are not those of the family.
        given = {**given, 'pretrained_cfg': 'untrained'}
    args = complete(cls, variant_args, {**trained, **given}, variant)
    levels = {'out_indices': tuple(range(len(args.get('depths', (0, 0, 0))))), 'flatten_sequential': True}
    model = build_model_with_cfg(
        cls, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=dict(feature_cfg or levels),
        **args,
    )  # fmt: skip
    if isinstance(model, cls):
        own = inspect.signature(cls).parameters.keys() - {'device', 'dtype'}
        # Beside what timm notes by itself, for the hub's config.json.
        update_model_args(model, **{key: value for key, value in args.items() if key in own})
        if isinstance(model, Backbone):
            _describe_size(model)
    for part in model.modules():
        if hasattr(part, 'default_size'):
            part.default_size = not given.keys() & {'img_size', 'grid'}
    return model


def _describe_size(model: Backbone, incompatible: Any = None) -> None:
    """Name the training size where timm's data configuration and the hub's config.json look for it."""
    size = model.img_size
    if len(size) != 2 or not hasattr(model, 'pretrained_cfg'):
        return
    update_model_input_size(model, size, num_frames=model.num_frames)
    cfg, reduction = model.pretrained_cfg, model.feature_info[-1]['reduction']
    pool_size = None if any(length % reduction for length in size) else tuple(length // reduction for length in size)
    described = {**cfg, 'input_size': (cfg['input_size'][0], *size), 'pool_size': pool_size}
    if described != cfg:
        model.pretrained_cfg = model.default_cfg = described
