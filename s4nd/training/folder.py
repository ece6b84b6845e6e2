"""The folder of a run: one run at a time writes there, and what it leaves is known by name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from s4nd.files import clear_temporaries, try_folder
from s4nd.options import ConfigError
from s4nd.training.checkpoint import STATES

__all__ = ['check_unused', 'claimed', 'clear']

logger = logging.getLogger(__name__)

_WEIGHTS = ('best.safetensors', 'last.safetensors')
_REPORTS = [f'{name}.{suffix}' for name in ('report', 'evaluation') for suffix in ('json', 'txt', 'png')]
_HELD: set[Path] = set()  # by this process


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Make the folder, try to write there, remove temporary files of runs that were killed, and keep others out.

    The claim ends with the process, however it ends.

    Raises:
        ConfigError: another run writes there: it names process and machine.
        OSError: nothing can be written there: it names folder, disk and free space.
    """
    folder = Path(folder).resolve()
    if folder in _HELD:
        yield
        return
    try_folder(folder)
    lock = _locked(folder / '.lock')
    _HELD.add(folder)
    try:
        clear_temporaries(folder)
        yield
    finally:
        _HELD.discard(folder)
        (folder / '.lock').unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path) -> int:
    """An open file that this process alone has locked."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(number, 200).decode(errors='replace') or 'another process'
            os.close(number)
            raise ConfigError(f'{path.parent} is in use by {owner}: out=… writes elsewhere') from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
            logger.warning('%s: this disk has no locks, so that a second run here would not be noticed', path.parent)
        # The run before may have removed the file between opening and locking.
        if path.exists() and path.stat().st_ino == os.fstat(number).st_ino:
            os.truncate(number, 0)
            os.write(number, f'process {os.getpid()} on {socket.gethostname()}'.encode())
            return number
        os.close(number)


def check_unused(folder: Path) -> None:
    """Raise ConfigError where an earlier run left a state or results in `folder`, saying what can be done."""
    found = [name for name in (*STATES, *_WEIGHTS, 'report.json') if (folder / name).exists()]
    if not found:
        return
    goes_on = 'resume=true goes on with it, ' if found[0] in STATES else ''
    raise ConfigError(
        f'{folder} holds an earlier run ({found[0]}): {goes_on}overwrite=true replaces it, out=… writes elsewhere'
    )


def clear(folder: Path) -> None:
    """Remove all that an earlier run left in `folder`, and nothing else."""
    for name in (*STATES, *_WEIGHTS, *_REPORTS, 'config.yaml', 'metrics.csv'):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / 'tensorboard', ignore_errors=True)
