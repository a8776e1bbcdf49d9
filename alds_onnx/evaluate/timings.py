"""Times of layers that were measured before, kept in a file between runs.

They hold for one machine, number of threads and version of onnxruntime, which are part of every
key. The file is a help and nothing more: one that cannot be read counts as empty, and one that
cannot be written is left.
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

import onnxruntime as ort

from alds_onnx.cuts import Cut
from alds_onnx.evaluate.sessions import Execution
from alds_onnx.evaluate.timing import Timing

_log = logging.getLogger(__name__)

_SCHEMA = 1
# About 4 MB; the oldest go first.
_MOST = 40_000


def default_file() -> Path | None:
    """Where times are kept: the place for caches of this system; None where there is none."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(root).expanduser() / "alds-onnx" / "timings.json"
    except RuntimeError:  # nobody's home
        return None


class Timings:
    """Times by layer and cut; `save` adds the new ones to the file.

    Parameters
    ----------
    execution
        What they were and will be measured with.
    file
        Where they are kept; None: nowhere.
    fresh
        Whether what the file holds is left unread.
    """

    def __init__(self, execution: Execution, file: Path | None, *, fresh: bool = False) -> None:
        self._file = file
        self._place = (
            f"{_machine()}|{ort.__version__}|{execution.provider.value}|{execution.threads}"
        )
        self._known = {} if file is None or fresh else _read(file)
        self._new: dict[str, Timing] = {}

    def get(self, layer: str, cut: Cut) -> Timing | None:
        """What is known of a cut of a layer, by the layer's key."""
        key = self._key(layer, cut)
        return self._new.get(key) or self._known.get(key)

    def add(self, layer: str, cut: Cut, timing: Timing) -> None:
        """Keep what was measured."""
        self._new[self._key(layer, cut)] = timing

    def save(self) -> None:
        """Write what is new, beside what others have written since."""
        if self._file is None or not self._new:
            return
        both = {**_read(self._file), **self._new}
        rows = {key: [t.dense, t.cut] for key, t in list(both.items())[-_MOST:]}
        content = json.dumps({"schema": _SCHEMA, "nanoseconds": rows}).encode()
        try:
            _replace(self._file, content)
        except OSError as e:
            _log.info("times are not kept: %s", e)

    def _key(self, layer: str, cut: Cut) -> str:
        return (
            f"{self._place}|{layer}|{cut.scheme.value}|{cut.num_slices}|{cut.rank}|{cut.rank_out}"
        )


def _machine() -> str:
    """What tells processors apart."""
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
