"""One command for everything: s4nd COMMAND [key=value …]; s4nd COMMAND --help shows its options.

`key=value`, `--key value` and `--key=value` mean the same. The exit code is 0 where the command is done, 1 where it
failed on its way (a full disk, training that diverged), 2 where words, configuration or data cannot be used, and 128
and the number of the signal where one ended it (130 for Ctrl-C).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from s4nd.options import describe, is_out_of_memory, nearest

__all__ = ['main', 'run']


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        function: 'module:function' of a list of words.
        summary: what it does.
        help: 'module:function' of the text of --help, also of a list of words; None: the function prints it itself.
    """

    function: str
    summary: str
    help: str | None = None


_OWN = {
    'train': Command('s4nd.train:main', 'train, or evaluate, what a configuration describes', 's4nd.train:help_text'),
    'evaluate': Command(
        's4nd.evaluate:main',
        'measure a checkpoint at many sizes or rates, with the time per input',
        's4nd.evaluate:help_text',
    ),
    'export': Command('s4nd.interop.onnx:main', 'write a model as ONNX: images, and SaShiMi', 's4nd.cli:export_help'),
    'report': Command(
        's4nd.training.report:main', 'compare runs in a table and a picture', 's4nd.training.report:help_text'
    ),
    'list': Command('s4nd.cli:list_names', 'list models, tasks, configurations and weights', 's4nd.cli:list_help'),
}


_EXTRAS = {'av': 'video', 'numba': 'fast', 'onnx': 'export', 'onnxruntime': 'export', 'onnxscript': 'export'}


@cache
def _commands() -> dict[str, Command]:
    """Those of this package, and the entry points 's4nd.commands' of others."""
    others = {
        entry.name: Command(entry.value, f'see s4nd {entry.name} --help')
        for entry in entry_points(group='s4nd.commands')
    }
    return {**_OWN, **others}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (None: of the process) name and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ('-h', '--help'):
        print(_overview())
        return 0 if words else 2
    name, *rest = words
    if name not in _commands():
        print(f"error: no command '{name}'{nearest(name, list(_commands()))}", file=sys.stderr)
        return 2
    command = _commands()[name]
    return run(_function(command.function), rest, None if command.help is None else _function(command.help))


def _function(place: str) -> Callable[[list[str]], Any]:
    module, _, name = place.partition(':')
    return getattr(import_module(module), name)


def run(
    command: Callable[[list[str]], Any], words: Sequence[str], help_text: Callable[[list[str]], str] | None = None
) -> int:
    """Call `command(words)` and return the exit code; a mistake is one line on stderr.

    help_text: gives what --help prints; None: the command does.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    logging.basicConfig(handlers=[handler])
    try:
        if help_text is not None and {'-h', '--help'} & set(words):
            print(help_text([word for word in words if word not in ('-h', '--help')]))
            return 0
        done = command(list(words))
        return done if isinstance(done, int) else 0
    except KeyboardInterrupt as error:
        print(str(error) or 'interrupted', file=sys.stderr)
        return getattr(error, 'code', 130)
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        print(f"error: {error.name} is not installed: pip install 's4nd[{_EXTRAS[error.name]}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, MemoryError, OverflowError) as error:
        if not _is_expected(error):
            raise
        what = 'more memory is needed than there is: ' if is_out_of_memory(error) else ''
        if _is_lost_process(error):
            what = 'another process of this run ended, and its message says why: '
        print(f'error: {what}{(str(error).splitlines() or [""])[0]}', file=sys.stderr)
        return 1


class _Printable(logging.Formatter):
    """The message alone; of the name of a file, nothing that would move the cursor of a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in super().format(record))


def export_help(words: Sequence[str]) -> str:
    """The text of `s4nd export --help`."""
    from s4nd.interop import onnx

    return f'{onnx.__doc__}\n{describe(onnx.Options)}'


def list_help(words: Sequence[str]) -> str:
    """The text of `s4nd list --help`."""
    return 's4nd list [WORD …]\n\nList models, tasks, configurations and weights whose names hold all words.'


def list_names(words: Sequence[str]) -> None:
    """Print the names of our models, the tasks, and what ships; words select by what a name holds."""
    import timm

    from s4nd.models import is_ours
    from s4nd.tasks import task_names
    from s4nd.train import shipped_configs
    from s4nd.weights import shipped_names

    groups = {
        'models': [name for name in timm.list_models() if is_ours(name)],
        'tasks': task_names(),
        'configurations': shipped_configs(),
        'weights': shipped_names(),
    }
    for title, names in groups.items():
        chosen = [name for name in names if all(word in name for word in words)]
        print(f'{title}:', *(f'  {name}' for name in chosen), sep='\n')


def _is_expected(error: Exception) -> bool:
    """Errors of the machine, diverged training, failed exports; any other RuntimeError is a fault to be seen whole."""
    from s4nd.interop.onnx import ExportError
    from s4nd.training.loop import NonFiniteError

    expected = isinstance(error, (OSError, NonFiniteError, ExportError))
    return expected or is_out_of_memory(error) or _is_lost_process(error)


def _is_lost_process(error: Exception) -> bool:
    """Whether a process that takes part in the training is gone, as gloo and NCCL say it."""
    lost = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'remote process exited')
    return isinstance(error, RuntimeError) and any(words in str(error) for words in lost)


def _overview() -> str:
    width = max(map(len, _commands()))
    lines = [f'  {name:<{width}}  {command.summary}' for name, command in _commands().items()]
    return '\n'.join([str(__doc__), *lines, '', f'Version {_version()}, in {Path(__file__).parent}'])


def _version() -> str:
    import s4nd

    return s4nd.__version__
