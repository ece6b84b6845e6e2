"""The two names of the folder `audio` in a checkout; no part of a wheel, where the folder is `s4nd/audio`.

Its modules are those of `s4nd.audio`, loaded once; `import audio`, which finds the folder in a checkout, gives them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

__all__ = ['alias', 'load']

FOLDER = Path(__file__).resolve().parents[1] / 'audio'


def load() -> None:
    """Make `s4nd.audio` of the folder."""
    spec = spec_from_file_location('s4nd.audio', FOLDER / '__init__.py', submodule_search_locations=[str(FOLDER)])
    if spec is None or spec.loader is None:
        raise ImportError(f'expected the package audio in {FOLDER}')
    sys.modules['s4nd.audio'] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


def alias() -> None:
    """Let `audio`, and whatever is imported from it from now on, be `s4nd.audio`."""
    sys.meta_path.insert(0, _Finder())
    sys.modules['audio'] = import_module('s4nd.audio')


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith('audio.'):
            return None
        found = find_spec(f's4nd.{name}')
        return None if found is None else ModuleSpec(name, _Loader(found), origin=found.origin)


class _Loader(InspectLoader):
    """Gives the module of `spec` under another name."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self.spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has put that of the alias there

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m audio.generate`."""
        loader = self.spec.loader
        return loader.get_code(self.spec.name) if isinstance(loader, InspectLoader) else None

    def get_source(self, name: str) -> str | None:
        loader = self.spec.loader
        return loader.get_source(self.spec.name) if isinstance(loader, InspectLoader) else None
