"""One command for everything: s4nd COMMAND [key=value …]; s4nd COMMAND --help shows its options.

`key=value`, `--key value` and `--key=value` mean the same. The exit code is 0 where the command is done, 1 where it
failed on its way (a full disk, training that diverged), 2 where words, configuration or data cannot be used, and 128
and the number of the signal where one ended it (130 for Ctrl-C).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from s4nd.options import describe, is_out_of_memory, nearest
from s4nd.words import parse_words

__all__ = ['Program', 'command_names', 'command_options', 'main', 'run']


@dataclass(frozen=True)
class Command:
    """Where a command of this package is.

    Attributes:
        function: 'module:function' of a list of words.
        summary: what it does.
        help: 'module:function' of the text of --help, also of a list of words.
        options: 'module:class' of its options, where they are its own.
    """

    function: str
    summary: str
    help: str
    options: str | None = None


@dataclass(frozen=True)
class Program:
    """A command of another package, an entry point 's4nd.commands': called with words, it returns the exit code.

    Attributes:
        function: does what the options say and returns the exit code.
        options: the dataclass of all words that it takes.
        text: what --help says before the options; its first line is the summary.
    """

    function: Callable[[Any], int]
    options: type
    text: str

    def __call__(self, words: Sequence[str]) -> int:
        return run(lambda given: self.function(parse_words(self.options, given)), words, self.help)

    def help(self, words: Sequence[str]) -> str:
        """The text of --help."""
        return f'{self.text}\n\nOptions:\n{describe(self.options)}'


_OWN = {
    'train': Command('s4nd.train:main', 'train, or evaluate, what a configuration describes', 's4nd.train:help_text'),
    'evaluate': Command(
        's4nd.evaluate:main',
        'measure a checkpoint at many sizes or rates, with the time per input',
        's4nd.evaluate:help_text',
    ),
    'export': Command(
        's4nd.interop.onnx:main',
        'write a model as ONNX: images, and SaShiMi',
        's4nd.cli:export_help',
        's4nd.interop.onnx:Options',
    ),
    'report': Command(
        's4nd.training.report:main',
        'compare runs in a table and a picture',
        's4nd.training.report:help_text',
        's4nd.training.report:Options',
    ),
    'list': Command('s4nd.cli:list_names', 'list models, tasks, configurations and weights', 's4nd.cli:list_help'),
    'completion': Command(
        's4nd.completion:main', 'print what completes s4nd in a shell: bash or zsh', 's4nd.cli:completion_help'
    ),
}


_EXTRAS = {'av': 'video', 'numba': 'fast', 'onnx': 'export', 'onnxruntime': 'export', 'onnxscript': 'export'}


@cache
def _others() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group='s4nd.commands')}


def command_names() -> list[str]:
    """The commands of this package, then those of others."""
    return [*_OWN, *_others()]


def command_options() -> dict[str, type]:
    """The dataclass of options of each command that has its own; train and evaluate have those of a task."""
    own: dict[str, Any] = {name: _load(command.options) for name, command in _OWN.items() if command.options}
    return own | {name: entry.load().options for name, entry in _others().items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (None: of the process) name and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ('-h', '--help'):
        print(_overview())
        return 0 if words else 2
    if words[0] == '--version':
        print(f's4nd {_version()}')
        return 0
    name, *rest = words
    if name in _others():
        return _others()[name].load()(rest)
    if name not in _OWN:
        print(f"error: no command '{name}'{nearest(name, command_names())}", file=sys.stderr)
        return 2
    return run(_load(_OWN[name].function), rest, _load(_OWN[name].help))


def _load(place: str) -> Any:
    module, _, name = place.partition(':')
    return getattr(import_module(module), name)


def run(
    command: Callable[[list[str]], Any], words: Sequence[str], help_text: Callable[[list[str]], str] | None = None
) -> int:
    """Call `command(words)` and return the exit code; a mistake, and a warning, is one line on stderr.

    help_text: gives what --help prints.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    logging.basicConfig(handlers=[handler])
    warnings.formatwarning = _as_one_line
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


def _as_one_line(message: Warning | str, *place: Any, **line: Any) -> str:
    """A warning without the line of code that it points at, which is none of the user's."""
    return f'warning: {message}\n'


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
    return (
        's4nd list [WORD …]\n\nList models, tasks, configurations and weights whose names hold all words.\n\n'
        'Models are for timm.create_model and model.name=…, configurations for s4nd train, weights for checkpoint=….'
    )


def list_names(words: Sequence[str]) -> None:
    """Print the names of our models, the tasks, and what ships; words select by what a name holds.

    Raises:
        ValueError: no name holds the words.
    """
    import timm

    from s4nd.models import is_ours
    from s4nd.tasks import task_names
    from s4nd.train import shipped_configs
    from s4nd.weights import shipped_names

    groups = {
        'models (timm.create_model, model.name=…)': [name for name in timm.list_models() if is_ours(name)],
        'tasks (s4nd train task=… --help)': task_names(),
        'configurations (s4nd train …)': shipped_configs(),
        'weights (checkpoint=…)': shipped_names(),
    }
    found = {title: [name for name in names if all(word in name for word in words)] for title, names in groups.items()}
    if not any(found.values()):
        raise ValueError(f'no name holds {" and ".join(map(repr, words))}; s4nd list shows all')
    for title, names in found.items():
        if names:
            print(f'{title}:', *(f'  {name}' for name in names), sep='\n')


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


def completion_help(words: Sequence[str]) -> str:
    """The text of `s4nd completion --help`."""
    from s4nd import completion

    return str(completion.__doc__)


def _overview() -> str:
    summaries = {name: command.summary for name, command in _OWN.items()}
    for name, entry in _others().items():
        first = str(entry.load().text).partition('\n')[0].rstrip('.')
        summaries[name] = first[:1].lower() + first[1:]
    width = max(map(len, summaries))
    lines = [f'  {name:<{width}}  {summary}' for name, summary in summaries.items()]
    return '\n'.join([str(__doc__), *lines, '', f'Version {_version()}, in {Path(__file__).parent}'])


def _version() -> str:
    import s4nd

    return s4nd.__version__
