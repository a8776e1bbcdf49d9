"""Where a report comes from: what is needed to make it again."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

_PACKAGES = ("alds-onnx", "onnx", "onnxruntime", "numpy", "scipy", "onnx-graphsurgeon")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What ran, with what, where and when.

    Attributes
    ----------
    command
        As for a POSIX shell; "" where there was none.
    versions
        Packages and their versions.
    system, processor
        Of the machine.
    made
        Date and time, UTC.
    """

    command: str
    versions: tuple[tuple[str, str], ...]
    system: str
    processor: str
    made: str


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide what comes out."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def find_origin(argv: Sequence[str] = ()) -> Origin:
    """Look around.

    Parameters
    ----------
    argv
        What the command was given, without its own name; empty where it was called from Python.
    """
    return Origin(
        command=shlex.join(["alds-onnx", *argv]) if argv else "",
        versions=(*versions().items(), ("Python", platform.python_version())),
        system=platform.platform(),
        processor=_processor(),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _processor() -> str:
    """The processor's name; on Linux only a file tells it."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
