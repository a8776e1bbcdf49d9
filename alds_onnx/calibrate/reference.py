"""The outputs of the original on the data, and the distance of another model from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.evaluate.sessions import RunError, flatten

_SMALLEST = 1e-12

#: Gives the outputs of a model for the batch of a number; None for an output that is unchanged.
Outputs = Callable[[int], Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Outputs of the original for each batch, in the order of the graph."""

    runner: Runner
    outputs: tuple[Sequence[Any], ...]

    def distance(self, outputs: Outputs) -> float:
        """Compute the squared relative error of the floating-point outputs, averaged over them."""

        def compare(batch: int) -> list[tuple[float, float]]:
            pairs = zip(self.outputs[batch], outputs(batch), strict=True)
            return [
                energies for expected, actual in pairs for energies in _energies(expected, actual)
            ]

        sums = np.sum(list(self.runner.map(compare, range(len(self.outputs)))), axis=0)
        if not np.size(sums):
            return 0.0
        return float(np.mean(sums[:, 1] / np.maximum(sums[:, 0], _SMALLEST)))

    def distance_of(self, model: ModelProto) -> float:
        """Compute the distance of a whole model."""
        session = self.runner.session(model)
        return self.distance(lambda batch: session.run(self.runner.batches[batch]))


def reference(runner: Runner, model: ModelProto) -> Reference:
    """Run the original on all batches."""
    session = runner.session(model)
    batches = range(len(runner.batches))
    return Reference(
        runner=runner,
        outputs=tuple(runner.map(lambda batch: session.run(runner.batches[batch]), batches)),
    )


def _energies(expected: object, actual: object) -> list[tuple[float, float]]:
    """Compute ||y||² and ||y - z||² for each floating-point array of an output."""
    found = expected if actual is None else actual
    pairs = zip(_floating(expected), _floating(found), strict=True)
    return [_energies_of(y, z) for y, z in pairs]


def _floating(output: object) -> list[npt.NDArray[np.floating[Any]]]:
    return [array for array in flatten(output) if np.issubdtype(array.dtype, np.floating)]


def _energies_of(
    expected: npt.NDArray[np.floating[Any]], actual: npt.NDArray[np.floating[Any]]
) -> tuple[float, float]:
    if expected.shape != actual.shape:
        raise RunError("the shapes of its outputs depend on the weights")
    y, z = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(y) & np.isfinite(z)
    y, z = y[finite], z[finite]
    return float(np.vdot(y, y)), float(np.vdot(y - z, y - z))
