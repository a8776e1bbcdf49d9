"""Folding a weight to a matrix and cutting it into channel slices (ALDS, section 2.2).

The matrix of a scheme has the outputs and the decoder's part of the kernel as its rows, the input
channels and the encoder's part as its columns. It is (f, c·kh·kw), written W, for the paper's
`Scheme.ENCODE`; for the others it has the same entries in another order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import Factors, FloatArray, LayerShape, Scheme


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


def refold(matrix: FloatArray, shape: LayerShape, scheme: Scheme) -> FloatArray:
    """Bring W (f, c·kh·kw) into the fold of a scheme.

    Returns
    -------
    Shape (f·(decoder's kernel), c·(encoder's kernel)); the columns of one input channel stand
    together. W itself, not a copy, for `ENCODE`.
    """
    if scheme is Scheme.ENCODE:
        return matrix
    rows, columns = _axes(shape, scheme)
    tensor = matrix.reshape(shape.out_features, shape.in_channels, *shape.kernel)
    folded = shape.folded(scheme)
    return tensor.transpose(*rows, *columns).reshape(folded.out_features, folded.num_columns)


def unfold(matrix: FloatArray, shape: LayerShape, scheme: Scheme) -> FloatArray:
    """Bring the fold of a scheme back to W (f, c·kh·kw)."""
    if scheme is Scheme.ENCODE:
        return matrix
    rows, columns = _axes(shape, scheme)
    order = [*rows, *columns]
    sizes = (shape.out_features, shape.in_channels, *shape.kernel)
    tensor = matrix.reshape([sizes[axis] for axis in order])
    return tensor.transpose(np.argsort(order)).reshape(shape.out_features, shape.num_columns)


def _axes(shape: LayerShape, scheme: Scheme) -> tuple[list[int], list[int]]:
    """Axes of (f, c, kh, kw) that are the rows and the columns of a fold."""
    rows, columns = [0], [1]
    for axis in range(len(shape.kernel)):
        (columns if shape.stays_with_encoder(scheme, axis) else rows).append(axis + 2)
    return rows, columns


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
    Shape (f, c·kh·kw), whatever the scheme: its fold is [U_1 V_1 ... U_k V_k].
    """
    shape = factors.shape
    U, V = np.asarray(factors.U, np.float64), np.asarray(factors.V, np.float64)
    if factors.core is not None:
        core = np.asarray(factors.core, np.float64).reshape(U.shape[2], V.shape[1], -1)
        inner = np.einsum("oik,ic->ock", core, V[0], optimize=True)  # (j_out, c, kh·kw)
        return np.asarray(U[0] @ inner.reshape(len(inner), shape.num_columns))
    folded = shape.folded(factors.scheme)
    product = U @ V  # (k, f, n/k) of the fold
    matrix = product.transpose(1, 0, 2).reshape(folded.out_features, folded.num_columns)
    return unfold(matrix, shape, factors.scheme)
