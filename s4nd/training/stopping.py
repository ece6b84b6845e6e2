"""Signals that end a run: it is told once, finishes its update, saves and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ['Interrupted', 'Stop']

# What schedulers and terminals send: a time limit, a warning ahead of it, a lost connection, Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A run that was told to end; the message says what was saved, `code` is the exit code of the process."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Stop:
    """Listens for signals while it is entered (in the main thread; elsewhere it hears none).

    Attributes:
        signal: the first that came; None: none did. A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        again = self.signal is not None and number == signal.SIGINT
        if self.signal is None:
            self.signal = signal.Signals(number)
        if self._at_once or again:
            raise self.interrupted('')

    @contextmanager
    def at_once(self, wanted: bool) -> Iterator[None]:
        """Within it, if `wanted`, a signal raises Interrupted where the program is."""
        self._at_once = wanted
        try:
            yield
        finally:
            self._at_once = False

    def interrupted(self, message: str) -> Interrupted:
        """The exception that ends the run."""
        return Interrupted(message, 128 + (self.signal or signal.SIGTERM))
