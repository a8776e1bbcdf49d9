"""onnxruntime sessions whose failures are errors with a one-line message."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto

from alds_onnx.errors import UsageError
from alds_onnx.graph.files.external import (
    LARGE_MODEL,
    Spill,
    external_tensors,
    inline_bytes,
    is_large,
    large_initializers,
    point,
)
from alds_onnx.graph.files.save import serialize
from alds_onnx.graph.tensors import external_data
from alds_onnx.runtimes import Provider

Feeds = Mapping[str, npt.NDArray[Any]]
Outputs = Sequence[Any]

Dim: TypeAlias = "int | str | None"

_FATAL_ONLY = 4

_PROVIDERS = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
    Provider.COREML: "CoreMLExecutionProvider",
    Provider.DIRECTML: "DmlExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How onnxruntime runs a model: the threads within an operator, and the provider."""

    threads: int
    provider: Provider = Provider.CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A graph input as onnxruntime describes it; its type is like `tensor(float)`.

    Sizes are a symbol or None for a free axis. There are none for a scalar, and if the rank is not
    known.
    """

    name: str
    type: str
    shape: tuple[Dim, ...]


class RunError(Exception):
    """onnxruntime cannot load or run a model; the message is one line."""


def check_provider(provider: Provider) -> None:
    """Refuse a provider that this build of onnxruntime does not have."""
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise UsageError(
            f"provider '{provider.value}' is not in this onnxruntime ({ort.__version__}), "
            f"which has {', '.join(available)}: install the build that has it"
        )


class Session:
    """A model loaded by onnxruntime, with external data in `folder`; what fails is a RunError."""

    def __init__(self, model: ModelProto, folder: Path, execution: Execution) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = execution.threads
        options.inter_op_num_threads = 1
        # Threads that keep spinning after a run would slow down the session that runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = list(dict.fromkeys([_PROVIDERS[execution.provider], _PROVIDERS[Provider.CPU]]))
        try:
            # The initializers outside of the model must live as long as the session.
            content, self._moved = _prepare(model, folder, options)
            self._session = ort.InferenceSession(content, options, providers=providers)
        except Exception as e:
            raise RunError(f"onnxruntime {ort.__version__} cannot load it: {_short(e)}") from e
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _FATAL_ONLY
        self.inputs = tuple(
            Input(name=value.name, type=value.type, shape=tuple(value.shape or ()))
            for value in self._session.get_inputs()
        )
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> Outputs:
        """Run once, and give the outputs in the order of `names` (default: that of the model)."""
        try:
            return self._session.run(names, dict(feeds), self._quiet)  # type: ignore[no-any-return]
        except Exception as e:
            raise RunError(f"onnxruntime {ort.__version__} cannot run it: {_short(e)}") from e


def _prepare(
    model: ModelProto, folder: Path, options: ort.SessionOptions
) -> tuple[bytes, Spill | None]:
    """Set the options that depend on the model, and give its bytes and its moved initializers."""
    if is_large(model):
        # Prepacking keeps a second copy of the weights in every session.
        options.add_session_config_entry("session.disable_prepacking", "1")
    moved = None
    if inline_bytes(model) > LARGE_MODEL:
        model, moved = _without_large_initializers(model)
    model, folder = _within_one_folder(model, folder)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.path.realpath(folder)
    )
    return serialize(model), moved


def _without_large_initializers(model: ModelProto) -> tuple[ModelProto, Spill]:
    """Move large initializers out of a copy: a protobuf message cannot exceed 2 GiB."""
    skeleton, spill = ModelProto(), Spill()
    skeleton.CopyFrom(model)
    for tensor in large_initializers(skeleton):
        spill.move(tensor)
    return skeleton, spill


def _within_one_folder(model: ModelProto, folder: Path) -> tuple[ModelProto, Path]:
    """Refer to external data by real paths below a common folder.

    onnxruntime refuses data outside the folder of a model that is given as bytes. Files that
    symbolic links point to, and temporary files, may lie outside of it. `load_model` has already
    refused files that must not be read.
    """
    root = os.path.realpath(folder)
    places = [external_data(tensor, folder) for tensor in external_tensors(model)]
    real = [os.path.realpath(place.path) for place in places]
    if all(Path(path).is_relative_to(root) for path in real):
        return model, folder
    common = os.path.commonpath([os.path.dirname(path) for path in real])
    result = ModelProto()
    result.CopyFrom(model)
    for copy, place, path in zip(external_tensors(result), places, real, strict=True):
        point(copy, os.path.relpath(path, common), place.offset, place.length)
    return result, Path(common)


def batch_size(feeds: Feeds) -> int:
    """Count the samples of one run along the first axis."""
    first = next(iter(feeds.values()), None)
    return len(first) if first is not None and first.ndim else 1


def flatten(output: Any) -> list[npt.NDArray[Any]]:
    """List the arrays of an output, which may be a sequence or a map of arrays."""
    if isinstance(output, np.ndarray):
        return [output]
    if isinstance(output, Mapping):
        return [a for key in sorted(output, key=str) for a in flatten(output[key])]
    if isinstance(output, (list, tuple)):
        return [a for entry in output for a in flatten(entry)]
    if hasattr(output, "toarray"):  # sparse
        return [np.asarray(output.toarray())]
    return [np.asarray(output)]


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "..."
