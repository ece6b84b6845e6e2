"""Options: what --help says of them comes from the fields themselves."""

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from s4nd.options import MISSING, ConfigError, check_keywords, describe, fill, option, section
from s4nd.tasks import task_class, task_names


@dataclass
class Part:
    size: int = option(8, 'pixels per side', low=1)
    kinds: list[str] = option(['a'], 'what to show')


@dataclass
class Whole:
    name: str = option(MISSING, 'the name')
    mode: str = option('fast', 'how', choices=('fast', 'exact'))
    rate: float | None = option(None, 'per second', low=0, high=2)
    part: Part = section(Part)


def test_help_shows_default_description_and_what_is_admitted() -> None:
    lines = [' '.join(line.split()) for line in describe(Whole).splitlines()]
    assert lines == [
        'name=… the name (text)',
        'mode=fast how (fast, exact)',
        'rate=null per second (a number, at least 0, at most 2)',
        '',
        'part.size=8 pixels per side (a whole number, at least 1)',
        "part.kinds=['a'] what to show (a list, [a, b])",
    ]


@pytest.mark.parametrize('name', task_names())
def test_every_option_of_every_task_has_a_description(name: str) -> None:
    bare = [line.split()[0] for line in describe(task_class(name).Config).splitlines() if '=' in line and '  (' in line]
    assert bare == []
    assert f'task={name}' in describe(task_class(name).Config)


def test_layers_are_merged_and_lists_are_not_shared() -> None:
    filled = fill(
        Whole, [('file', OmegaConf.create({'name': 'x', 'part': {'size': 3}})), ('word', OmegaConf.create({'rate': 1}))]
    )
    assert (filled.name, filled.rate, filled.part.size, filled.part.kinds) == ('x', 1.0, 3, ['a'])
    filled.part.kinds.append('b')
    assert Part().kinds == ['a']


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({}, 'name: must be given'),
        ({'name': 'x', 'part': {'sise': 3}}, r"origin: unknown option 'part.sise'; did you mean 'part.size'"),
        ({'name': 'x', 'part': 3}, r'part: expected a section with options of its own, got 3'),
        ({'name': 'x', 'part': {'size': 0}}, r'part\.size: expected at least 1, got 0'),
        ({'name': 'x', 'mode': 'slow'}, r"mode: expected one of fast, exact, got 'slow'"),
        ({'name': 'x', 'rate': 'often'}, r"rate: expected a number, got 'often'"),
    ],
)
def test_mistakes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fill(Whole, [('origin', OmegaConf.create(values))])


def test_keywords_of_a_function() -> None:
    def function(model: object, timescale: float = 1.0) -> None: ...

    check_keywords(function, {'timescale': 2}, 'inflate', ('model',))
    with pytest.raises(ConfigError, match=r"model\.args: inflate takes no 'time_scale'; did you mean 'timescale'"):
        check_keywords(function, {'time_scale': 2}, 'inflate', ('model',))
