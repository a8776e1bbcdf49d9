"""Reading the numbers of a TensorProto, inline or external, and making new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from alds_onnx.errors import ModelError

#: Types whose weights can be decomposed.
DECOMPOSABLE = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
)
#: Types that count as floating-point parameters. By name: older versions of onnx have fewer.
FLOATING = tuple(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT"))
)
#: The fields of a TensorProto that hold its numbers inside the model file.
NUMBERS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
# More than any file has, and fewer than int() refuses to read.
_MOST_DIGITS = 20


_Kind = TypeVar("_Kind", bound=Message)


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the bytes of an external tensor lie."""

    path: Path
    offset: int
    length: int


def type_name(element_type: int) -> str:
    """ONNX's name of an element type, such as FLOAT16."""
    try:
        return str(TensorProto.DataType.Name(element_type))
    except ValueError:
        return f"type {element_type}"


def num_elements(tensor: TensorProto) -> int:
    """Product of the dimensions; 1 for a scalar."""
    return prod(tensor.dims)


def is_external(tensor: TensorProto) -> bool:
    """Whether the numbers lie in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def every(kind: type[_Kind], message: Message) -> Iterator[_Kind]:
    """Every message of a kind within another, wherever it is: in training information too."""
    for _, value in message.ListFields():
        entries = (value,) if isinstance(value, Message) else value
        for entry in entries if _holds_messages(entries) else ():
            if isinstance(entry, kind):
                yield entry
            if not isinstance(entry, TensorProto):
                yield from every(kind, entry)


def _holds_messages(entries: object) -> bool:
    """Whether a field holds messages; all entries of a field are of one type."""
    if isinstance(entries, (str, bytes, int, float)):
        return False
    return isinstance(next(iter(entries), None), Message)  # type: ignore[call-overload]


def num_bytes(tensor: TensorProto) -> int:
    """Bytes of the numbers, packed as in raw_data."""
    bits = _bits(tensor.data_type)
    return (num_elements(tensor) * bits + 7) // 8


def _bits(element_type: int) -> int:
    name = type_name(element_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize * 8
    except (KeyError, ValueError) as e:
        raise ModelError(f"unknown tensor element type {element_type}") from e


def external_data(tensor: TensorProto, folder: Path) -> ExternalData:
    """Find the bytes of an external tensor of a model file in `folder`.

    Tensors may share bytes. Absolute locations, those outside the folder, and links are followed:
    `load_model` has refused all that do not belong to the model, and what is made since then lies
    in temporary folders (`alds_onnx.graph.files.external.Spill`).

    https://onnx.ai/onnx/repo-docs/ExternalData.html

    Raises
    ------
    ModelError
        If the file is missing or too short, or if offset or length are not what the tensor's type
        and dimensions need.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    what = f"external data of tensor '{tensor.name}'"
    path = _location(entries.get("location", ""), folder, what)
    offset = _integer(entries.get("offset", "0"), f"offset of the {what}")
    needed = num_bytes(tensor)
    length = _integer(entries["length"], f"length of the {what}") if "length" in entries else needed
    if length != needed:
        raise ModelError(f"the {what} has a length of {length} bytes, its shape needs {needed}")
    size = path.stat().st_size
    if offset + length > size:
        raise ModelError(
            f"the {what} needs bytes {offset} to {offset + length} of '{path.name}', "
            f"which has {size}: is the file truncated?"
        )
    return ExternalData(path, offset, length)


def _location(location: str, folder: Path, what: str) -> Path:
    if not location:
        raise ModelError(f"the {what} has no location")
    path = folder / location
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as e:  # a name that no file system takes
        raise ModelError(f"the {what} has a location that cannot be a file name") from e
    if not is_file:
        raise ModelError(f"the {what} is missing: there is no file '{location}' beside the model")
    return path


def check_location(tensor: TensorProto) -> None:
    """Refuse the location of an external tensor that is absolute or leaves the model's folder.

    The ModelError names the tensor and the location.
    """
    what = f"external data of tensor '{tensor.name}'"
    for key, location in ((entry.key, entry.value) for entry in tensor.external_data):
        if isinstance(key, bytes) or isinstance(location, bytes):  # what is not UTF-8
            part = "a location" if key == "location" else "an entry"
            raise ModelError(f"the {what} has {part} that is not UTF-8")
        if key != "location":
            continue
        if PureWindowsPath(location).anchor:  # of Windows: it knows `C:` and `\\` as well as `/`
            raise ModelError(f"the {what} has an absolute location '{location}': refused")
        depth = 0
        for part in Path(location).parts:
            depth += -1 if part == ".." else 1
            if depth < 0:
                raise ModelError(
                    f"the {what} lies outside the model's folder: '{location}' is refused"
                )


def _integer(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS):
        raise ModelError(f"the {what} is '{text}', not a number of bytes")
    return int(text)


def read_array(tensor: TensorProto, folder: Path) -> npt.NDArray[np.generic]:
    """Read the numbers of a tensor; memory-mapped where they lie in another file.

    If they cannot be read, that is a ModelError.
    """
    if not is_external(tensor):
        try:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError, OverflowError) as e:
            raise ModelError(f"tensor '{tensor.name}' cannot be read: {e}") from e
    found = external_data(tensor, folder)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if not found.length:
        return np.zeros(shape, dtype)
    return np.memmap(found.path, dtype=dtype, mode="r", offset=found.offset, shape=shape)


def make_tensor(name: str, array: npt.NDArray[Any], element_type: int) -> TensorProto:
    """Make a tensor with inline raw data, rounded to an element type."""
    return TensorProto(
        name=name,
        data_type=element_type,
        dims=array.shape,
        raw_data=stored(array, element_type).tobytes(),
    )


def smallest_normal(element_type: int) -> float:
    """The smallest number of a type that still has all its digits."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


def stored(array: npt.NDArray[Any], element_type: int) -> npt.NDArray[Any]:
    """Give the array as it is stored in a tensor: rounded to an element type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    with np.errstate(under="ignore", over="ignore"):
        return np.ascontiguousarray(array, dtype)
