"""Singular values of all channel slices of one weight, for every number of slices.

The singular values of a slice W_i (f, n/k) are the square roots of the eigenvalues of its smaller
Gram matrix: W_i W_iᵀ (f, f) where slices are wide, W_iᵀ W_i (n/k, n/k) where they are narrow.
Neither kind is formed more often than needed:

    wide    the Gram matrix of a slice is the sum of those of pieces, which end where any slice ends
    narrow  the Gram matrices of finer slices are the diagonal blocks of that of a coarser one; of a
            slice that lies across two coarser ones, only the products of its two parts are new

A symmetric eigensolver in float64 finds small singular values to about 1e-8 of the largest, which
is enough for weights stored in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import scipy.linalg

from alds_onnx.cuts import ErrorCurve, FloatArray, LayerShape, Scheme, Spectra, read_only
from alds_onnx.decompose.folding import refold, slices
from alds_onnx.decompose.scaling import scaled
from alds_onnx.errors import AldsError

_log = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float64).max)
# Numbers of small Gram matrices that are treated at once; larger ones come one by one.
_AT_ONCE = 1 << 16


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
    largest: dict[int, FloatArray] = {}
    for k, grams in _grams(matrix, counts):
        found = largest_eigenvalues(grams)
        largest[k] = np.maximum(largest[k], found) if k in largest else found
    return {k: np.sqrt(found) for k, found in largest.items()}


def _relative_error(sigma: FloatArray, norm: float) -> FloatArray:
    """`relative_error[rank]` from the largest singular values over the slices, descending."""
    error = np.append(sigma, 0.0) / (norm or 1.0)
    return read_only(error)


def largest_eigenvalues(grams: FloatArray) -> FloatArray:
    """Rank by rank the largest eigenvalue over the slices.

    Parameters
    ----------
    grams
        Symmetric and positive semidefinite, shape (..., m, m).

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


def _grams(matrix: FloatArray, counts: tuple[int, ...]) -> Iterator[tuple[int, FloatArray]]:
    """Form the smaller Gram matrices of the slices, for each k in `counts`.

    Yields
    ------
    k and the matrices of some of its slices, shape (..., m, m), which the next step overwrites:
    together they would need several times the memory of the weight.
    """
    f, n = matrix.shape
    wide = [k for k in counts if n // k >= f]
    narrow = [k for k in counts if n // k < f]
    if wide:
        yield from _wide_grams(matrix, wide)
    if narrow:
        yield from _narrow_grams(matrix, narrow)


def _wide_grams(matrix: FloatArray, counts: list[int]) -> Iterator[tuple[int, FloatArray]]:
    """W_i W_iᵀ, (f, f) each: sums over pieces that end where a slice of any k ends."""
    f, n = matrix.shape
    starts = sorted({n // k * i for k in counts for i in range(k)})
    pieces = np.empty((len(starts), f, f))
    for part, gram in zip(np.split(matrix, starts[1:], axis=1), pieces, strict=True):
        np.matmul(part, part.T, out=gram)
    at_once = max(1, _AT_ONCE // max(1, f * f))
    sums = np.empty((at_once, f, f))
    for k in counts:
        bounds = np.searchsorted(starts, n // k * np.arange(k + 1))
        for start in range(0, k, at_once):
            here = bounds[start : start + at_once + 1]
            for (first, last), gram in zip(pairwise(here), sums, strict=False):
                np.sum(pieces[first:last], axis=0, out=gram)
            yield k, sums[: len(here) - 1]


def _narrow_grams(matrix: FloatArray, counts: list[int]) -> Iterator[tuple[int, FloatArray]]:
    """W_iᵀ W_i, (n/k, n/k) each: the diagonal blocks of those of coarser slices."""
    coarsest = counts[0]
    parts = slices(matrix, coarsest)
    grams = np.matmul(parts.transpose(0, 2, 1), parts)
    left = [k for k in counts if k % coarsest]
    yield from _diagonal_blocks(grams, coarsest, [k for k in counts if k not in left])
    while left:
        k = left[0]
        inside = [finer for finer in left if finer % k == 0]
        left = [other for other in left if other % k]
        for gram in _across(matrix, grams, k):
            yield from _diagonal_blocks(gram[None], k, inside)


def _across(matrix: FloatArray, coarse: FloatArray, k: int) -> Iterator[FloatArray]:
    """Gram matrices (n/k, n/k) of slices that may lie across two of those of `coarse`.

    `coarse` (q, n/q, n/q), q < k, has all of them but the products of a slice's two parts.
    """
    width, size = coarse.shape[1], matrix.shape[1] // k
    gram = np.empty((size, size))
    for start in range(0, matrix.shape[1], size):
        index, inside = divmod(start, width)
        cut = min(width - inside, size)
        gram[:cut, :cut] = coarse[index, inside : inside + cut, inside : inside + cut]
        if cut < size:
            gram[cut:, cut:] = coarse[index + 1, : size - cut, : size - cut]
            gram[cut:, :cut] = (
                matrix[:, start + cut : start + size].T @ matrix[:, start : start + cut]
            )
            gram[:cut, cut:] = gram[cut:, :cut].T
        yield gram


def _diagonal_blocks(
    grams: FloatArray, num_slices: int, counts: list[int]
) -> Iterator[tuple[int, FloatArray]]:
    """View the diagonal blocks of Gram matrices (q, m, m) of some of `num_slices` slices.

    Each k of `counts` cuts all of them to k / num_slices blocks.
    """
    q, m, _ = grams.shape
    for k in counts:
        parts = k // num_slices
        blocks = grams.reshape(q, parts, m // parts, parts, m // parts)
        yield k, np.asarray(np.einsum("kiaib->kiab", blocks))
