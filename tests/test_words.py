"""Options of the small commands."""

from dataclasses import dataclass

import pytest
from omegaconf import MISSING

from s4nd.words import parse_words


@dataclass
class Options:
    path: str = MISSING
    count: int = 3
    note: str | None = None


def test_words_fill_the_options() -> None:
    assert parse_words(Options, ['path=a=b', 'count=5']) == Options('a=b', 5, None)
    assert parse_words(Options, ['path=yes', 'note=1']) == Options('yes', 3, '1')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], r'path must be given \(path=…\)'),
        (['path=a', 'cuont=1'], "'cuont=1': expected key=value with one of path, count, note"),
        (['path'], "'path': expected key=value"),
        (['path=a', 'count=many'], 'count: .*many'),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_words(Options, words)
