"""Folding a weight to a matrix and cutting it into channel slices (ALDS, section 2.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alds_onnx.values import Factors, FloatArray, LayerShape


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


def slices(matrix: FloatArray, num_slices: int) -> FloatArray:
    """View W (f, n) as its k slices.

    Returns
    -------
    Shape (k, f, n/k), a view: slice i holds the columns of the i-th group of input channels.
    """
    f, n = matrix.shape
    return matrix.reshape(f, num_slices, n // num_slices).transpose(1, 0, 2)


def compose(factors: Factors) -> FloatArray:
    """Multiply the factors back to Ŵ, in float64.

    Returns
    -------
    Shape (f, c·kh·kw): [U_1 V_1 ... U_k V_k].
    """
    U, V = np.asarray(factors.U, np.float64), np.asarray(factors.V, np.float64)
    product = U @ V  # (k, f, n/k)
    return product.transpose(1, 0, 2).reshape(factors.shape.out_features, factors.shape.num_columns)
