"""Cutting one weight to rank: the factors, and the error that they really have."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from alds_onnx.cuts import (
    Cut,
    CutError,
    Factors,
    FloatArray,
    LayerShape,
    Scheme,
    Spectra,
    read_only,
)
from alds_onnx.decompose.folding import compose, refold, slices
from alds_onnx.decompose.scaling import scaled
from alds_onnx.decompose.spectra import largest_eigenvalues, with_fallback

_log = logging.getLogger(__name__)

# Below this size a dense eigensolver is faster than Lanczos iterations.
_DENSE_NORM = 384
# Up to this size all eigenvectors are as cheap as a few.
_SMALL = 96


def factorize(matrix: FloatArray, shape: LayerShape, cut: Cut) -> Factors:
    """Best factors of rank j for each of the k slices of a fold of W, balanced.

    Parameters
    ----------
    matrix
        W, shape (f, c·kh·kw), finite.
    shape
        Its sizes.
    cut
        k and j; k divides c, j is at most min(f, c/k·kh·kw), f and kernel those of the fold. For
        Tucker-2 see `tucker2`.

    Returns
    -------
    U_i·sqrt(S_i) and sqrt(S_i)·V_iᵀ of each slice's truncated SVD (Eckart-Young): the singular
    values are split evenly, so that no factor leaves the range of half precision where the weight
    was inside it.
    """
    if cut.scheme is Scheme.TUCKER2:
        return tucker2(matrix, shape, cut)
    parts = slices(refold(matrix, shape, cut.scheme), cut.num_slices)
    pairs = [truncated(part, cut.rank) for part in parts]
    return Factors(
        shape=shape,
        U=read_only(np.stack([U for U, _ in pairs])),
        V=read_only(np.stack([V for _, V in pairs])),
        scheme=cut.scheme,
    )


def cut_error(matrix: FloatArray, factors: Factors, spectra: Spectra) -> CutError:
    """Measure the errors of factors under their three names (ALDS, section 2.3 and Theorem 1).

    Parameters
    ----------
    matrix
        W, shape (f, c·kh·kw).
    factors
        What W was cut to.
    spectra
        The error curves of W; must hold the number of slices of `factors`.
    """
    cut, errors = factors.cut, spectra.errors(factors.cut)
    return CutError(
        relative=max(errors),
        spectral=_residual(matrix, factors) / spectra.norm if spectra.norm else 0.0,
        bound=float(np.sqrt(cut.num_slices)) * math.hypot(*errors),
    )


def _residual(matrix: FloatArray, factors: Factors) -> float:
    """||W - Ŵ||_2 in the fold of the factors (Tucker-2: in either, the larger).

    Entries of Ŵ may be out of range where those of W are not.
    """
    matrix, scale = scaled(matrix)
    if scale != 1.0:
        root = np.sqrt(scale)
        U = np.asarray(factors.U, np.float64) / root
        V = np.asarray(factors.V, np.float64) / root
        factors = replace(factors, U=U, V=V)
    residual = compose(factors)
    residual -= matrix
    return min(scale * _norm(residual, factors), float(np.finfo(np.float64).max))


def _norm(matrix: FloatArray, factors: Factors) -> float:
    scheme = factors.scheme
    folds = (Scheme.ENCODE, Scheme.DECODE) if scheme is Scheme.TUCKER2 else (scheme,)
    return max(spectral_norm(refold(matrix, factors.shape, fold)) for fold in folds)


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
    return U * root, Vh * _inverse(root)[:, None]


def tucker2(matrix: FloatArray, shape: LayerShape, cut: Cut) -> Factors:
    """Factors of Tucker-2: W (f, c, kh, kw) projected along f and along c, balanced.

    The bases are those of the truncated higher-order SVD: the first left singular vectors A (f,
    j_out) of the fold of `ENCODE`, and the first right ones B (c, j_in) of that of `DECODE`. The
    core is G = W x_1 Aᵀ x_2 Bᵀ. Its slices along either axis have about the singular values as
    norms; half of each goes to A and to B. (Tucker 1966; De Lathauwer et al. 2000.)

    Parameters
    ----------
    matrix, shape
        W and its sizes.
    cut
        `rank` at most min(c, f·kh·kw), `rank_out` at most min(f, c·kh·kw).
    """
    W, scale = scaled(matrix)
    columns = refold(W, shape, Scheme.DECODE)  # (f·kh·kw, c)
    A = leading_eigenvectors(W @ W.T, cut.rank_out)
    B = leading_eigenvectors(columns.T @ columns, cut.rank)
    # (j_out, c, kh·kw) contracted along c
    core = np.einsum("ock,ci->oik", (A.T @ W).reshape(cut.rank_out, shape.in_channels, -1), B)
    outer = np.sqrt(np.linalg.norm(core, axis=(1, 2)))
    inner = np.sqrt(np.linalg.norm(core, axis=(0, 2)))
    core = core * _inverse(outer)[:, None, None] * _inverse(inner)[:, None]
    return Factors(
        shape=shape,
        U=read_only((A * outer * np.sqrt(scale))[None]),
        V=read_only((B * inner).T[None] * np.sqrt(scale)),
        scheme=Scheme.TUCKER2,
        core=read_only(core.reshape(cut.rank_out, cut.rank, *shape.kernel)),
    )


def _inverse(values: FloatArray) -> FloatArray:
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
