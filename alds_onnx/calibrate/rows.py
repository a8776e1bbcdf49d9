"""From the tensor that a layer reads to the rows x that its folded weight multiplies.

A convolution multiplies patches (im2col), Gemm and MatMul rows or columns: the operator says which.
A few thousand of them, drawn at random, tell the second moments as well as all.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS

Rows = npt.NDArray[np.float32]


def sample_rows(
    layer: Layer,
    node: NodeProto,
    activation: npt.NDArray[Any],
    count: int,
    generator: np.random.Generator,
) -> Rows:
    """Draw rows x of a layer without replacement.

    Parameters
    ----------
    layer, node
        The layer.
    activation
        The tensor that it reads.
    count
        How many rows to draw at most.
    generator
        With the same state it draws the same positions of a tensor of the same shape.

    Returns
    -------
    Shape (rows, c·kh·kw).
    """
    windows = OPERATORS[layer.op].windows(layer, node, activation)
    positions = windows.shape[: windows.ndim - 1 - len(layer.shape.kernel)]
    drawn = _draw(prod(positions), count, generator)
    rows = windows[np.unravel_index(drawn, positions)] if positions else windows[np.newaxis]
    return np.ascontiguousarray(rows, dtype=np.float32).reshape(len(drawn), -1)


def _draw(total: int, count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    if count >= total:
        return np.arange(total)
    return np.sort(generator.choice(total, count, replace=False))
