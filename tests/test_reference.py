"""The generated page of options is up to date, and says something of every option."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from s4nd.training.config import RunConfig

FILE = Path(__file__).parents[1] / 'docs' / 'generate.py'


@pytest.fixture(scope='module')
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location('generate', FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generate: ModuleType) -> None:
    assert generate.PAGE.read_text(encoding='utf-8') == generate.page(), 'run python docs/generate.py'


def test_every_option_is_described(generate: ModuleType) -> None:
    schemas = [
        RunConfig,
        *generate.command_options().values(),
        *(generate.task_class(x).Config for x in generate.task_names()),
    ]
    rows = [(schema, key, row) for schema in schemas for key, row in generate._rows(schema).items()]
    assert [f'{schema.__name__}.{key}' for schema, key, row in rows if not row[1]] == []
