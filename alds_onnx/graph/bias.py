"""Biases that a correction can be folded into."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alds_onnx.cuts import FloatArray
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.tensors import read_array
from alds_onnx.graph.weights import find_source


def constant_bias(index: ModelIndex, layer: Layer, folder: Path) -> FloatArray | None:
    """The bias of a layer, shape (f,), if it is its own and constant; None otherwise.

    A bias that another node reads, that a caller may replace, or that Gemm scales stays as it is:
    then the regression is not centred, and the factors reproduce the means themselves.
    """
    node = index.node(layer.site)
    position = OPERATORS[layer.op].bias_input(node, layer.weight_input)
    if position is None:
        return None
    source = find_source(index, layer.site.scope, node.input[position], folder)
    f = layer.shape.out_features
    if isinstance(source, str) or source.overridable or source.base != source.read:
        return None
    if source.shape not in ((f,), (1, f)) or len(index.uses.get(source.base, ())) != 1:
        return None
    if source.tensor.data_type != layer.source.tensor.data_type:
        return None
    bias = np.asarray(read_array(source.tensor, folder), dtype=np.float64).reshape(f)
    return bias if np.isfinite(bias).all() else None
