"""Alternating least squares over the encoders and decoders of k slices, from moments alone.

With C = E[x xᵀ] (n, n) and B = E[y xᵀ] (f, n), and y ≈ [D_1 E_1 ... D_k E_k] x:

    encoder    with all else fixed and D_iᵀ D_i = I, E_i = D_iᵀ R_i C_ii⁻¹, where R_i (f, m) is the
               cross moment of what the other slices leave over
    decoder    with the encoders fixed, D = (B Eᵀ)(E C Eᵀ)⁻¹, for all slices together

Sweeps go the same way again and again by small steps; each is therefore tried several times as
long, and the length is kept while it lowers the error. Never does a sweep raise it.

A single slice needs no sweeps: D E is the truncated SVD of B L⁻ᵀ, times L⁻¹, where C = L Lᵀ
(reduced-rank regression, Izenman 1975).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from alds_onnx.cuts import FloatArray
from alds_onnx.decompose.factorize import leading_eigenvectors, truncated
from alds_onnx.decompose.folding import slices

#: Added to a Gram matrix of codes of unit power: they may be linearly dependent.
JITTER = 1e-9
# A sweep that lowers the squared error by less than this fraction is the last.
_SLOW = 1e-4
# How much longer the next stride is than one that helped, and the longest.
_GROWTH, _LONGEST = 1.5, 20.0


class Blocks:
    """Alternating least squares over the encoders E_i, one by one, and all decoders together.

    `coded` holds the rows E_i C[i] of all slices: with them, what the others leave over for a slice
    costs a product of k·j columns, not of n. `explained` is by how much the squared error is below
    the power of y after the last solution for the decoders.
    """

    def __init__(self, *, C: FloatArray, B: FloatArray, num_slices: int, rank: int) -> None:
        self.C, self.B = C, B
        f, n = B.shape
        m = n // num_slices
        self.blocks = [slice(i * m, (i + 1) * m) for i in range(num_slices)]
        self.D = np.zeros((num_slices, f, rank))
        self.E = np.zeros((num_slices, rank, m))
        self.coded = np.zeros((num_slices, rank, n))
        self.explained = 0.0

    def solve(self, matrix: FloatArray, sweeps: int, power: float) -> None:
        """Sweep until the squared error, `power` less what is explained, hardly falls.

        A single slice is solved at once. Several begin where the joint curve is: components of each
        slice's own W_i x_i, one decoder. The cross moments of y with a slice would show what it
        shares with the others too, and all slices would begin with the same.
        """
        if len(self.blocks) == 1:
            self.D[0], self.E[0] = _best(self.B, self.C, self.E.shape[1])
            return
        self.E = slice_components(matrix, self.C, len(self.blocks), self.E.shape[1])
        self._decode()
        inverses = [_inverse(self.C[b, b]) for b in self.blocks]
        stride = 0.0
        for _ in range(sweeps):
            before, best = self.explained, (self.D, self.E)
            stride = self._sweep(inverses, stride)
            if self.explained < before:
                self.D, self.E = best
            if self.explained - before <= _SLOW * (power - self.explained):
                break

    def _sweep(self, inverses: Sequence[FloatArray], stride: float) -> float:
        """Improve all encoders, go on by `stride` times what they changed, decode.

        Where that explains less than before, they stay as they were improved. Returns the next
        stride.
        """
        before, old = self.explained, self._orthonormalize()
        new = self._encoded(inverses)
        self.E = new + stride * (new - old)
        self._decode()
        if self.explained >= before:
            return min(max(1.0, _GROWTH * stride), _LONGEST)
        self.E = new
        self._decode()
        return stride / 2

    def _orthonormalize(self) -> FloatArray:
        """Give every decoder orthonormal columns; the products D_i E_i stay. Returns all E_i."""
        self.D, T = np.linalg.qr(self.D)
        self.E, self.coded = T @ self.E, T @ self.coded
        return self.E

    def _encoded(self, inverses: Sequence[FloatArray]) -> FloatArray:
        """The best E_i for the decoder D_i and the other slices, one after the other."""
        E, coded = self.E.copy(), self.coded.copy()
        k, j, _ = E.shape
        decoders = self.D.transpose(1, 0, 2).reshape(-1, k * j)  # (f, k·j)
        for i, block in enumerate(self.blocks):
            seen = coded[:, :, block]  # (k, j, m)
            rest = self.B[:, block] - decoders @ seen.reshape(k * j, -1)  # (f, m)
            E[i] = (self.D[i].T @ rest + seen[i]) @ inverses[i]
            coded[i] = E[i] @ self.C[block]
        return E

    def _decode(self) -> None:
        """The best decoders for the codes of all slices."""
        k, j, m = self.E.shape
        self.coded = self.E @ self.C.reshape(k, m, -1)
        coded = self.coded.reshape(k * j, -1)  # (k·j, n)
        pairs = list(zip(self.blocks, self.E, strict=True))
        gram = np.concatenate([coded[:, b] @ E.T for b, E in pairs], axis=1)  # (k·j, k·j)
        cross = np.concatenate([self.B[:, b] @ E.T for b, E in pairs], axis=1)  # (f, k·j)
        solved = _solved(gram, cross.T).T
        self.explained = float(np.vdot(solved, 2 * cross - solved @ gram))
        self.D = solved.reshape(-1, k, j).transpose(1, 0, 2)


def _best(rest: FloatArray, C: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """Reduced-rank regression: D (f, j) and E (j, m) from cross moments (f, m) and C (m, m)."""
    inverse = _unwhitened(np.eye(len(C)), _root(C))  # L⁻¹
    whitened = rest @ inverse.T  # R L⁻ᵀ, (f, m)
    if whitened.shape[0] < whitened.shape[1]:
        U = leading_eigenvectors(whitened @ whitened.T, rank)  # (f, j)
        return U, (U.T @ whitened) @ inverse
    V = leading_eigenvectors(whitened.T @ whitened, rank)  # (m, j)
    return whitened @ V, V.T @ inverse


def _solved(gram: FloatArray, right: FloatArray) -> FloatArray:
    """Solve gram X = right; what the columns behind a Gram matrix share may not matter."""
    # LAPACK at once: systems are so small that the checks of `solve` take most of its time.
    _, X, failed = scipy.linalg.lapack.dposv(shrunk(gram, JITTER), right)
    if failed:
        raise np.linalg.LinAlgError("a Gram matrix is not positive definite")
    return np.asarray(X)


def _inverse(moments: FloatArray) -> FloatArray:
    """C⁻¹: a ridge keeps it harmless, and a product is faster than triangular solves."""
    return np.asarray(scipy.linalg.cho_solve((_root(moments), True), np.eye(len(moments))))


def slice_components(W: FloatArray, C: FloatArray, num_slices: int, rank: int) -> FloatArray:
    """Encoders of each slice's own best approximation in the metric of the data; (k, j, m)."""
    m = W.shape[1] // num_slices
    V = np.empty((num_slices, rank, m))
    for i, W_i in enumerate(slices(W, num_slices)):
        block = slice(i * m, (i + 1) * m)
        L = _root(C[block, block])
        V[i] = _unwhitened(truncated(np.asarray(W_i @ L), rank)[1], L)
    return V


def _root(moments: FloatArray) -> FloatArray:
    """Lower triangular L with C = L Lᵀ."""
    return np.asarray(scipy.linalg.cholesky(moments, lower=True), dtype=np.float64)


def _unwhitened(V: FloatArray, L: FloatArray) -> FloatArray:
    """V L⁻¹, shape (j, m): rows that multiply whitened inputs L⁻¹ x, made to multiply x."""
    return np.asarray(
        scipy.linalg.solve_triangular(L, V.T, trans="T", lower=True, check_finite=False).T
    )


def shrunk(moments: FloatArray, strength: float) -> FloatArray:
    """Second moments C (n, n) plus `strength` times the mean power of an input on the diagonal."""
    return moments + strength * mean_power(moments) * np.eye(len(moments))


def mean_power(moments: FloatArray) -> float:
    """Mean of the diagonal of C (n, n); 1 for moments of nothing but zeros."""
    return float(np.trace(moments)) / len(moments) or 1.0
