"""Singular values and vectors of one matrix, from symmetric eigensolvers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from alds_onnx.errors import AldsError
from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.scaling import scaled

_log = logging.getLogger(__name__)

# Below this size a dense eigensolver is faster than Lanczos iterations.
_DENSE_NORM = 384
# Up to this size all eigenvectors are as cheap as a few.
_SMALL = 96


def spectral_norm(matrix: FloatArray) -> float:
    """||A||_2 of a matrix of shape (f, n), to about seven digits."""
    A, scale = scaled(matrix)
    if not A.any():
        return 0.0
    if A.shape[0] > A.shape[1]:
        A = A.T
    m = A.shape[0]
    if m <= _DENSE_NORM:
        return scale * float(np.sqrt(largest_eigenvalues(A @ A.T)[0]))
    gram = scipy.sparse.linalg.LinearOperator(
        (m, m), matvec=lambda x: A @ (A.T @ x), dtype=np.float64
    )
    # A fixed start makes the result the same in every run; a drawn one, unlike a constant, is never
    # orthogonal to the columns of A (those of a weight may well sum to zero). `tol` is
    # about a vector, whose error is squared in the eigenvalue where others are not very near.
    start = np.random.default_rng(0).standard_normal(m)
    try:
        largest = scipy.sparse.linalg.eigsh(
            gram, k=1, v0=start, tol=1e-6, return_eigenvectors=False
        )
    except scipy.sparse.linalg.ArpackError as e:
        _log.warning("ARPACK failed (%s): computing all singular values instead", e)
        largest = largest_eigenvalues(A @ A.T)
    return scale * float(np.sqrt(largest[0]))


def truncated(part: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """Balanced factors U (f, j) and V (j, n) of the best approximation of a matrix (f, n)."""
    A, scale = scaled(part)
    f, n = part.shape
    if not A.any():
        return np.zeros((f, rank)), np.zeros((rank, n))
    U, V = _projection(A, rank) if f <= n else _transposed(_projection(A.T, rank))
    return (U, V) if scale == 1.0 else (U * np.sqrt(scale), V * np.sqrt(scale))


def _transposed(pair: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    return pair[1].T, pair[0].T


def _projection(A: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """Project A (m, n), m <= n, on its first left singular vectors: (m, j) and (j, n)."""
    U = leading_eigenvectors(A @ A.T, rank)  # (m, j)
    Vh = U.T @ A  # (j, n), rows of length s
    s = np.linalg.norm(Vh, axis=1)
    root = np.sqrt(s)
    return U * root, Vh * inverse_or_zero(root)[:, None]


def inverse_or_zero(values: FloatArray) -> FloatArray:
    """1 / x, and 0 for 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def leading_eigenvectors(gram: FloatArray, rank: int) -> FloatArray:
    """Eigenvectors (m, j) of the largest eigenvalues of a symmetric matrix (m, m), descending."""
    m = gram.shape[0]
    # Small ones: all of them by divide and conquer, whose wrapper is lighter. Both drivers can
    # fail; QR iteration is slower and more robust.
    vectors = with_fallback(
        lambda: (
            np.linalg.eigh(gram)[1][:, m - rank :]
            if m <= _SMALL
            else scipy.linalg.eigh(gram, subset_by_index=(m - rank, m - 1))[1]
        ),
        lambda: scipy.linalg.eigh(gram, driver="ev")[1][:, m - rank :],
    )
    return np.asarray(vectors[:, ::-1])


def largest_eigenvalues(grams: FloatArray) -> FloatArray:
    """Rank by rank the largest eigenvalue (m,) over the slices, descending, none below 0.

    `grams` (..., m, m) are symmetric and positive semidefinite.
    """
    # Divide and conquer can fail to converge; QR iteration is slower and more robust.
    values = with_fallback(
        lambda: np.asarray(np.linalg.eigvalsh(grams), np.float64),  # (..., m), ascending
        lambda: np.stack(
            [
                scipy.linalg.eigh(gram, eigvals_only=True, driver="ev")
                for gram in grams.reshape(-1, *grams.shape[-2:])
            ]
        ),
    )
    largest = values.max(axis=tuple(range(values.ndim - 1)))
    return np.asarray(largest[::-1].clip(min=0.0))


def with_fallback(first: Callable[[], FloatArray], second: Callable[[], FloatArray]) -> FloatArray:
    """Give what `first` returns, or `second` (QR iteration) where LAPACK fails; the log says so.

    AldsError if both fail.
    """
    try:
        return first()
    except np.linalg.LinAlgError as e:
        _log.warning("LAPACK failed (%s): trying QR iteration instead", e)
    try:
        return second()
    except np.linalg.LinAlgError as e:
        raise AldsError(f"LAPACK finds no singular values of a weight: {e}") from e
