"""Running a model, and comparing what two models compute."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]


def outputs(path: Path, feed: Mapping[str, Array]) -> list[Array] | str:
    """All outputs as arrays by onnxruntime, or why it cannot run the model.

    Without optimizations: a fusion that one model has and the other has not would be measured.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        wanted = {entry.name for entry in session.get_inputs()}
        given = {name: array for name, array in feed.items() if name in wanted}
        results = session.run(None, given)
    except Exception as e:  # noqa: BLE001 - onnxruntime has no common base of its errors
        return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    return [array for result in results for array in unpacked(result)]


def reference_outputs(path: Path, feed: Mapping[str, Array]) -> list[Array] | str:
    """The same by onnx's reference implementation, for what onnxruntime refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(onnx.load(path)).run(None, dict(feed))
    except Exception as e:  # noqa: BLE001 - it raises whatever NumPy does
        return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    return [array for result in results for array in unpacked(result)]


def unpacked(value: Any) -> list[Array]:
    """Arrays in a tensor, sequence, map or absent optional."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        keys = list(value)
        return [np.asarray(keys), np.asarray([value[key] for key in keys])]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [array for entry in value for array in unpacked(entry)]
    return [np.asarray(value)]


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays are equal to the last bit (NaN too)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def relative_distance(a: Array, b: Array) -> float:
    """Distance of `b` from `a`: 0 the same, inf not comparable.

    The relative Euclidean norm of floating-point numbers, where what is not finite must agree; the
    fraction of unequal entries of everything else.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if not np.issubdtype(a.dtype, np.floating) and a.dtype.name != "bfloat16":
        return float(np.mean(a != b))
    wide, other = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(other[finite]).all():
        return float("inf")
    scale = float(np.linalg.norm(wide[finite]))
    distance = float(np.linalg.norm(wide[finite] - other[finite]))
    return distance / scale if scale else (0.0 if distance == 0 else float("inf"))


def distances(a: Sequence[Array], b: Sequence[Array]) -> list[float]:
    """Distance of each output; inf where one is missing."""
    if len(a) != len(b):
        return [float("inf")]
    return [relative_distance(x, y) for x, y in zip(a, b, strict=True)]
