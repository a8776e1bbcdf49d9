"""The change of the model's outputs when the weight of one layer changes.

Only the part of a model downstream of the layer is run again. Its inputs are the live tensors of a
walk, the weight and the bias, so that a probe does not build or load a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from alds_onnx.calibrate.reference import Reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import FloatArray
from alds_onnx.evaluate.sessions import batch_size
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, with_dense_weights
from alds_onnx.graph.scopes import unused
from alds_onnx.graph.segment import make_value
from alds_onnx.graph.tensors import stored

_FEWEST_SAMPLES = 16
# Types that onnxruntime accepts as NumPy arrays.
_FED = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_BIAS = 2


def can_be_fed(layers: Sequence[Layer]) -> bool:
    """Whether the weight can be fed: it has a NumPy type, and all layers are in the main graph.

    They also have to read it with the same order of axes.
    """
    is_common = len({layer.layout.transposed for layer in layers}) == 1
    is_fed = layers[0].source.tensor.data_type in _FED
    return is_common and is_fed and all(layer.site.scope == 0 for layer in layers)


class Downstream:
    """The part of a model downstream of the layers that read one weight, which is an input there.

    The walk goes to the first of them. The weight must be one that can be fed, see `can_be_fed`.
    """

    def __init__(
        self, walk: Walk, model: ModelProto, layers: Sequence[Layer], *, biased: bool
    ) -> None:
        self._walk, self._layer, self._biased = walk, layers[0], biased
        start = min(layer.site.node for layer in layers)
        walk.go(model, start)
        part = walk.remaining(model)
        self._made = [output.name for output in part.graph.output]
        self._names = [output.name for output in model.graph.output]
        self._weight, self._bias = self._open(part, model, layers)
        self._session = walk.runner.session(part) if self._made else None

    def _open(
        self, part: ModelProto, model: ModelProto, layers: Sequence[Layer]
    ) -> tuple[str, str]:
        """Turn the weight and the bias into inputs, and give their names."""
        taken = {name for node in part.graph.node for name in (*node.input, *node.output)}
        weight, bias = unused("weight", taken), unused("bias", taken)
        kind = self._layer.source.tensor.data_type
        nodes = {tuple(node.output): node for node in part.graph.node}
        for layer in layers:
            node = nodes.get(tuple(model.graph.node[layer.site.node].output), NodeProto())
            for place, name in ((layer.weight_input, weight), (_BIAS, bias)):
                if place < len(node.input) and (name == weight or self._biased):
                    node.input[place] = name
        rank = len(self._layer.source.shape)
        part.graph.input.append(make_value(weight, kind, rank))
        if self._biased:
            part.graph.input.append(make_value(bias, kind, 1))
        return weight, bias

    def outputs(self, batch: int, matrix: FloatArray, bias: FloatArray | None) -> list[Any]:
        """Compute the outputs with another folded weight (f, c·kh·kw) and bias (f,).

        They are in the order of the graph; those that do not depend on the layer are None.
        """
        if self._session is None:
            return [None] * len(self._names)
        kind = self._layer.source.tensor.data_type
        feeds = {self._weight: stored(self._layer.layout.to_weight(matrix), kind)}
        if bias is not None and self._biased:
            feeds[self._bias] = stored(bias, kind)
        given = [value.name for value in self._session.inputs if value.name not in feeds]
        feeds |= {name: np.asarray(self._walk.tensor(batch, name)) for name in given}
        found = dict(zip(self._made, self._session.run(feeds, self._made), strict=True))
        return [found.get(name) for name in self._names]


def distance_of_weights(
    original: Reference,
    walk: Walk,
    model: ModelProto,
    layers: tuple[Layer, ...],
    *,
    biased: bool,
) -> Callable[[FloatArray, FloatArray | None], float]:
    """Make a function from a weight (f, n) and a bias (f,) to the distance of the model's outputs.

    The walk goes to the first of the layers that read the weight, if that can be fed.
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
    size = max(1, batch_size(runner.batches[0]))
    own = sum(array.size for array in runner.batches[0].values()) / size
    samples = int(np.clip(numbers / max(1, own), _FEWEST_SAMPLES, most))
    count = min(len(runner.batches), max(1, -(-samples // size)))
    chosen = sorted({round(b) for b in np.linspace(0, len(runner.batches) - 1, count)})
    return replace(runner, batches=tuple(runner.batches[b] for b in chosen))
