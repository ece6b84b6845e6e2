"""The key=value words of a command, read into a dataclass of its options."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Options = TypeVar('Options')


def parse_words(schema: type[Options], words: Sequence[str]) -> Options:
    """`schema` filled from key=value words; options without a default are MISSING in it.

    Raises:
        ValueError: naming the word that is unknown or of the wrong type, or the options that must be given.
    """
    known = [field.name for field in fields(schema)]
    for word in words:
        key = word.partition('=')[0]
        if '=' not in word or key not in known:
            raise ValueError(f'{word!r}: expected key=value with one of {", ".join(known)}')
    try:
        # As text: YAML would read a class called `yes` as true.
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(word.split('=', 1) for word in words))
    except OmegaConfBaseException as error:
        raise ValueError(f'{error.full_key}: {str(error).splitlines()[0]}') from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f'{", ".join(missing)} must be given ({" ".join(f"{key}=…" for key in missing)})')
    return OmegaConf.to_object(merged)
