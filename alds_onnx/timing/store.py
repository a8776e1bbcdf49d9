"""Times of layers that were measured before, kept in a file between runs.

A time holds for one machine and one runtime in one setup, which are part of its key. The file only
saves time: one that cannot be read counts as empty, and one that cannot be written is left alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import sys
import tempfile
from pathlib import Path

from alds_onnx.cuts import Cut
from alds_onnx.timing.timer import Timing

_log = logging.getLogger(__name__)

_SCHEMA = 2
# About 4 MB; the oldest go first.
_MOST = 40_000


def default_file() -> Path | None:
    """Give the file for times in the folder for caches of this system; None if there is none."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(root).expanduser() / "alds-onnx" / "timings.json"
    except RuntimeError:  # there is no home directory
        return None


class TimingStore:
    """Times by the setup of a runtime, layer and cut; `save` adds the new ones to the file.

    Without a file they are kept in memory only. `fresh` ignores the times that the file has.
    """

    def __init__(self, file: Path | None, *, fresh: bool = False) -> None:
        self._file, self._machine = file, _machine()
        self._known = {} if file is None or fresh else _read(file)
        self._new: dict[str, Timing] = {}

    def get(self, setup: str, layer: str, cut: Cut) -> Timing | None:
        """Look up the time of a cut, by the setup of the runtime and the key of the layer."""
        key = self._key(setup, layer, cut)
        return self._new.get(key) or self._known.get(key)

    def add(self, setup: str, layer: str, cut: Cut, timing: Timing) -> None:
        """Add a time that was measured."""
        self._new[self._key(setup, layer, cut)] = timing

    def save(self) -> None:
        """Write the new times to the file, beside those that others have written since."""
        if self._file is None or not self._new:
            return
        both = {**_read(self._file), **self._new}
        rows = {key: [t.dense, t.cut] for key, t in list(both.items())[-_MOST:]}
        content = json.dumps({"schema": _SCHEMA, "nanoseconds": rows}).encode()
        try:
            _replace(self._file, content)
        except OSError as e:
            _log.info("times are not kept: %s", e)

    def _key(self, setup: str, layer: str, cut: Cut) -> str:
        kind = f"{cut.scheme.value}|{cut.num_slices}|{cut.rank}|{cut.rank_out}"
        return f"{self._machine}|{setup}|{layer}|{kind}"


def _machine() -> str:
    """Name the machine by its system and its processor."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = found[0] if found else name
    return f"{platform.system()} {platform.machine()} {name} x{os.cpu_count()}"


def _read(file: Path) -> dict[str, Timing]:
    try:
        data = json.loads(file.read_bytes())
        if data["schema"] != _SCHEMA:
            return {}
        rows = {
            str(key): Timing(dense=float(dense), cut=float(cut))
            for key, (dense, cut) in data["nanoseconds"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return {key: t for key, t in rows.items() if _is_time(t.dense) and _is_time(t.cut)}


def _is_time(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(part).replace(file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
