"""Singular values of all slices of a matrix, for every number of slices.

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

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.eigen import largest_eigenvalues

# Numbers of small Gram matrices that are treated at once; larger ones come one by one.
_AT_ONCE = 1 << 16


def slices(matrix: FloatArray, num_slices: int) -> FloatArray:
    """View W (f, n) as its slices (k, f, n/k), each the columns of a group of input channels."""
    f, n = matrix.shape
    return matrix.reshape(f, num_slices, n // num_slices).transpose(1, 0, 2)


def singular_values(matrix: FloatArray, counts: tuple[int, ...]) -> dict[int, FloatArray]:
    """Rank by rank the largest singular value over the k slices of W (f, n), for each k.

    The k are ascending, and each divides n. Values (min(f, n/k),) are descending.
    """
    largest: dict[int, FloatArray] = {}
    for k, grams in _grams(matrix, counts):
        found = largest_eigenvalues(grams)
        largest[k] = np.maximum(largest[k], found) if k in largest else found
    return {k: np.sqrt(found) for k, found in largest.items()}


def _grams(matrix: FloatArray, counts: tuple[int, ...]) -> Iterator[tuple[int, FloatArray]]:
    """Form the smaller Gram matrices of the slices, for each k in `counts`.

    Yields k and the matrices of some of its slices (..., m, m), which the next step overwrites:
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
