"""Writing files, models with external data among them, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from alds_onnx.errors import InputError, ModelError, UsageError
from alds_onnx.graph.scopes import ModelIndex, tensors_of
from alds_onnx.graph.tensors import external_data, is_external

_CHUNK = 1 << 24


def serialize(model: ModelProto) -> bytes:
    """Make the bytes of a model file; the same model gives the same bytes.

    Raises
    ------
    ModelError
        If they would be over 2 GiB.
    """
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as e:
        raise ModelError("the model is over 2 GiB: save it with external data") from e


def check_target(target: Path, source: Path | None) -> None:
    """Refuse a path that must not or cannot be written, before any work is done.

    Raises
    ------
    UsageError
        If it is the input, a directory, a special file, or in a folder that cannot be written.
    """
    try:
        problem = _problem(target, source)
    except OSError as e:  # a name that is too long, a folder that may not be looked into
        problem = f"cannot be written: {e.strerror or e}"
    if problem:
        raise UsageError(f"the output '{target}' {problem}")


def _problem(target: Path, source: Path | None) -> str:
    """Say why a path must not or cannot be written; "" if it can."""
    folder = target.resolve().parent
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        return "is the input: give it another name"
    if target.is_dir():
        return "is a directory: give the name of a file"
    if target.exists() and not target.is_file():
        return "is not a regular file"
    if not folder.is_dir():
        return f"cannot be written: there is no folder '{folder}'"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be written: no permission in '{folder}'"
    return ""


def write_model(model: ModelProto, target: Path, folder: Path, source: Path | None = None) -> None:
    """Write a model, whole or not at all.

    Parameters
    ----------
    model
        Stays as it is. Its external tensors are copied to one data file beside `target`.
    target
        Replaced only once everything has reached the disk. The data file of a model that it
        replaces goes, if that was written here too.
    folder
        Where the model's external data lies now; never written to.
    source
        The file that the model was made from, if any: its data stays, wherever it lies.

    Raises
    ------
    InputError
        If it cannot be written. Nothing is left behind then, and an old `target` stays.
    """
    target = Path(os.path.realpath(target))
    try:
        old = _own_data_files(target)
        kept = old & _data_files(source) if source else set()
        with _data_copied(model, target, folder) as (pointed, data):
            write_bytes(serialize(pointed), target)
    except OSError as e:
        raise InputError(f"'{target}' cannot be written: {e.strerror or e}") from e
    for path in old - kept - {data}:
        with contextlib.suppress(OSError):
            path.unlink()


def write_bytes(data: bytes, target: Path) -> None:
    """Write a file through a temporary one beside it: whole or not at all."""
    with _temporary(target) as file:
        file.write(data)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `target` that takes its place if the block ends well."""
    prefix = f".{target.name[:40]}."
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(target.parent)


def _mode(target: Path) -> int:
    """Give the permissions of the file that is replaced, or those of a new file."""
    if target.exists():
        return target.stat().st_mode & 0o7777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _data_copied(
    model: ModelProto, target: Path, folder: Path
) -> Iterator[tuple[ModelProto, Path | None]]:
    """Copy all external tensors to one new file, which goes again if the block fails.

    Its name is made from its contents, so that the data file of an older `target` is never
    overwritten: until the new model file takes its place, the old pair stays as it was.

    Yields
    ------
    The model with its tensors pointing there, and the file; `model` itself and None if there are
    no external tensors.
    """
    if not any(is_external(tensor) for tensor in tensors_of(ModelIndex(model))):
        yield model, None
        return
    result = ModelProto()
    result.CopyFrom(model)
    tensors = [tensor for tensor in tensors_of(ModelIndex(result)) if is_external(tensor)]
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in _external_chunks(tensor, folder):
            digest.update(chunk)
    data = target.with_name(f"{target.name}.{digest.hexdigest()[:8]}.data")
    is_new = not data.exists()
    try:
        with _temporary(data) as file:
            for tensor in tensors:
                offset = file.tell()
                for chunk in _external_chunks(tensor, folder):
                    file.write(chunk)
                _point(tensor, data.name, offset, file.tell() - offset)
        yield result, data
    except BaseException:
        if is_new:
            data.unlink(missing_ok=True)
        raise


def _external_chunks(tensor: TensorProto, folder: Path) -> Iterator[bytes]:
    found = external_data(tensor, folder)
    with found.path.open("rb") as file:
        file.seek(found.offset)
        left = found.length
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise ModelError(f"'{found.path.name}' became shorter while it was read")
            left -= len(chunk)
            yield chunk


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _own_data_files(target: Path) -> set[Path]:
    """Find the data files that an earlier run wrote for the model file that is at `target`."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.data")
    return {path for path in _data_files(target) if pattern.fullmatch(path.name)}


def _data_files(path: Path) -> set[Path]:
    """Find the files that hold a model's external data; none if there is no model."""
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (FileNotFoundError, DecodeError):
        return set()
    entries = (entry for tensor in tensors_of(ModelIndex(model)) for entry in tensor.external_data)
    return {path.resolve().parent / entry.value for entry in entries if entry.key == "location"}
