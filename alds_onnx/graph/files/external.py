"""Data files: which tensors go there, and where in it; and a temporary one for new numbers.

https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from onnx import GraphProto, ModelProto, TensorProto

from alds_onnx.errors import InputError, ModelError
from alds_onnx.graph.tensors import (
    NUMBERS,
    ExternalData,
    every,
    external_data,
    is_external,
    num_bytes,
    read_array,
)

#: Bytes of weights from which on memory is saved at the cost of speed.
LARGE_MODEL = 1 << 30
_CHUNK = 1 << 24
# Of a cache line: a runtime that maps the file into memory can use the numbers where they are.
_ALIGNMENT = 64
# Smaller tensors may be shapes and axes, which onnxruntime reads before it opens data files.
_SMALLEST = 1024
_FOUR_BITS_OR_LESS = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
# What the entries of external_data say about the place; others stay.
_PLACE = ("location", "offset", "length", "checksum")


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Every tensor whose numbers lie in another file."""
    return [tensor for tensor in every(TensorProto, model) if is_external(tensor)]


def large_initializers(model: ModelProto) -> list[TensorProto]:
    """Initializers of all graphs whose numbers can be moved out of the model file."""
    return [
        tensor
        for graph in every(GraphProto, model)
        for tensor in graph.initializer
        if _is_movable(tensor)
    ]


def _is_movable(tensor: TensorProto) -> bool:
    if is_external(tensor) or tensor.data_type == TensorProto.STRING:
        return False
    name = TensorProto.DataType.Name(tensor.data_type)
    packed = tensor.HasField("raw_data") or name not in _FOUR_BITS_OR_LESS
    return packed and num_bytes(tensor) >= _SMALLEST


def inline_bytes(model: ModelProto) -> int:
    """Bytes of the numbers inside the model file; protobuf cannot measure one over 2 GiB."""
    inside = (t for t in every(TensorProto, model) if not is_external(t))
    return sum(num_bytes(t) for t in inside if t.data_type != TensorProto.STRING)


def is_large(model: ModelProto) -> bool:
    """Whether memory is to be saved at the cost of speed: by its numbers, wherever they lie."""
    external = sum(num_bytes(tensor) for tensor in external_tensors(model))
    return inline_bytes(model) + external > LARGE_MODEL


def write_data(
    file: IO[bytes], tensors: Sequence[TensorProto], folder: Path
) -> tuple[str, list[tuple[int, int]]]:
    """Write the numbers of tensors, external in `folder` or not, to an empty file.

    Bytes that tensors share are written once: a model of a few bytes may name the same gigabyte a
    thousand times. Returns the SHA-256 of the contents, and the offset and length of each tensor.
    """
    parts = [external_data(t, folder) if is_external(t) else None for t in tensors]
    spans = _spans(part for part in parts if part)
    writer = _Writer(file)
    starts: dict[ExternalData, int] = {}
    places = []
    for tensor, part in zip(tensors, parts, strict=True):
        if part is None:
            places.append((writer.add([packed(tensor)]), num_bytes(tensor)))
            continue
        span = spans[part]
        if span not in starts:
            starts[span] = writer.add(_chunks(span))
        places.append((starts[span] + part.offset - span.offset, part.length))
    return writer.digest.hexdigest(), places


def point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say in a tensor that its numbers lie in a file, and nowhere else."""
    others = [(entry.key, entry.value) for entry in tensor.external_data]
    for name in (*NUMBERS, "external_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    places = (("location", location), ("offset", str(offset)), ("length", str(length)))
    for key, value in (*places, *((k, v) for k, v in others if k not in _PLACE)):
        tensor.external_data.add(key=key, value=value)


class _Writer:
    """Appends to a file, aligned, and keeps the digest of everything."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = 0
        self.digest = hashlib.sha256()

    def add(self, chunks: Iterable[bytes]) -> int:
        """Append; the offset at which it begins."""
        self._write(bytes(-self._end % _ALIGNMENT))
        start = self._end
        for chunk in chunks:
            self._write(chunk)
        return start

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self._end += len(data)


def packed(tensor: TensorProto) -> bytes:
    """Give the numbers of an inline tensor as they lie in a data file."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return read_array(tensor, Path()).tobytes()


def _spans(parts: Iterable[ExternalData]) -> dict[ExternalData, ExternalData]:
    """For each range of bytes, the union of all that overlap it, directly or through others."""
    groups: list[list[ExternalData]] = []
    end = 0
    for part in sorted(set(parts), key=lambda p: (str(p.path), p.offset, p.length)):
        if not groups or part.path != groups[-1][0].path or part.offset >= end:
            groups.append([])
            end = 0
        end = max(end, part.offset + part.length)
        groups[-1].append(part)
    spans: dict[ExternalData, ExternalData] = {}
    for first, *others in groups:
        end = max(part.offset + part.length for part in (first, *others))
        span = ExternalData(first.path, first.offset, end - first.offset)
        spans |= dict.fromkeys((first, *others), span)
    return spans


def _chunks(found: ExternalData) -> Iterator[bytes]:
    with found.path.open("rb") as file:
        file.seek(found.offset)
        left = found.length
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise ModelError(f"'{found.path.name}' became shorter while it was read")
            left -= len(chunk)
            yield chunk


def spill_for(model: ModelProto) -> Spill | None:
    """A file for new weights of a model, if it is large and has data files itself."""
    return Spill() if is_large(model) and external_tensors(model) else None


class Spill:
    """Moves new tensors that memory would not hold to a file, which goes when this object does."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="alds-onnx-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "numbers"

    def move(self, tensor: TensorProto) -> None:
        """Write the numbers of an inline tensor to the file, and say so in the tensor.

        If there is no room for them, that is an InputError.
        """
        numbers = packed(tensor)
        try:
            with self._path.open("ab") as file:
                offset = file.tell()
                file.write(numbers)
        except OSError as e:
            raise InputError(
                f"a large model needs room in the temporary folder '{tempfile.gettempdir()}': "
                f"{e.strerror or e}; set TMPDIR to another one"
            ) from e
        point(tensor, str(self._path), offset, len(numbers))
