"""Cutting one weight to rank: the factors, their product, and the error that they really have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from alds_onnx.cuts import Cut, CutError, Factors, FloatArray, LayerShape, Spectra
from alds_onnx.linalg.eigen import spectral_norm
from alds_onnx.linalg.scaling import scaled


def factorize(matrix: FloatArray, shape: LayerShape, cut: Cut) -> Factors:
    """Best factors of W (f, c·kh·kw), finite, balanced; see the schemes.

    k divides c, and no rank is above the full one (`Structure.misfit`).
    """
    parts = cut.scheme.structure.factorize(matrix, shape, cut)
    return Factors.of_parts(shape, cut.scheme, parts)


def compose(factors: Factors) -> FloatArray:
    """Multiply the factors back to Ŵ (f, c·kh·kw), in float64."""
    parts = tuple(np.asarray(part, np.float64) for part in factors.parts)
    return factors.scheme.structure.compose(factors.shape, parts)


def cut_error(matrix: FloatArray, factors: Factors, spectra: Spectra) -> CutError:
    """Measure the errors of factors under their three names (ALDS, section 2.3 and Theorem 1).

    `spectra` are the error curves of W (f, c·kh·kw), that of the number of slices among them.
    """
    cut, errors = factors.cut, spectra.errors(factors.cut)
    return CutError(
        relative=max(errors),
        spectral=_residual(matrix, factors) / spectra.norm if spectra.norm else 0.0,
        bound=float(np.sqrt(cut.num_slices)) * math.hypot(*errors),
    )


def _residual(matrix: FloatArray, factors: Factors) -> float:
    """||W - Ŵ||_2 in the fold of the factors; the largest, where the scheme has several.

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
    folds = (fold.apply(residual, factors.shape) for fold in factors.scheme.structure.folds)
    return min(scale * max(map(spectral_norm, folds)), float(np.finfo(np.float64).max))
