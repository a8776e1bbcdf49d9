"""A folder that keeps results which take long to compute.

An entry is an .npz file of plain arrays. Its name is a hash of everything that the entry depends
on: weights, data, settings, and the versions of the libraries. An entry therefore never becomes
wrong, only unused, and may be deleted at any time. An entry that cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alds_onnx.errors import UsageError
from alds_onnx.graph.files.save import write_bytes

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_log = logging.getLogger(__name__)

# Increase this number when results, or the layout of the entries, change.
_FORMAT = 4
_LIBRARIES = ("alds-onnx", "numpy", "scipy", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A folder of results; None keeps nothing."""

    folder: Path | None = None

    def arrays(self, compute: Callable[[], Arrays], kind: str, *parts: object) -> Arrays:
        """Give the arrays that `compute` returns, from the folder if they are there.

        `kind` and `parts` are everything that the arrays depend on: text, numbers, tuples of them,
        enum members, arrays, bytes.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{kind}-{_key(kind, *parts)}.npz"
        found = _read(path)
        if found is None:
            found = compute()
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **dict(found))
            write_bytes(buffer.getvalue(), path)
        return found

    def prepare(self) -> None:
        """Create the folder."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--cache: cannot make the folder '{self.folder}': {e}") from e


def _key(*parts: object) -> str:
    versions = tuple(importlib.metadata.version(name) for name in _LIBRARIES)
    digest = hashlib.sha256(repr((_FORMAT, versions)).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            digest.update(b"bytes " + hashlib.sha256(part).digest())
        else:
            digest.update(f"value {part!r}\0".encode())
    return digest.hexdigest()


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        _log.warning("the cache entry '%s' cannot be read and is made again: %s", path, e)
        return None
