"""Loading a model file with all that can be wrong with it, and writing one whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from alds_onnx.errors import InputError, ModelError, UsageError
from alds_onnx.graph.scopes import ModelIndex, tensors_of
from alds_onnx.graph.tensors import external_data, is_external

# A protobuf message cannot be larger.
_LARGEST_MESSAGE = 2**31 - 1
_CHUNK = 1 << 24

_KNOWN_BEGINNINGS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?): export the model to ONNX first"),
    (b"\x80\x02", "a Python pickle: export the model to ONNX first"),
    (b"\x80\x04", "a Python pickle: export the model to ONNX first"),
    (b"\x89HDF", "an HDF5 file (Keras?): export the model to ONNX first"),
    (b"<", "an HTML or XML page: was the download a login or an error page?"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model that passed the checks.

    Attributes
    ----------
    model
        The model; external data is not read into it.
    folder
        Where its external data lies.
    path
        The file; None for a model given as an object.
    sha256
        Of the file (or of the serialized object).
    """

    model: ModelProto
    folder: Path
    path: Path | None
    sha256: str

    @property
    def name(self) -> str:
        """File name for reports."""
        return self.path.name if self.path else "model"


def load_model(source: str | os.PathLike[str] | ModelProto) -> LoadedModel:
    """Read and check a model.

    Parameters
    ----------
    source
        Path of a file, or a model; the model is not changed.

    Raises
    ------
    ModelError
        If there is no such file, or it is not a valid ONNX model, or its external data is missing,
        truncated or outside its folder.
    """
    if isinstance(source, ModelProto):
        digest = hashlib.sha256(_serialize(source)).hexdigest()
        loaded = LoadedModel(model=source, folder=Path.cwd(), path=None, sha256=digest)
    else:
        path = Path(source)
        data = _read(path)
        digest = hashlib.sha256(data).hexdigest()
        model = _parse(data, path)
        loaded = LoadedModel(model=model, folder=path.parent, path=path, sha256=digest)
    _check(loaded)
    return loaded


def _read(path: Path) -> bytes:
    what = f"'{path}'"
    try:
        if not path.exists():
            raise ModelError(f"{what} does not exist: check the path")
        if path.is_dir():
            raise ModelError(f"{what} is a directory: give the path of an .onnx file")
        if not path.is_file():
            raise ModelError(f"{what} is not a regular file")
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{what} is empty")
        if size > _LARGEST_MESSAGE:
            raise ModelError(f"{what} is over 2 GiB: save it with external data")
        return path.read_bytes()
    except OSError as e:
        raise ModelError(f"{what} cannot be read: {e.strerror or e}") from e


def _parse(data: bytes, path: Path) -> ModelProto:
    what = f"'{path}'"
    for beginning, meaning in _KNOWN_BEGINNINGS:
        if data.startswith(beginning):
            raise ModelError(f"{what} is {meaning}")
    if data[4:8] == b"ORTM":
        raise ModelError(f"{what} is in onnxruntime's own format: give the .onnx file it came from")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise ModelError(f"{what} is not an ONNX model, or a truncated one") from e
    if not model.HasField("graph") and not model.ir_version:
        raise ModelError(f"{what} is not an ONNX model")
    return model


def _check(loaded: LoadedModel) -> None:
    """Everything that must hold before the model is worked on."""
    what = f"'{loaded.path}'" if loaded.path else "the model"
    index = ModelIndex(loaded.model)
    external = [tensor for tensor in tensors_of(index) if is_external(tensor)]
    for tensor in external:
        external_data(tensor, loaded.folder)
    try:
        onnx.checker.check_model(str(loaded.path) if loaded.path and external else loaded.model)
    except onnx.checker.ValidationError as e:
        raise ModelError(f"{what} breaks the rules of ONNX: {_short(e)}") from e
    except (ValueError, RuntimeError, DecodeError, EncodeError, UnicodeError) as e:
        raise ModelError(f"{what} cannot be checked: {_short(e)}") from e


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text.split(" ==> Context:")[0]
    return text if len(text) <= 300 else text[:297] + "..."


def _serialize(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as e:
        raise ModelError("the model is over 2 GiB: save it with external data") from e


def serialize(model: ModelProto) -> bytes:
    """The bytes of a model file; the same model gives the same bytes.

    Raises
    ------
    ModelError
        If they would be over 2 GiB.
    """
    return _serialize(model)


def check_target(target: Path, source: Path | None) -> None:
    """Refuse a path that must not or cannot be written, before any work is done.

    Raises
    ------
    UsageError
        If it is the input, a directory, a special file, or in a folder that cannot be written.
    """
    what = f"the output '{target}'"
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{what} is the input: give it another name")
    if target.is_dir():
        raise UsageError(f"{what} is a directory: give the name of a file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{what} is not a regular file")
    folder = target.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{what} cannot be written: there is no folder '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{what} cannot be written: no permission in '{folder}'")


def write_model(model: ModelProto, target: Path, folder: Path) -> None:
    """Write a model, whole or not at all.

    Parameters
    ----------
    model
        Stays as it is. Its external tensors are copied to one data file beside `target`.
    target
        Replaced only once everything has reached the disk.
    folder
        Where the model's external data lies now; never written to.

    Raises
    ------
    InputError
        If it cannot be written. Nothing is left behind then, and an old `target` stays.
    """
    target = Path(os.path.realpath(target))
    external = any(is_external(tensor) for tensor in tensors_of(ModelIndex(model)))
    old_data = _own_data_files(target)
    try:
        new_data = None
        if external:
            model, new_data = _write_data(model, target, folder)
        write_bytes(serialize(model), target)
    except OSError as e:
        raise InputError(f"'{target}' cannot be written: {e.strerror or e}") from e
    for path in old_data:
        if path != new_data:
            path.unlink(missing_ok=True)


def write_bytes(data: bytes, target: Path) -> None:
    """Write a file through a temporary one beside it: whole or not at all."""
    with _temporary(target) as file:
        file.write(data)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[IO[bytes]]:
    """A file beside `target` that takes its place if the block ends well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _mode(target))
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(target.parent)


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of a new file."""
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


def _write_data(model: ModelProto, target: Path, folder: Path) -> tuple[ModelProto, Path]:
    """Copy all external tensors to one new file; its name is made from its contents.

    So the data file of an older `target` is never overwritten: until the new model file takes its
    place, the old pair stays as it was.
    """
    result = ModelProto()
    result.CopyFrom(model)
    tensors = [tensor for tensor in tensors_of(ModelIndex(result)) if is_external(tensor)]
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in _external_chunks(tensor, folder):
            digest.update(chunk)
    data = target.with_name(f"{target.name}.{digest.hexdigest()[:8]}.data")
    with _temporary(data) as file:
        for tensor in tensors:
            offset = file.tell()
            for chunk in _external_chunks(tensor, folder):
                file.write(chunk)
            _point(tensor, data.name, offset, file.tell() - offset)
    return result, data


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


def _own_data_files(target: Path) -> list[Path]:
    """Data files that an earlier run wrote for the same target."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.data")
    return [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
