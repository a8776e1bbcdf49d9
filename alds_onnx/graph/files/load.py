"""Loading a model file, with all that can be wrong with it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, SparseTensorProto, TensorProto

from alds_onnx.errors import ModelError
from alds_onnx.graph.files.save import serialize
from alds_onnx.graph.files.validity import contradiction
from alds_onnx.graph.tensors import (
    NUMBERS,
    check_location,
    every,
    external_data,
    is_external,
    num_bytes,
    num_elements,
    type_name,
)

# A protobuf message cannot be larger.
_LARGEST_MESSAGE = 2**31 - 1

_PICKLES = range(2, 6)
_KNOWN_BEGINNINGS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?): export the model to ONNX first"),
    *(
        (bytes([0x80, protocol]), "a Python pickle: export it to ONNX first")
        for protocol in _PICKLES
    ),
    (b"\x89HDF", "an HDF5 file (Keras?): export the model to ONNX first"),
    (b"<", "an HTML or XML page: was the download a login or an error page?"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model that passed the checks; external data is not read into it, and lies in `folder`.

    `path` is None for a model given as an object, whose SHA-256 is that of its serialization.
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
    """Read and check the model of a file, or check one that is given and not changed.

    It is a ModelError if there is no such file, or it is not a valid ONNX model, or its external
    data is missing, truncated or outside its folder.
    """
    if isinstance(source, ModelProto):
        digest = hashlib.sha256(serialize(source)).hexdigest()
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
    """Check everything that must hold before the model is worked on."""
    what = f"'{loaded.path}'" if loaded.path else "the model"
    external = False
    for tensor in every(TensorProto, loaded.model):
        if any(size < 0 for size in tensor.dims):  # two of them pass onnx's checker
            sizes = list(tensor.dims)
            raise ModelError(f"{what}: tensor '{tensor.name}' has a negative size in {sizes}")
        if is_external(tensor):
            external = True
            _check_external(tensor, loaded)
        elif _has_surplus(tensor):  # onnx's checker looks for too few numbers only
            sizes = list(tensor.dims)
            raise ModelError(
                f"{what}: tensor '{tensor.name}' has more numbers than its shape {sizes}"
            )
    try:
        onnx.checker.check_model(_with_stand_ins(loaded.model) if external else loaded.model)
        problem = contradiction(loaded.model)
    except onnx.checker.ValidationError as e:
        raise ModelError(f"{what} breaks the rules of ONNX: {_short(e)}") from e
    except (ValueError, RuntimeError, DecodeError, EncodeError, UnicodeError) as e:
        raise ModelError(f"{what} cannot be checked: {_short(e)}") from e
    if problem:
        raise ModelError(f"{what} contradicts itself: {_cut(problem)}: mend it, or export it again")


def _has_surplus(tensor: TensorProto) -> bool:
    """Whether there are more numbers than the dimensions say."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) > num_bytes(tensor)
    most = 2 * num_elements(tensor)  # a complex number is two
    if not type_name(tensor.data_type).startswith("COMPLEX"):
        most = num_elements(tensor)
    return any(len(getattr(tensor, numbers)) > most for numbers in NUMBERS)


def _check_external(tensor: TensorProto, loaded: LoadedModel) -> None:
    """Refuse numbers in two places, and data outside the folders that belong to the model.

    These are the folder that the model's path names, and the one that its file really lies in: in
    the cache of Hugging Face both the model and its data are symbolic links into a third folder.
    A hard link cannot be told from any other file of its folder, and stores that keep one copy of
    equal files make them for honest users: it is read like any file.
    """
    what = f"external data of tensor '{tensor.name}'"
    if any(len(getattr(tensor, numbers)) for numbers in NUMBERS):
        raise ModelError(f"the {what} is in the model file as well: which one holds?")
    check_location(tensor)
    path = external_data(tensor, loaded.folder).path
    real = Path(os.path.realpath(path))
    roots = {Path(os.path.realpath(loaded.folder))}
    if loaded.path:
        roots.add(Path(os.path.realpath(loaded.path)).parent)
    if not any(real.is_relative_to(root) for root in roots):
        raise ModelError(
            f"the {what} is '{path.name}', a symbolic link out of the model's folder to '{real}': "
            "refused; if you trust it, put the file itself beside the model"
        )


def _with_stand_ins(model: ModelProto) -> ModelProto:
    """Make a copy for onnx's checker: empty tensors stand in for external ones.

    Of a path, the checker would refuse all links, and the layouts that are made of them. What it
    checks of external data `external_data` checks better.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for sparse in every(SparseTensorProto, copy):
        if is_external(sparse.values) or is_external(sparse.indices):
            _empty(sparse.values)
            _empty(sparse.indices)
    for tensor in every(TensorProto, copy):
        if is_external(tensor):
            _empty(tensor)
    return copy


def _empty(tensor: TensorProto) -> None:
    for name in (*NUMBERS, "data_location", "external_data"):
        tensor.ClearField(name)
    tensor.dims[:] = [0]


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return _cut(text.split(" ==> Context:")[0])


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
