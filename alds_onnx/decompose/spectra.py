"""Singular values of all channel slices of one weight, for every number of slices.

The singular values of a slice W_i (f, n/k) are the square roots of the eigenvalues of its smaller
Gram matrix: W_i W_iᵀ (f, f) where slices are wide, W_iᵀ W_i (n/k, n/k) where they are narrow.
Neither kind is formed more often than needed:

    wide    the Gram matrix of a coarse slice is the sum of those of the finer slices inside it
    narrow  the Gram matrices of finer slices are the diagonal blocks of that of a coarser one

A symmetric eigensolver in float64 finds small singular values to about 1e-8 of the largest, which
is enough for weights stored in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import scipy.linalg

from alds_onnx.cuts import ErrorCurve, FloatArray, LayerShape, Scheme, Spectra, read_only
from alds_onnx.decompose.folding import refold, slices
from alds_onnx.decompose.scaling import scaled
from alds_onnx.errors import AldsError

_log = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float64).max)


def spectra(matrix: FloatArray, shape: LayerShape, slice_counts: tuple[int, ...]) -> Spectra:
    """Error curves of W for each number of slices.

    Parameters
    ----------
    matrix
        W, shape (f, c·kh·kw), finite.
    shape
        Its sizes.
    slice_counts
        The k to try, ascending; each divides c. The curve for k = 1 is always there.

    Returns
    -------
    Errors relative to ||W||_2 (ALDS, section 2.3); all zero for a weight of zeros.
    """
    return spectra_of_schemes(matrix, shape, {Scheme.ENCODE: slice_counts})


def spectra_of_schemes(
    matrix: FloatArray, shape: LayerShape, slice_counts: Mapping[Scheme, tuple[int, ...]]
) -> Spectra:
    """Error curves of W for each scheme and number of slices.

    Parameters
    ----------
    matrix, shape
        As for `spectra`.
    slice_counts
        The k to try for each of the schemes that may be chosen; none for Tucker-2.
    """
    matrix, scale = scaled(matrix)
    folds = {scheme: {1, *slice_counts.get(scheme, ())} for scheme in _folds(slice_counts)}
    sigma = {
        scheme: _singular_values(refold(matrix, shape, scheme), tuple(sorted(counts)))
        for scheme, counts in folds.items()
    }
    first = sigma[Scheme.ENCODE][1]
    norm = float(first[0]) if first.size else 0.0
    curves = tuple(
        ErrorCurve(num_slices=k, relative_error=_relative_error(largest, norm), scheme=scheme)
        for scheme, found in sigma.items()
        for k, largest in sorted(found.items())
    )
    # The norm of a float64 weight may be out of range where its entries are not.
    norm = min(norm * scale, _LARGEST)
    return Spectra(shape=shape, norm=norm, curves=curves, schemes=tuple(slice_counts))


def _folds(schemes: Iterable[Scheme]) -> list[Scheme]:
    """The folds whose singular values say the error of the schemes; `ENCODE` gives the norm."""
    wanted = {Scheme.ENCODE, *schemes}
    if Scheme.TUCKER2 in wanted:
        wanted.add(Scheme.DECODE)
    return [scheme for scheme in Scheme if scheme in wanted and scheme is not Scheme.TUCKER2]


def _singular_values(matrix: FloatArray, counts: tuple[int, ...]) -> dict[int, FloatArray]:
    """For each k the largest singular values over the slices, rank by rank."""
    return {k: np.sqrt(largest_eigenvalues(gram)) for k, gram in _grams(matrix, counts)}


def _relative_error(sigma: FloatArray, norm: float) -> FloatArray:
    """`relative_error[rank]` from the largest singular values over the slices, descending."""
    error = np.append(sigma, 0.0) / (norm or 1.0)
    return read_only(error)


def largest_eigenvalues(grams: FloatArray) -> FloatArray:
    """Rank by rank the largest eigenvalue over the slices.

    Parameters
    ----------
    grams
        Symmetric and positive semidefinite, shape (k, m, m).

    Returns
    -------
    Shape (m,), descending, none below 0.

    Raises
    ------
    AldsError
        If neither of two LAPACK drivers converges.
    """
    # Divide and conquer can fail to converge; QR iteration is slower and more robust.
    values = with_fallback(
        lambda: np.asarray(np.linalg.eigvalsh(grams), np.float64),  # (k, m), ascending
        lambda: np.stack([scipy.linalg.eigh(g, eigvals_only=True, driver="ev") for g in grams]),
    )
    return np.asarray(values[:, ::-1].max(axis=0).clip(min=0.0))


def with_fallback(first: Callable[[], FloatArray], second: Callable[[], FloatArray]) -> FloatArray:
    """Give what `first` returns, or `second` (QR iteration) where LAPACK fails; the log says so.

    Raises
    ------
    AldsError
        If both fail.
    """
    try:
        return first()
    except np.linalg.LinAlgError as e:
        _log.warning("LAPACK failed (%s): trying QR iteration instead", e)
    try:
        return second()
    except np.linalg.LinAlgError as e:
        raise AldsError(f"LAPACK finds no singular values of a weight: {e}") from e


def _grams(matrix: FloatArray, counts: tuple[int, ...]) -> list[tuple[int, FloatArray]]:
    """Form the smaller Gram matrices (k, m, m) of the slices, for each k in `counts`."""
    f, n = matrix.shape
    wide = [k for k in counts if n // k >= f]
    narrow = [k for k in counts if n // k < f]
    return [*_wide_grams(matrix, wide), *_narrow_grams(matrix, narrow)]


def _wide_grams(matrix: FloatArray, counts: list[int]) -> list[tuple[int, FloatArray]]:
    """W_i W_iᵀ, shape (k, f, f), from the finest slicing to the coarsest."""
    found: dict[int, FloatArray] = {}
    f = matrix.shape[0]
    for k in reversed(counts):
        finer = min((done for done in found if done % k == 0), default=None)
        if finer is None:
            parts = slices(matrix, k)
            found[k] = np.stack([part @ part.T for part in parts])
        else:
            found[k] = found[finer].reshape(k, finer // k, f, f).sum(axis=1)
    return list(found.items())


def _narrow_grams(matrix: FloatArray, counts: list[int]) -> list[tuple[int, FloatArray]]:
    """W_iᵀ W_i, shape (k, n/k, n/k), from the coarsest slicing to the finest."""
    found: dict[int, FloatArray] = {}
    for k in counts:
        coarser = max((done for done in found if k % done == 0), default=None)
        if coarser is None:
            parts = slices(matrix, k)
            found[k] = np.stack([part.T @ part for part in parts])
        else:
            found[k] = _diagonal_blocks(found[coarser], k // coarser)
    return list(found.items())


def _diagonal_blocks(grams: FloatArray, parts: int) -> FloatArray:
    """Cut each matrix of (k, m, m) into its diagonal blocks: (k·parts, m/parts, m/parts)."""
    k, m, _ = grams.shape
    blocks = grams.reshape(k, parts, m // parts, parts, m // parts)
    index = np.arange(parts)
    diagonal = blocks[:, index, :, index, :]  # (parts, k, m/parts, m/parts)
    return diagonal.transpose(1, 0, 2, 3).reshape(k * parts, m // parts, m // parts)
