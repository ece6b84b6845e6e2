"""Writing files so that nothing is ever half-written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary)`, then rename: `path` is at any time either the old file or the whole new one.

    The temporary name stands in the same folder (made if need be) and has the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask grants; some writers are stricter
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
