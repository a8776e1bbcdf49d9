"""The change of the model's outputs when the weight of one layer changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from alds_onnx.calibrate.downstream import Downstream, can_be_fed
from alds_onnx.calibrate.reference import Reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import FloatArray
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, with_dense_weights

_FEWEST_SAMPLES = 16


def distance_of_weights(
    original: Reference,
    walk: Walk,
    model: ModelProto,
    layers: tuple[Layer, ...],
    *,
    biased: bool,
) -> Callable[[FloatArray, FloatArray | None], float]:
    """Make a function from a weight (f, n) and a bias (f,) to the distance of the model's outputs.

    Parameters
    ----------
    original
        The reference that the outputs are compared with.
    walk
        A walk through the model. It goes to the first of the layers if their weight can be fed.
    model
        The model.
    layers
        The layers that read the weight.
    biased
        Whether the bias may change too.

    Raises
    ------
    RunError
        If onnxruntime cannot run a part of the model.
    """
    if not can_be_fed(layers):

        def rebuilt(matrix: FloatArray, bias: FloatArray | None) -> float:
            dense = Dense(layers=layers, matrix=matrix, bias=bias)
            return original.distance_of(with_dense_weights(model, [dense]))

        return rebuilt
    downstream = Downstream(walk, model, layers, biased=biased)

    def fed(matrix: FloatArray, bias: FloatArray | None) -> float:
        return original.distance(lambda batch: downstream.outputs(batch, matrix, bias))

    return fed


def walk_order(layers: Sequence[Layer]) -> tuple[bool, int]:
    """Sort key for weights: first those that a walk does not pass, then in graph order."""
    return can_be_fed(layers), min(layer.site.node for layer in layers)


def spread_batches(runner: Runner, numbers: int, most: int) -> Runner:
    """Pick evenly spread batches with about `numbers` input numbers and at most `most` samples."""
    first = next(iter(runner.batches[0].values()), np.zeros(1))
    size = max(1, len(first) if first.ndim else 1)
    own = sum(array.size for array in runner.batches[0].values()) / size
    samples = int(np.clip(numbers / max(1, own), _FEWEST_SAMPLES, most))
    count = min(len(runner.batches), max(1, -(-samples // size)))
    chosen = sorted({round(b) for b in np.linspace(0, len(runner.batches) - 1, count)})
    return replace(runner, batches=tuple(runner.batches[b] for b in chosen))
