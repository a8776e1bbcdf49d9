"""The part of a model downstream of a layer, run repeatedly with other weights of that layer.

Its inputs are the live tensors of a walk, and the weight and the bias are inputs too. So a probe
runs only the part downstream of the layer, and does not build or load a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import FloatArray
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import unused
from alds_onnx.graph.segment import make_value
from alds_onnx.graph.tensors import stored

# Types that onnxruntime accepts as NumPy arrays.
_FED = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_BIAS = 2


def can_be_fed(layers: Sequence[Layer]) -> bool:
    """Whether the weight can be fed: it has a NumPy type, and all layers are in the main graph."""
    return layers[0].source.tensor.data_type in _FED and all(x.site.scope == 0 for x in layers)


class Downstream:
    """The part of a model downstream of a layer, with the layer's weight as an input.

    Parameters
    ----------
    walk
        A walk through the model. It goes to the first of the layers.
    model
        The model.
    layers
        All layers that read the weight; see `can_be_fed`.
    biased
        Whether the bias is an input too.

    Raises
    ------
    RunError
        If onnxruntime cannot run a part of the model.
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

        Returns
        -------
        Outputs in the order of the graph; None for those that do not depend on the layer.

        Raises
        ------
        RunError
            If the run fails.
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
