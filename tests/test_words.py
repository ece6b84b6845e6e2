"""Options of the small commands."""

from dataclasses import dataclass

import pytest
from omegaconf import MISSING

from s4nd.words import parse_words, split_words


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
        (['path=a', 'cuont=1'], "unknown option 'cuont'; did you mean 'count'"),
        (['path'], "'path': expected key=value with one of path, count, note"),
        (['path=a', 'count=many'], 'count: .*many'),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_words(Options, words)


@pytest.mark.parametrize(
    ('arguments', 'plain', 'words'),
    [
        (['a.yaml', 'epochs=3', 'data.root=/a/b=c'], ['a.yaml'], ['epochs=3', 'data.root=/a/b=c']),
        (['--epochs', '3', '--data.root=/a'], [], ['epochs=3', 'data.root=/a']),
        (['--resume', '--max-steps', '8'], [], ['resume=true', 'max_steps=8']),
        (['--overwrite', 'out=x', 'out/a=b'], ['out/a=b'], ['overwrite=true', 'out=x']),
        (['--seed', '-1', '--flip'], [], ['seed=-1', 'flip=true']),
    ],
)
def test_all_ways_to_write_an_option_mean_the_same(arguments: list[str], plain: list[str], words: list[str]) -> None:
    assert split_words(arguments) == (plain, words)


def test_options_of_a_command_may_be_written_with_dashes() -> None:
    assert parse_words(Options, ['--path', 'a', '--count=5']) == Options('a', 5, None)
