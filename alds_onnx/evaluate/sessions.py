"""onnxruntime sessions, made and run so that a failure is one sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto

from alds_onnx.errors import UsageError
from alds_onnx.graph.save import serialize

Feeds = Mapping[str, npt.NDArray[Any]]
Outputs = Sequence[Any]

Dim: TypeAlias = "int | str | None"

_FATAL_ONLY = 4


class Provider(str, Enum):
    """Execution providers of onnxruntime that can be asked for."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    DIRECTML = "directml"
    OPENVINO = "openvino"


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
    """Where and how onnxruntime runs a model: threads within an operator, and the provider."""

    threads: int
    provider: Provider = Provider.CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a graph input takes, in the words of onnxruntime.

    Attributes
    ----------
    name, type
        Such as `x` and `tensor(float)`.
    shape
        A symbol or None for a free axis; empty for a scalar, and where the rank is not known.
    """

    name: str
    type: str
    shape: tuple[Dim, ...]


class RunError(Exception):
    """onnxruntime cannot load or run a model; the message is one line."""


def check_provider(provider: Provider) -> None:
    """Refuse a provider that this onnxruntime does not have.

    Raises
    ------
    UsageError
        Names the providers that there are.
    """
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise UsageError(
            f"provider '{provider.value}' is not in this onnxruntime ({ort.__version__}), "
            f"which has {', '.join(available)}: install the build that has it"
        )


class Session:
    """A model loaded by onnxruntime.

    Parameters
    ----------
    model
        May refer to external data.
    folder
        Where that data lies.
    execution
        Where and how to run it.

    Raises
    ------
    RunError
        If onnxruntime does not load the model.
    """

    def __init__(self, model: ModelProto, folder: Path, execution: Execution) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = execution.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.realpath(folder)
        )
        providers = list(dict.fromkeys([_PROVIDERS[execution.provider], _PROVIDERS[Provider.CPU]]))
        try:
            self._session = ort.InferenceSession(serialize(model), options, providers=providers)
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
        """Run once; the outputs in the order of `names` (default: of the model).

        Raises
        ------
        RunError
            If the run fails.
        """
        try:
            return self._session.run(names, dict(feeds), self._quiet)  # type: ignore[no-any-return]
        except Exception as e:
            raise RunError(f"onnxruntime {ort.__version__} cannot run it: {_short(e)}") from e


def flatten(output: Any) -> list[npt.NDArray[Any]]:
    """Give the arrays of an output, which may be a sequence or a map of them."""
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
