"""The origin of a report: the information needed to reproduce it."""

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
    """The command ("" for a call from Python), the versions, the machine, and the time of a run."""

    command: str
    versions: tuple[tuple[str, str], ...]
    system: str
    processor: str
    made: str


def versions() -> dict[str, str]:
    """Give the installed versions of the packages that affect the result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def find_origin(argv: Sequence[str] = ()) -> Origin:
    """Collect the information about this run; `argv` is empty for a call from Python."""
    return Origin(
        command=shlex.join(["alds-onnx", *argv]) if argv else "",
        versions=(*versions().items(), ("Python", platform.python_version())),
        system=platform.platform(),
        processor=_processor(),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _processor() -> str:
    """Find the name of the processor, which on Linux is in a file only."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
