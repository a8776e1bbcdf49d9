"""Least squares from second moments: C = E[x xᵀ] (n, n) and B = E[y xᵀ] (f, n).

The mean squared error of any linear map A is  tr E[y yᵀ] - 2 tr(A Bᵀ) + tr(A C Aᵀ):  the moments
say all about it, and the samples are never needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from alds_onnx.linalg.arrays import FloatArray, IntArray
from alds_onnx.linalg.eigen import leading_eigenvectors, truncated
from alds_onnx.linalg.slices import slices

#: Added to a Gram matrix of codes of unit power: they may be linearly dependent.
JITTER = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A regression y ≈ A x, given by moments whose ridge is already part of them.

    Attributes
    ----------
    C, B
        E[x xᵀ], shape (n, n), positive definite; and E[y xᵀ], shape (f, n).
    power
        E[yᵀ y].
    W
        The map (f, n) that iterations start from.
    """

    C: FloatArray
    B: FloatArray
    power: float
    W: FloatArray

    def reordered(self, order: IntArray) -> Problem:
        """Put the inputs in another order: `order` (n,) gives the old place of each."""
        if (order == np.arange(len(order))).all():
            return self
        return Problem(
            C=reordered(self.C, order),
            B=np.take(self.B, order, axis=1),
            power=self.power,
            W=np.take(self.W, order, axis=1),
        )


def reordered(moments: FloatArray, order: IntArray) -> FloatArray:
    """Put the inputs of second moments C (n, n) in another order, as `Problem.reordered`."""
    return np.take(np.take(moments, order, axis=0), order, axis=1)


def reduced_rank(B: FloatArray, C: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """The best map of rank j: D (f, j) and E (j, n) with y ≈ D E x.

    D E is the truncated SVD of B L⁻ᵀ, times L⁻¹, where C = L Lᵀ (reduced-rank regression, Izenman
    1975).
    """
    inverse = _unwhitened(np.eye(len(C)), _root(C))  # L⁻¹
    whitened = B @ inverse.T  # B L⁻ᵀ, (f, n)
    if whitened.shape[0] < whitened.shape[1]:
        U = leading_eigenvectors(whitened @ whitened.T, rank)  # (f, j)
        return U, (U.T @ whitened) @ inverse
    V = leading_eigenvectors(whitened.T @ whitened, rank)  # (n, j)
    return whitened @ V, V.T @ inverse


def components(W: FloatArray, moments: Sequence[FloatArray], rank: int) -> FloatArray:
    """Encoders (k, j, m) of the best approximation W_i x_i ≈ D_i E_i x_i of each slice of W.

    W is (f, k·m); `moments` are E[x_i x_iᵀ] (m, m) of each slice.
    """
    E = np.empty((len(moments), rank, len(moments[0])))
    for i, (W_i, C_i) in enumerate(zip(slices(W, len(moments)), moments, strict=True)):
        L = _root(C_i)
        E[i] = _unwhitened(truncated(np.asarray(W_i @ L), rank)[1], L)
    return E


def solved(gram: FloatArray, right: FloatArray) -> FloatArray:
    """Solve gram X = right. A tiny ridge keeps codes that depend on each other harmless."""
    # LAPACK at once: systems are so small that the checks of `solve` take most of its time.
    _, X, failed = scipy.linalg.lapack.dposv(shrunk(gram, JITTER), right)
    if failed:
        raise np.linalg.LinAlgError("a Gram matrix is not positive definite")
    return np.asarray(X)


def inverse(moments: FloatArray) -> FloatArray:
    """C⁻¹: a ridge keeps it harmless, and a product is faster than triangular solves."""
    return np.asarray(scipy.linalg.cho_solve((_root(moments), True), np.eye(len(moments))))


def shrunk(moments: FloatArray, strength: float) -> FloatArray:
    """Second moments C (n, n) plus `strength` times the mean power of an input on the diagonal."""
    return moments + strength * mean_power(moments) * np.eye(len(moments))


def mean_power(moments: FloatArray) -> float:
    """Mean of the diagonal of C (n, n); 1 for moments of nothing but zeros."""
    return float(np.trace(moments)) / len(moments) or 1.0


def _root(moments: FloatArray) -> FloatArray:
    """Lower triangular L with C = L Lᵀ."""
    return np.asarray(scipy.linalg.cholesky(moments, lower=True), dtype=np.float64)


def _unwhitened(V: FloatArray, L: FloatArray) -> FloatArray:
    """V L⁻¹, shape (j, m): rows that multiply whitened inputs L⁻¹ x, made to multiply x."""
    return np.asarray(
        scipy.linalg.solve_triangular(L, V.T, trans="T", lower=True, check_finite=False).T
    )
