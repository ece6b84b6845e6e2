"""Archives of examples: read from front to back, whole or not at all."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

__all__ = ['LARGEST_FILE', 'Slice', 'files', 'link_target', 'link_targets', 'open_tar', 'plain_name', 'slices']

logger = logging.getLogger(__name__)

LARGEST_FILE = 1 << 28  # bytes of an example; a few megabytes of an archive may expand to any number


class Slice(NamedTuple):
    """Where a member of an archive that is not compressed lies: bytes from the beginning, and how many."""

    offset: int
    size: int


_READERS: dict[bytes, Any] = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ\0': lzma.open}


class _Info(tarfile.TarInfo):
    """A header; one that is missing or damaged is an error, where tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f'the archive ends, or is damaged, at byte {tar.offset}: {error}') from error


class _Ending:
    """A stream with an end: tarfile asks on and on for the terabytes that a damaged header claims."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._empty = stream, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._empty += not data
        if self._empty > 2:
            raise EOFError('it ends within a file')
        return data


def _warn_of_rest(path: str | Path, rest: bytes) -> None:
    if rest.strip(b'\0'):
        logger.warning('%s: more follows after the end of the archive, and is not read', path)


@contextmanager
def open_tar(path: str | Path) -> Iterator[tarfile.TarFile]:
    """A tar (.tar, .tar.gz, .tar.bz2, .tar.xz), read in one pass: compressed ones allow nothing else at a fair price.

    Iterating, and leaving, raise tarfile.TarError, EOFError, OSError and what the decoder raises where the archive is
    not whole: leaving reads on to the check sum, which tarfile does not look at.
    """
    with open(path, 'rb') as file:
        magic = file.read(6)
    opened = next((reader for begin, reader in _READERS.items() if magic.startswith(begin)), open)
    with (
        opened(path, 'rb') as stream,
        tarfile.open(fileobj=_Ending(stream), mode='r|', tarinfo=_Info) as archive,  # type: ignore[call-overload]
    ):
        yield archive
        _warn_of_rest(path, archive.fileobj.read(1 << 20))
        while stream.read(1 << 20):
            pass


def plain_name(name: str) -> PurePosixPath | None:
    """A member's path under the root; None where it leads out of it."""
    path = PurePosixPath(posixpath.normpath(name))
    return None if path.is_absolute() or '..' in path.parts else path


def link_target(entry: tarfile.TarInfo) -> PurePosixPath | None:
    """The member that a hard or symbolic link stands for; None where it leads out of the archive."""
    folder = '' if entry.islnk() else posixpath.dirname(entry.name)
    return plain_name(posixpath.join(folder, entry.linkname))


def link_targets(links: Mapping[PurePosixPath, PurePosixPath | None]) -> dict[PurePosixPath, PurePosixPath | None]:
    """What each link stands for after all links on its way; None where they lead out of the archive or in a circle."""
    found: dict[PurePosixPath, PurePosixPath | None] = {}
    for name, target in links.items():
        seen = {name}
        while target is not None and target in links and target not in seen:
            seen.add(target)
            target = links[target]
        found[name] = None if target in seen else target
    return found


def files(archive: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """(path, entry) of the files and links that lie under the root."""
    for entry in archive:
        path = plain_name(entry.name)
        if path is not None and (entry.isfile() or entry.islnk() or entry.issym()):
            yield path, entry


def slices(path: Path) -> dict[PurePosixPath, Slice]:
    """The files of a tar that is not compressed, and of the tars in it (as folders), from their headers alone.

    Raises tarfile.TarError, OSError and what its parsing runs into where the archive is not whole.
    """
    with tarfile.open(path, 'r:', tarinfo=_Info) as archive:
        found = _slices(archive, 0)
        archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
        _warn_of_rest(path, archive.fileobj.read(1 << 20))  # type: ignore[union-attr]
    return found


def _slices(archive: tarfile.TarFile, begin: int) -> dict[PurePosixPath, Slice]:
    found: dict[PurePosixPath, Slice] = {}
    links: dict[PurePosixPath, PurePosixPath | None] = {}
    for name, entry in files(archive):
        archive.members.clear()  # type: ignore[attr-defined]  # none of millions is asked for again
        if not entry.isfile():
            links[name] = link_target(entry)
        elif name.suffix == '.tar':
            with tarfile.open(fileobj=archive.extractfile(entry), mode='r:', tarinfo=_Info) as inner:
                inside = _slices(inner, begin + entry.offset_data)
            found.update((name.with_suffix('') / below, place) for below, place in inside.items())
        else:
            found[name] = Slice(begin + entry.offset_data, entry.size)
    for name, target in link_targets(links).items():
        found[name] = found.get(target or name, Slice(0, 0))  # one that leads nowhere is unreadable, and named then
    return found
