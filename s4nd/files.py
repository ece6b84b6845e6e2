"""Writing files so that nothing is ever half-written, whatever stops the process, the machine or the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ['clear_temporaries', 'locked', 'try_folder', 'write_atomically']

_CHUNK = 1 << 24  # bytes appended to find out why a writer failed
_TEMPORARY = re.compile(r'\..*\.([\w-]+)\.(\d+)\.tmp')  # .<stem>.<host>.<process>.tmp<suffix>


def write_atomically(path: str | Path, write: Callable[[Path], Any], keep: str | Path | None = None) -> None:
    """Call `write(temporary)`, then rename: `path` is at any time either the old file or the whole new one.

    The temporary name stands in the same folder (made if need be) and has the same suffix. The content is on the disk
    before the name is: a machine that loses power leaves the old file or the new one.

    Args:
        keep: the name under which the old file stays; None: it is replaced.

    Raises:
        OSError: the file cannot be written: it names file, disk and free space.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.stem}.{_host()}.{os.getpid()}.tmp{path.suffix}')
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask grants; some writers are stricter
            try:
                write(temporary)
            except Exception:
                _append(temporary)  # an error of the disk is raised as one, whatever the writer made of it
                raise
            temporary.chmod(mode)
            _flush(temporary)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _with_disk(error, path) from error


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Within it, no other process on this machine is within it for the same path: one makes `path`, the others wait.

    The claim ends with the process, however it ends. A disk without locks lets all of them in.

    Raises:
        OSError: nothing can be written there: it names folder, disk and free space.
    """
    path = Path(path)
    try_folder(path.parent)
    lock = path.with_name(f'.{path.name}.lock')
    while True:
        with lock.open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                    raise
            # Who had it before may have removed the file between opening and locking.
            if lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def try_folder(folder: str | Path) -> None:
    """Make a folder, and write, flush and remove a file in it.

    Raises:
        OSError: nothing can be written there: it names folder, disk and free space.
    """
    probe = Path(folder) / f'.probe.{_host()}.{os.getpid()}.tmp'  # the name of a temporary file: a kill leaves it
    write_atomically(probe, lambda temporary: temporary.write_bytes(bytes(1 << 16)))
    probe.unlink()


def clear_temporaries(folder: str | Path) -> None:
    """Remove temporary files of `write_atomically` whose process on this machine is no more."""
    for path in Path(folder).glob('.*.tmp*'):
        found = _TEMPORARY.match(path.name)
        if found and found[1] == _host() and not _is_alive(int(found[2])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r'[^\w-]', '-', socket.gethostname())


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _append(path: Path) -> None:
    with path.open('ab') as file:
        file.write(bytes(_CHUNK))
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        if path.is_file():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(number)


def _with_disk(error: OSError, path: Path) -> OSError:
    """The same error, with the file that was to be written, its disk, and what is free there."""
    place = path.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return NotADirectoryError(errno.ENOTDIR, f'cannot be written: {place} is no folder', str(path))
    mount = place.resolve()
    while not mount.is_mount():
        mount = mount.parent
    free = shutil.disk_usage(place).free / 1e9
    text = f'cannot be written: {error.strerror or error} (disk {mount}, {free:.1f} GB free)'
    return type(error)(error.errno, text, str(path)) if error.errno else OSError(f'{path}: {text}')
