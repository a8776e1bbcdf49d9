"""Ctrl-C and SIGTERM while the command works."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Makes SIGTERM end the work like Ctrl-C, so that temporary files are removed.

    Attributes
    ----------
    came
        Whether one of the two signals came: libraries may turn a KeyboardInterrupt in one of their
        callbacks into an error of their own.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before.append((number, signal.signal(number, self._interrupt)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def ignore_interrupts() -> None:
    """Let the rest run to its end, once OUT is in place: exit 130 says that nothing was written."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
