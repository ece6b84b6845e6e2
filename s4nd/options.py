"""Options as dataclass fields: each with a description and the values that it admits.

A schema is a dataclass; a field that is a dataclass is a section ('data.size' is the field `size` of the section
`data`). `fill` merges layers of values into a schema and checks them, `describe` lists the options for `--help`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

__all__ = [
    'MISSING',
    'ConfigError',
    'built',
    'check_keywords',
    'check_values',
    'describe',
    'describe_field',
    'fill',
    'is_out_of_memory',
    'named_model',
    'nearest',
    'option',
    'option_names',
    'section',
]

Schema = TypeVar('Schema')
Built = TypeVar('Built')

_KINDS: dict[Any, str] = {
    int: 'a whole number',
    float: 'a number',
    bool: 'true or false',
    str: 'text',
    Any: 'text',
    list[int]: 'whole numbers, [8, 16]',
    list[float]: 'numbers, [7.5, 15]',
    list[str]: 'a list, [a, b]',
    list[Any]: 'a list, [8, 16]',
}

_LARGEST = 2**31 - 1  # of any number in a configuration; larger ones, NaN and infinities overflow somewhere


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the option, its value and what was expected."""


def option(
    default: Any,
    text: str = '',
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Return a dataclass field for one option.

    Args:
        default: MISSING where the option must be given. A list or dict is copied for each instance.
        text: description, in words that complete "size is …": 'pixels per side of the training images'.
        choices: the values that are admitted.
        low, high: the closed range of a number, or of each number in a list.
        parse: raises ValueError for a value, or an entry of a list, that is not admitted.
    """
    metadata = {'text': text, 'choices': choices, 'low': low, 'high': high, 'parse': parse}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(schema: type) -> Any:
    """Return a dataclass field whose value is a dataclass of options."""
    return field(default_factory=schema)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or the first of all where none is close.

    The last part of a name with dots may stand for it: 'lr' is close to 'optim.lr'.
    """
    parts = {option.rpartition('.')[2]: option for option in reversed(known)}
    close = difflib.get_close_matches(name, [*known, *parts], n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{parts.get(close[0], close[0]) if close[0] not in known else close[0]}'?"
    listed = sorted(known)
    return f'; known: {", ".join(listed[:12])}{", …" if len(listed) > 12 else ""}'


def named_model(models: Mapping[str, Callable[..., Built]], name: str, kind: str) -> Callable[..., Built]:
    """Return the model of this name; raise ConfigError, with the nearest name, where there is no such `kind`."""
    if name not in models:
        raise ConfigError(f"model.name: no {kind} '{name}'{nearest(name, list(models))}")
    return models[name]


def check_keywords(function: Callable[..., Any], args: Mapping[str, Any], name: str, given: Sequence[str] = ()) -> None:
    """Raise ConfigError for the first of `args` that `function` does not take, or that it is `given` anyway."""
    known = [key for key in inspect.signature(function).parameters if key not in given]
    for key in args:
        if key not in known:
            raise ConfigError(f"model.args: {name} takes no '{key}'{nearest(key, known)}")


def built(build: Callable[..., Built], args: Mapping[str, Any]) -> Built:
    """`build(**args)`, of a model.

    Raises:
        ConfigError: the constructor fails; it names the option without which it does not.
    """
    for key, value in args.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        rate = number and key.endswith(('drop_rate', 'drop_path_rate', 'dropout'))
        if rate and not 0 <= value < 1:
            raise ConfigError(f'model.args.{key}: expected at least 0 and below 1, got {value}')
    try:
        return build(**args)
    except Exception as error:  # any: what constructors do with wrong values is without end
        for key in args:
            try:
                build(**{name: value for name, value in args.items() if name != key})
            except Exception:
                continue
            raise ConfigError(f'model.args.{key}: {args[key]!r} cannot be used: {_line_of(error)}') from error
        raise ConfigError(f'model.args: {_line_of(error)}') from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch could not allocate something, or not even count its elements."""
    text = str(error)
    told = (
        "can't allocate memory",
        'out of memory',
        'calculation overflowed',
        'Unable to allocate',
        'multiplication overflow',
    )
    return isinstance(error, MemoryError) or any(words in text for words in told)


def _line_of(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def fill(schema: type[Schema], layers: Sequence[tuple[str, Any]]) -> Schema:
    """Merge `layers` of (origin, OmegaConf dictionary) into the defaults of `schema`; later layers win.

    Raises:
        ConfigError: naming the option that is unknown, missing, of another type or outside its range.
    """
    known = list(option_names(schema))
    merged: Any = OmegaConf.structured(schema)
    for origin, layer in layers:
        content: Any = OmegaConf.to_container(layer)
        for key, problem in _misplaced(schema, content):
            raise ConfigError(
                f'{key}: {problem}' if problem else f"{origin}: unknown option '{key}'{nearest(key, known)}"
            )
        try:
            merged = OmegaConf.merge(merged, layer)
        except (OmegaConfBaseException, TypeError, ValueError, AssertionError) as error:
            key = getattr(error, 'full_key', None) or origin
            value = OmegaConf.select(layer, key.split('[')[0])
            raise ConfigError(f'{key}: {_expected(schema, key)}, got {value!r}') from error
    try:
        filled: Any = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f'{error.full_key}: must be given') from error
    except OmegaConfBaseException as error:
        raise ConfigError(f'{error.full_key}: {str(error).splitlines()[0]}') from error
    check_values(filled)
    return filled


def check_values(filled: Any, prefix: str = '') -> None:
    """Raise ConfigError for the first option of a dataclass, sections included, with a value that is not admitted."""
    for item in fields(filled):
        value, name = getattr(filled, item.name), prefix + item.name
        if is_dataclass(value):
            check_values(value, f'{name}.')
            continue
        choices, low, high = (item.metadata.get(word) for word in ('choices', 'low', 'high'))
        parse: Callable[[Any], Any] | None = item.metadata.get('parse')
        if choices and value not in choices:
            raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got '{value}'")
        if parse is not None:
            _parse_all(name, value if isinstance(value, list) else [value], parse)
        for number in value if isinstance(value, list) else [value]:
            if low is not None and number is not None and not number >= low:
                raise ConfigError(f'{name}: expected at least {low}, got {number}')
            if isinstance(number, (int, float)) and not abs(number) <= _LARGEST:
                raise ConfigError(f'{name}: expected a number of at most {_LARGEST}, got {number}')
            if high is not None and number is not None and not number <= high:
                raise ConfigError(f'{name}: expected at most {high}, got {number}')


def _parse_all(name: str, entries: Sequence[Any], parse: Callable[[Any], Any]) -> None:
    for entry in entries:
        try:
            parse(entry)
        except ValueError as error:
            raise ConfigError(f'{name}: {error}') from error


def option_names(schema: type, prefix: str = '') -> Iterator[str]:
    """The names of all options, sections before what they hold: 'data', 'data.size', …"""
    hints = get_type_hints(schema)
    for item in fields(schema):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from option_names(hints[item.name], f'{prefix}{item.name}.')


def describe(schema: type, prefix: str = '') -> str:
    """One line per option: name=default, description and what is admitted; sections after the plain options."""
    hints = get_type_hints(schema)
    lines, sections = [], []
    for item in fields(schema):
        name = prefix + item.name
        if is_dataclass(hints[item.name]):
            sections.append(describe(hints[item.name], f'{name}.'))
        else:
            lines.append(_line(name, hints[item.name], item))
    return '\n'.join([*lines, *(f'\n{text}' for text in sections)])


def describe_field(hint: Any, item: Field[Any]) -> tuple[str, str, str]:
    """The default of an option, its description and what is admitted, as words."""
    default: Any = item.default_factory() if item.default_factory is not NO_DEFAULT else item.default
    words = {None: 'null', True: 'true', False: 'false', MISSING: '…'}
    plain = isinstance(default, (list, dict, int, float)) and not isinstance(default, bool)
    shown = str(default if plain else words.get(default, default))
    choices, low, high = (item.metadata.get(word) for word in ('choices', 'low', 'high'))
    allowed = ', '.join(choices) if choices else _kind(hint)
    allowed += f', at least {low:g}' if low is not None else ''
    allowed += f', at most {high:g}' if high is not None else ''
    return shown, item.metadata.get('text', ''), allowed


def _line(name: str, hint: Any, item: Field[Any]) -> str:
    default, text, allowed = describe_field(hint, item)
    return f'  {f"{name}={default}":<36} {text} ({allowed})'


def _misplaced(schema: type, content: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Each key that the schema lacks (with no text), or has as a section or dict (with what was expected)."""
    hints = get_type_hints(schema)
    for key, value in content.items():
        name = f'{prefix}{key}'
        if key not in hints:
            yield name, ''
        elif (is_dataclass(hints[key]) or get_origin(hints[key]) is dict) and not isinstance(value, Mapping):
            yield name, f'expected a section with options of its own, got {value!r}'
        elif get_origin(hints[key]) is list and not isinstance(value, list):
            yield name, f'expected {_kind(hints[key])}, got {value!r}'
        elif is_dataclass(hints[key]):
            yield from _misplaced(hints[key], value, f'{name}.')


def _expected(schema: type, key: str) -> str:
    kind: Any = schema
    for part in key.split('[')[0].split('.'):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return f'expected {_kind(kind)}'


def _kind(hint: Any) -> str:
    if hint in _KINDS:
        return _KINDS[hint]
    if get_origin(hint) is dict:
        return 'a section'
    parts = [part for part in getattr(hint, '__args__', (hint,)) if part is not type(None)]
    return ' or '.join(_KINDS.get(part, str(part)) for part in parts)
