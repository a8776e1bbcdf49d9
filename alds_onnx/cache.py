"""Results that take long, kept in a folder under what they depend on.

An entry is an .npz of plain arrays, named by a hash of everything that it was made from: weights,
data, settings, and the versions of the libraries. So nothing in the folder is ever wrong, only
unused; it may be deleted at any time. An entry that cannot be read is made again.
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

# Raised when the same inputs give other results, or entries look otherwise.
_FORMAT = 1
_LIBRARIES = ("alds-onnx", "numpy", "scipy", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A folder of results.

    Attributes
    ----------
    folder
        None: nothing is kept.
    """

    folder: Path | None = None

    def arrays(self, compute: Callable[[], Arrays], kind: str, *parts: object) -> Arrays:
        """Give what `compute` returns, from the folder if it is there.

        Parameters
        ----------
        compute
            Makes the arrays.
        kind, parts
            What they depend on: text, numbers, tuples of them, enum members, arrays, bytes.

        Raises
        ------
        InputError
            If the folder cannot be written.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{kind}-{_key(kind, *parts)}.npz"
        found = _read(path)
        if found is None:
            found = compute()
            write_bytes(_packed(found), path)
        return found

    def prepare(self) -> None:
        """Make the folder.

        Raises
        ------
        UsageError
            If that is not possible.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--cache: cannot make the folder '{self.folder}': {e}") from e


def _key(*parts: object) -> str:
    digest = hashlib.sha256(repr((_FORMAT, _versions())).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype.str} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            digest.update(b"bytes " + hashlib.sha256(part).digest())
        else:
            digest.update(f"value {part!r}\0".encode())
    return digest.hexdigest()


def _versions() -> tuple[str, ...]:
    return tuple(importlib.metadata.version(name) for name in _LIBRARIES)


def _packed(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        _log.warning("the cache entry '%s' cannot be read and is made again: %s", path, e)
        return None
