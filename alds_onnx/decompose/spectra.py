"""The error curves of one weight, from the singular values of all slices of its folds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alds_onnx.cuts import ErrorCurve, FloatArray, LayerShape, Scheme, Spectra, read_only
from alds_onnx.linalg.scaling import scaled
from alds_onnx.linalg.slices import singular_values

_LARGEST = float(np.finfo(np.float64).max)


def spectra_of_schemes(
    matrix: FloatArray, shape: LayerShape, slice_counts: Mapping[Scheme, tuple[int, ...]]
) -> Spectra:
    """Error curves of W (f, c·kh·kw), finite, relative to ||W||_2 (ALDS, section 2.3).

    `slice_counts` has the k to try for each of the schemes that may be chosen, none for Tucker-2;
    each divides c. The curve for k = 1 of each fold, and of that of `ENCODE`, which gives the norm,
    is always there. All errors of a weight of zeros are zero.
    """
    matrix, scale = scaled(matrix)
    counts = counts_of_folds({Scheme.ENCODE: (), **slice_counts})
    sigma = {
        scheme: singular_values(
            scheme.structure.folds[0].apply(matrix, shape), tuple(sorted({1, *ks}))
        )
        for scheme, ks in counts.items()
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


def counts_of_folds(
    slice_counts: Mapping[Scheme, tuple[int, ...]],
) -> dict[Scheme, tuple[int, ...]]:
    """The k of the curves that say the errors of some schemes, by the scheme of each fold.

    A scheme of several folds needs k = 1 of each.
    """
    counts: dict[Scheme, tuple[int, ...]] = {}
    for scheme in Scheme:
        folds = scheme.structure.folds
        others = [s for s in slice_counts if set(folds) < set(s.structure.folds)]
        if len(folds) == 1 and (scheme in slice_counts or others):
            needed = (1,) if others else ()
            counts[scheme] = tuple(sorted({*slice_counts.get(scheme, ()), *needed}))
    return counts


def _relative_error(sigma: FloatArray, norm: float) -> FloatArray:
    """`relative_error[rank]` from the largest singular values over the slices, descending."""
    error = np.append(sigma, 0.0) / (norm or 1.0)
    return read_only(error)
