"""Folding a weight to a matrix (ALDS, section 2.2), and factors back to that matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import Factors, FloatArray, LayerShape


def fold(weight: npt.ArrayLike, shape: LayerShape) -> FloatArray:
    """Fold a weight to the matrix W of shape (f, c·kh·kw), in float64.

    Parameters
    ----------
    weight
        Shape (f, c, kh, kw), or (f, c) for Gemm and MatMul.
    shape
        The sizes that `weight` has.

    Returns
    -------
    Shape (f, c·kh·kw); the columns of one input channel stand together.
    """
    array = np.asarray(weight, dtype=np.float64)
    return array.reshape(shape.out_features, shape.num_columns)


def compose(factors: Factors) -> FloatArray:
    """Multiply the factors back to Ŵ, in float64.

    Returns
    -------
    Shape (f, c·kh·kw), whatever the scheme.
    """
    parts = tuple(np.asarray(part, np.float64) for part in factors.parts)
    return factors.scheme.structure.compose(factors.shape, parts)
