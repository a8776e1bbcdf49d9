"""Reading calibration data from files, folders, iterables and readers, as a sequence of feeds."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from alds_onnx.errors import DataError
from alds_onnx.graph.tensors import type_name

_Array = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, _Array]

# Samples in one run if the model's batch size is free: enough for speed, and few enough to keep the
# activations small.
BATCH = 32
# A member that unpacks to more than this, and to many times the size of the file, is refused.
_LARGEST_MEMBER = 1 << 30
_MOST_INFLATION = 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@runtime_checkable
class DataReader(Protocol):
    """The protocol of onnxruntime.quantization.CalibrationDataReader."""

    def get_next(self) -> Feed | None:
        """Give the next feed, or None after the last."""


#: A file, a folder, an iterable of feeds, or onnxruntime's CalibrationDataReader.
Calibration: TypeAlias = "str | os.PathLike[str] | Iterable[Feed] | DataReader"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """A graph input: its name, NumPy type and declared sizes; None for a free size."""

    name: str
    dtype: np.dtype[Any] | None
    dims: tuple[int | None, ...] | None


def model_inputs(model: ModelProto) -> tuple[ModelInput, ...]:
    """List the inputs that a caller must give: those without an initializer."""
    given = {tensor.name for tensor in model.graph.initializer}
    return tuple(_model_input(v) for v in model.graph.input if v.name not in given)


def _model_input(value: onnx.ValueInfoProto) -> ModelInput:
    if not value.type.HasField("tensor_type"):
        return ModelInput(name=value.name, dtype=None, dims=None)
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as e:
        raise DataError(f"input '{value.name}' has {type_name(tensor.elem_type)}") from e
    dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return ModelInput(name=value.name, dtype=dtype, dims=dims if tensor.HasField("shape") else None)


def read_feeds(data: Calibration, inputs: tuple[ModelInput, ...]) -> Iterator[Feed]:
    """Give the calibration data as feeds that fit the model.

    Parameters
    ----------
    data
        An .npz (arrays named by input, first axis = samples; other arrays are ignored), an .npy for
        a model with one input, a folder of either (one feed or more in each file), an iterable of
        feeds, or a CalibrationDataReader.
    inputs
        The inputs of the model.

    Raises
    ------
    DataError
        If the data cannot be read, an input is missing, or a shape or type does not fit.
    """
    count = 0
    for where, feed in _raw_feeds(data, inputs):
        count += 1
        yield {spec.name: fitted(spec, feed, where) for spec in inputs}
    if not count:
        raise DataError("the calibration data has no samples")


def _raw_feeds(data: Calibration, inputs: tuple[ModelInput, ...]) -> Iterator[tuple[str, Feed]]:
    if isinstance(data, (str, os.PathLike)):
        for path in _files(Path(data)):
            for batch in _batches(_load(path, inputs), inputs, path):
                yield f"'{path}'", batch
        return
    where = "the calibration data"
    for feed in _given(data):
        if not isinstance(feed, Mapping):
            raise DataError(f"{where} must give {{input name: array}}, not {type(feed).__name__}")
        yield where, feed


def _given(data: Iterable[Feed] | DataReader) -> Iterator[Feed]:
    if not isinstance(data, DataReader):
        yield from data
        return
    while (feed := data.get_next()) is not None:
        yield feed


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy"))
        if not files:
            raise DataError(f"the folder '{path}' has no .npz or .npy file")
        return files
    if not path.is_file():
        raise DataError(f"'{path}' does not exist: give an .npz file or a folder of them")
    return [path]


def _load(path: Path, inputs: tuple[ModelInput, ...]) -> dict[str, _Array]:
    """Read the arrays of one file by input name."""
    names = [spec.name for spec in inputs]
    loaded = read_arrays(path, names)
    if isinstance(loaded, dict):
        return loaded
    if len(names) != 1:
        shown = ", ".join(names)
        raise DataError(f"'{path}' is one array, but the model has inputs {shown}: use an .npz")
    return {names[0]: loaded}


def read_arrays(path: Path, names: Sequence[str]) -> _Array | dict[str, _Array]:
    """Read the array of an .npy file, or the named arrays that an .npz file has.

    A file whose reading would run code or exhaust the memory is refused.
    """
    try:
        return _arrays(path, names)
    except Exception as e:  # zipfile, zlib and tokenize raise errors of their own
        raise DataError(f"'{path}' is not an .npz or .npy file of plain arrays: {e}") from e


def _arrays(path: Path, names: Sequence[str]) -> _Array | dict[str, _Array]:
    with path.open("rb") as file:
        _check_sizes(file, names)
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            found = {name: loaded[name] for name in names if name in loaded}
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # bytes: the member is no .npy
            raise ValueError(f"'{name}' is not an array")
    return found


def _check_sizes(file: IO[bytes], names: Sequence[str]) -> None:
    """Refuse headers that declare more than there is, before np.load asks for the memory."""
    size = os.fstat(file.fileno()).st_size
    if not zipfile.is_zipfile(file):
        file.seek(0)
        _check_header(file, size)
    else:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.removesuffix(".npy") not in names:
                    continue
                if info.file_size > max(_LARGEST_MEMBER, _MOST_INFLATION * size):
                    raise ValueError(f"'{info.filename}' unpacks to {info.file_size} bytes")
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        _check_header(member, info.file_size)
    file.seek(0)


def _check_header(file: IO[bytes], size: int) -> None:
    """Compare the size that an .npy header declares with the bytes that follow it."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format is not supported")
    shape, _, dtype = _HEADERS[version](file)
    declared = math.prod(shape) * dtype.itemsize
    if declared > size - file.tell() and not dtype.hasobject:
        raise ValueError(f"its header declares {declared} bytes, {size - file.tell()} follow")


def _batches(
    arrays: dict[str, _Array], inputs: tuple[ModelInput, ...], path: Path
) -> Iterator[dict[str, _Array]]:
    """Cut arrays along their first axis into feeds of the model's batch size."""
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise DataError(f"'{path}' has no array for input '{missing[0]}'")
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the arrays of '{path}' differ in their number of samples: {lengths}")
    # Arrays without bytes may claim any number of samples; they count as none.
    total = min(lengths.values(), default=0) if any(a.nbytes for a in arrays.values()) else 0
    step, fixed = batch_size(inputs)
    last = total - step + 1 if fixed else total
    for start in range(0, last, step or 1):
        yield {name: a[start : start + step] for name, a in arrays.items()}


def batch_size(inputs: Sequence[ModelInput]) -> tuple[int, bool]:
    """Give the number of samples in one run, and whether the model fixes it."""
    fixed = {spec.dims[0] for spec in inputs if spec.dims and spec.dims[0] is not None}
    return (max(fixed), True) if fixed else (BATCH, False)


def fitted(spec: ModelInput, feed: Feed, where: str) -> _Array:
    """Take the array of one input, cast to the input's type if the kind of number is the same."""
    if spec.name not in feed:
        raise DataError(f"{where} has no array for input '{spec.name}'")
    array = np.asarray(feed[spec.name])
    if spec.dims is not None:
        same = len(spec.dims) == array.ndim
        if not same or any(
            d is not None and d != n for d, n in zip(spec.dims, array.shape, strict=True)
        ):
            wanted = ["?" if d is None else d for d in spec.dims]
            raise DataError(
                f"{where}: input '{spec.name}' wants shape {wanted}, not {list(array.shape)}"
            )
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DataError(f"{where}: input '{spec.name}' wants {spec.dtype}, not {array.dtype}")
    return array.astype(spec.dtype)
