"""Cutting one weight to rank: the factors, and the error that they really have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from alds_onnx.cuts import Cut, CutError, Factors, FloatArray, LayerShape, Spectra
from alds_onnx.decompose.folding import compose
from alds_onnx.linalg.eigen import spectral_norm
from alds_onnx.linalg.scaling import scaled


def factorize(matrix: FloatArray, shape: LayerShape, cut: Cut) -> Factors:
    """Best factors of a weight, balanced.

    Parameters
    ----------
    matrix
        W, shape (f, c·kh·kw), finite.
    shape
        Its sizes.
    cut
        What to cut it to; k divides c, and no rank is above the full one (`Structure.misfit`).

    Returns
    -------
    For a fold U_i·sqrt(S_i) and sqrt(S_i)·V_iᵀ of each slice's truncated SVD; see the schemes.
    """
    parts = cut.scheme.structure.factorize(matrix, shape, cut)
    return Factors.of_parts(shape, cut.scheme, parts)


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
