"""Writing files, models with external data among them, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from alds_onnx.errors import InputError, ModelError, UsageError
from alds_onnx.graph.files.external import (
    external_tensors,
    inline_bytes,
    large_initializers,
    point,
    write_data,
)
from alds_onnx.graph.tensors import every

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A protobuf message ends at 2 GiB; this leaves room for all that is not numbers.
_LARGEST_INLINE = 2**31 - 2**26


def serialize(model: ModelProto) -> bytes:
    """Make the bytes of a model file; the same model gives the same bytes.

    If they would be over 2 GiB, that is a ModelError.
    """
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as e:
        raise ModelError("the model is over 2 GiB: save it with external data") from e


def check_output(output: Path, source: Path | None) -> None:
    """Refuse a path that must not or cannot be written with a UsageError, before any work is done.

    Those are the input, directories, special files, and all in folders that cannot be written.
    """
    try:
        problem = _problem(output, source)
    except OSError as e:  # a name that is too long, a folder that may not be looked into
        problem = f"cannot be written: {e.strerror or e}"
    if problem:
        raise UsageError(f"the output '{output}' {problem}")


def _problem(output: Path, source: Path | None) -> str:
    """Say why a path must not or cannot be written; "" if it can."""
    folder = output.resolve().parent
    if source is not None and output.exists() and source.exists() and output.samefile(source):
        return "is the input: give it another name"
    if output.is_dir():
        return "is a directory: give the name of a file"
    if output.exists() and not output.is_file():
        return "is not a regular file"
    if not folder.is_dir():
        return f"cannot be written: there is no folder '{folder}'"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be written: no permission in '{folder}'"
    return ""


def write_model(
    model: ModelProto,
    output: Path,
    folder: Path,
    source: Path | None = None,
    *,
    external: bool = False,
) -> None:
    """Write a model, whole or not at all; it stays as it is.

    Its external tensors, which lie in `folder`, are copied to one data file beside `output`. If
    `external`, initializers of 1 KiB or more go there too; those of a model that would be over
    2 GiB do so anyway. An old `output` is replaced only once everything has reached the disk. Its
    data file goes then, if that was written here too and `source`, the file that the model was made
    from, does not need it. If the model cannot be written, that is an InputError: nothing is left
    over, and an old `output` stays.
    """
    output = Path(os.path.realpath(output))
    external = external or inline_bytes(model) > _LARGEST_INLINE
    try:
        kept = _data_files(source) if source else set()
        with _alone_in(output.parent), _data_written(model, output, folder, external) as written:
            pointed, data = written
            stale = _own_data_files(output) - kept - {data}
            write_bytes(serialize(pointed), output, stale)
    except OSError as e:
        raise InputError(f"'{output}' cannot be written: {e.strerror or e}") from e


def write_bytes(data: bytes, output: Path, stale: Collection[Path] = ()) -> None:
    """Write a file through a temporary one beside it, whole or not at all; then remove others."""
    with _temporary(output) as draft:
        draft.file.write(data)
        draft.stale = stale


@dataclass(slots=True)
class _Draft:
    """A file that is being written, where it goes, and the files that go when it is there."""

    file: IO[bytes]
    output: Path
    stale: Collection[Path] = ()


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[_Draft]:
    """Open a file beside `output` that takes its place if the block ends well."""
    # The name is chosen before the file is made: no interrupt can come between the making and the
    # `try` that removes it.
    path = output.with_name(f".{output.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        with path.open("xb") as file:
            draft = _Draft(file, output)
            yield draft
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, _mode(draft.output))
        with _uninterrupted():
            os.replace(path, draft.output)
            for other in draft.stale:
                with contextlib.suppress(OSError):
                    other.unlink()
            _sync_folder(output.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM for a moment: they come too late to stop what is done."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in handlers.items():
            if handler is not None:  # None: not set by Python, and cannot be set again
                signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def _mode(output: Path) -> int:
    """Give the permissions of the file that is replaced, or those of a new file."""
    if output.exists():
        return output.stat().st_mode & 0o7777
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
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run writes a model into a folder.

    Of two runs on one output the second must see the data file of the first, to remove it. The
    lock is on the folder itself and leaves no file.
    """
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl and descriptor is not None:
            with contextlib.suppress(OSError):  # a network file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def _data_written(
    model: ModelProto, output: Path, folder: Path, external: bool
) -> Iterator[tuple[ModelProto, Path | None]]:
    """Write external tensors to one new file, which goes again if the block fails.

    Its name is made from its contents, so that the data file of an older `output` is never
    overwritten: until the new model file takes its place, the old pair stays as it was. Yields the
    model with its tensors pointing there, and the file; `model` itself and None without any.
    """
    if not external_tensors(model) and not (external and large_initializers(model)):
        yield model, None
        return
    result = ModelProto()
    result.CopyFrom(model)
    tensors = external_tensors(result) + (large_initializers(result) if external else [])
    data, is_new = output, False
    try:
        with _temporary(output) as draft:
            digest, places = write_data(draft.file, tensors, folder)
            data = output.with_name(f"{output.name}.{digest[:16]}.data")
            is_new = not data.exists()
            draft.output = data
        for tensor, (offset, length) in zip(tensors, places, strict=True):
            point(tensor, data.name, offset, length)
        yield result, data
    except BaseException:
        # The model file may be in its place already, and an interrupt come right after that.
        if is_new and data not in _data_files(output):
            data.unlink(missing_ok=True)
        raise


def _own_data_files(output: Path) -> set[Path]:
    """Find the data files that an earlier run wrote for the model file that is at `output`.

    They lie beside it: what a model of somebody else names elsewhere is never removed.
    """
    pattern = re.compile(re.escape(output.name) + r"\.[0-9a-f]{16}\.data")
    return {
        path
        for path in _data_files(output)
        if path.parent == output.parent and pattern.fullmatch(path.name)
    }


def _data_files(path: Path) -> set[Path]:
    """Find the files that hold a model's external data; none if there is no model."""
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (FileNotFoundError, DecodeError):
        return set()
    entries = (entry for tensor in every(TensorProto, model) for entry in tensor.external_data)
    return {path.resolve().parent / entry.value for entry in entries if entry.key == "location"}
