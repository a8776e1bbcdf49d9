"""Ctrl-C and SIGTERM while the command loads and works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def _handle(handler: Any) -> list[tuple[signal.Signals, Any]]:
    """Set the handler of both signals and give the earlier ones; only the main thread can do so."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [(n, signal.signal(n, handler)) for n in (signal.SIGINT, signal.SIGTERM)]


@contextmanager
def loading() -> Iterator[None]:
    """End the process at once while modules load.

    Nothing is open yet, and what is loading could catch an exception.
    """
    before = _handle(_stop)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"alds-onnx: error: interrupted; nothing was written\n")
    os._exit(130)


class Interruption:
    """Makes SIGTERM end the work like Ctrl-C, so that temporary files are removed.

    It remembers whether a signal came: libraries may turn a KeyboardInterrupt in one of their
    callbacks into an error of their own.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Interruption:
        self._before = _handle(self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def ignore_interrupts() -> None:
    """Let the rest run to its end, once OUT is in place: exit 130 says that nothing was written."""
    _handle(signal.SIG_IGN)
