"""The words of a command line: key=value, --key value and --key=value mean the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s4nd.options import check_values, nearest, option_names

__all__ = ['parse_words', 'split_words']

Options = TypeVar('Options')

_PAIR = re.compile(r'[\w.]+=')


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line arguments -> (arguments without a key, key=value words).

    '--key value' and '--key=value' become 'key=value'; '--key' before another option, or at the end, is 'key=true'.
    Dashes within a key are read as underscores.
    """
    plain: list[str] = []
    words: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith('--'):
            (words if _PAIR.match(argument) else plain).append(argument)
            continue
        key, separator, value = argument[2:].partition('=')
        if not separator:
            follows = bool(rest) and not rest[0].startswith('--') and not _PAIR.match(rest[0])
            value = rest.pop(0) if follows else 'true'
        words.append(f'{key.replace("-", "_")}={value}')
    return plain, words


def parse_words(schema: type[Options], arguments: Sequence[str]) -> Options:
    """`schema` filled from the words of a command; options without a default are MISSING in it.

    Raises:
        ValueError: naming the word that is unknown or of the wrong type, or the options that must be given.
    """
    known = list(option_names(schema))
    plain, words = split_words(arguments)
    if plain:
        raise ValueError(f'{plain[0]!r}: expected key=value with one of {", ".join(known)}')
    for key in (word.partition('=')[0] for word in words):
        if key not in known:
            raise ValueError(f"unknown option '{key}'{nearest(key, known)}")
    try:
        # As text: YAML would read a class called `yes` as true.
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(word.split('=', 1) for word in words))
    except OmegaConfBaseException as error:
        raise ValueError(f'{error.full_key}: {str(error).splitlines()[0]}') from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f'{", ".join(missing)} must be given ({" ".join(f"{key}=…" for key in missing)})')
    filled: Any = OmegaConf.to_object(merged)
    check_values(filled)
    return filled
