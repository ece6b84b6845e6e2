"""Keywords of the models: sizes and choices that are checked alike, and the folding of flat keywords.

    timm.create_model('s4nd_convnext_tiny', kernel='s4', n_ssm=2)

is S4NDConvNeXt(…, mixer_args={'kernel': 's4', 'kernel_args': {'n_ssm': 2}}): a layer's keywords are named once, in the
layer's class.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from s4nd.kernels import KERNELS, own_keywords
from s4nd.options import nearest

# What timm's factory takes beside the arguments of a model.
_FACTORY = {
    *inspect.signature(build_model_with_cfg).parameters,
    'features_only',
    'out_indices',
    'feature_cls',
    'pruned',
}
# Keywords of the parts of a model that may stand beside its own: (argument that holds them, name there).
_PARTS = {
    'stem_extent': ('stem_args', 'extent'),
    'time_patch': ('stem_args', 'time_patch'),
    'encoder_pretrained': ('encoder_args', 'pretrained'),
}
_PLACED = {'self', 'd_model', 'dim', 'grid', 'device', 'dtype'}  # not for a user to say
_DICTS = ('mixer_args', 'stem_args', 'encoder_args')


def complete(
    cls: type[nn.Module], variant: Mapping[str, Any], given: Mapping[str, Any], name: str = ''
) -> dict[str, Any]:
    """Merge what is given for a model into the arguments of its variant, and fold flat keywords into `mixer_args`.

    Args:
        cls: the family, with `mixer_class(args)`, the class that its `mixer_args` are keywords of.
        variant: arguments of the constructor; its `mixer_args` hold for its own mixer only.
        given: arguments, flat keywords of the mixer, its kernels or the stem, and what timm's factory takes.
        name: of the model, for the error.

    Raises:
        TypeError: for a keyword that neither has; it names the nearest one.
    """
    own = set(inspect.signature(cls).parameters)
    args = {key: value for key, value in given.items() if key in own | _FACTORY}
    flat = {key: value for key, value in given.items() if key not in args}
    parts = {key: place for key, place in _PARTS.items() if place[0] in own}
    merged = {**variant, **args}
    inherited = dict(variant)
    if cls.mixer_class(merged) is not cls.mixer_class(variant):
        inherited.pop('mixer_args', None)
    for part in _DICTS:
        if part in own:
            merged[part] = {**(inherited.get(part) or {}), **(args.get(part) or {})}
    for key in parts.keys() & flat.keys():
        merged[parts[key][0]][parts[key][1]] = flat.pop(key)
    mixer = keywords(cls.mixer_class(merged))
    merged['mixer_args'].update({key: flat.pop(key) for key in mixer.keys() & flat.keys()})
    known = {*own, *parts, *mixer}
    if 'kernel' in mixer:
        known |= _fold_kernel_args(merged['mixer_args'], flat, mixer['kernel'])
    if flat:
        unknown = next(iter(flat))
        chosen = f'mixer={merged["mixer"]!r}' if 'mixer' in merged else ''
        raise TypeError(f"{name or cls.__name__}({chosen}) has no keyword '{unknown}'{nearest(unknown, sorted(known))}")
    return {key: value for key, value in merged.items() if key not in _DICTS or value}


def keywords(cls: Any) -> dict[str, Any]:
    """Keywords of a layer's class and their defaults, those included that it hands on to its base."""
    found: dict[str, Any] = {}
    while True:
        parameters = inspect.signature(cls.__init__).parameters.values()
        found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD} | found
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return {key: value for key, value in found.items() if key not in _PLACED}
        cls = getattr(cls, 'wraps', cls.__base__)


def _fold_kernel_args(mixer_args: dict[str, Any], flat: dict[str, Any], default: str) -> set[str]:
    """Move keywords of the kernels' classes from `flat` into kernel_args, by axis where they differ; all such names."""
    kernel, old = mixer_args.get('kernel', default), mixer_args.get('kernel_args')
    names = [set(own_keywords(axis)) if axis in KERNELS else set() for axis in _each(kernel)]
    taken = {key: flat.pop(key) for key in set().union(*names) & flat.keys()}
    axes = max((len(value) for value in (kernel, old, *taken.values()) if _is_sequence(value)), default=0)
    if taken and not axes:
        mixer_args['kernel_args'] = {**(old or {}), **taken}
    elif taken:
        mixer_args['kernel_args'] = [
            {
                **(_at(old, axis) or {}),
                **{
                    key: _at(value, axis)
                    for key, value in taken.items()
                    if key in names[axis % len(names)] and _at(value, axis) is not None
                },
            }
            for axis in range(axes)
        ]
    return set().union(*names)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _each(value: Any) -> Sequence[Any]:
    return value if _is_sequence(value) else [value]


def _at(value: Any, axis: int) -> Any:
    return value[axis] if _is_sequence(value) else value


def image_size(img_size: int | Sequence[int], axes: int = 2) -> tuple[int, ...]:
    """Return one size for each axis: of (height, width) in pixels, or of all axes where `axes` is not 2.

    Raises:
        ValueError: not one or `axes` positive integers.
    """
    given: Any = img_size
    sizes = tuple(given) if _is_sequence(given) else (given,) * axes
    if len(sizes) != axes or any(not isinstance(n, int) or n < 1 for n in sizes):
        expected = 'a pair (height, width)' if axes == 2 else f'a tuple of {axes}'
        raise ValueError(f'img_size must be one positive integer or {expected}, got {img_size!r}')
    return sizes


def training_grid(img_size: int | Sequence[int], num_frames: int | None) -> tuple[int, ...]:
    """Return (height, width) of images, or (frames, height, width) of clips.

    Raises:
        ValueError: sizes that are not positive integers.
    """
    return (() if num_frames is None else (positive('num_frames', num_frames),)) + image_size(img_size)


def choose(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`, else a ValueError that names the option."""
    if value not in choices:
        raise ValueError(f'{option} must be one of {", ".join(map(repr, choices))}, got {value!r}')
    return value


def positive(name: str, value: int) -> int:
    """`value` if it is a positive integer, else a ValueError that names it."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')
    return value


def check_stages(depths: Sequence[int], dims: Sequence[int]) -> None:
    """Raise ValueError unless there is a positive number of blocks and a positive width for every stage."""
    if len(depths) != len(dims) or not dims or min(*depths, *dims) < 1:
        raise ValueError(
            f'depths and dims must hold a positive number for every stage, got {tuple(depths)} and {tuple(dims)}'
        )
