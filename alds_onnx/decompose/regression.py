"""The local step in the metric of data: encoder and decoder by reduced-rank regression.

A layer computes y = W x. With the second moments of its inputs,

    C = E[x xᵀ] (n, n),    B = E[y xᵀ] (f, n),

the mean squared error of any linear replacement A is  tr E[y yᵀ] - 2 tr(A Bᵀ) + tr(A C Aᵀ):  all
that follows needs the moments only, never the samples. W is cut into k slices of m = n/k columns;
A = [D_1 E_1 ... D_k E_k], and the decoders D_i see the codes of *all* slices together: slices
overlap in what they explain, which the sum of their own errors would ignore. The solver is in
`alternating`.

C of a layer with very many inputs would not fit into memory. For such a *wide* layer the outputs
W x take the place of the inputs, and the identity that of W: M of rank j with y ≈ M (W x) gives the
decoder and, times W, the encoder. With one slice nothing is lost by that (the best A of rank j on
the data is U_j U_jᵀ W, with U_j the leading eigenvectors of the covariance of the outputs); slices
would need the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.linalg

from alds_onnx.cuts import Cut, ErrorCurve, Factors, FloatArray, LayerShape, Spectra, read_only
from alds_onnx.decompose.alternating import JITTER, Blocks, mean_power, shrunk, slice_components
from alds_onnx.decompose.folding import compose

_T = TypeVar("_T")

# Data is often rank-deficient (dead channels, few samples): its moments are shrunk towards those of
# white noise, relative to the mean power of an input. Far above the rounding of float32 sums.
_SHRINKAGE = 1e-4
# From this number of inputs on a layer counts as wide: C takes 300 MB there.
_WIDE = 6144
# How often a ridge may grow tenfold: from the smallest in use to more than the moments themselves.
_MOST_RIDGES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Second moments of a layer's inputs x (n) and wanted outputs y (f), per sample.

    Attributes
    ----------
    inputs
        C, shape (n, n): E[x xᵀ], or the covariance where a bias can take up the means.
    cross
        B, shape (f, n): E[y xᵀ], centred likewise.
    power
        E[yᵀ y], centred likewise.
    input_mean, output_mean
        Shapes (n,), (f,); zero where the moments are not centred.
    uncertainty
        The ridge, relative to the mean power of an input, that makes up for having seen few
        samples; see `uncertainty`.
    """

    inputs: FloatArray
    cross: FloatArray
    power: float
    input_mean: FloatArray
    output_mean: FloatArray
    uncertainty: float = 0.0


def uncertainty(inputs: FloatArray, count: int) -> float:
    """The ridge that brings sample moments nearest to the true ones, relative to their mean.

    Parameters
    ----------
    inputs
        C, shape (n, n), a mean over samples.
    count
        Number of samples.

    Returns
    -------
    ρ / (1 - ρ), where (1 - ρ) C + ρ (tr C / n) I is the oracle approximating shrinkage estimate of
    Chen, Wiesel, Eldar and Hero ("Shrinkage algorithms for MMSE covariance estimation", 2010,
    equation 23): about (1 + p) / count, where p is the number of directions that matter. At most 1.
    """
    n = len(inputs)
    squares, square = float(np.vdot(inputs, inputs)), float(np.trace(inputs)) ** 2
    spread = (count + 1 - 2 / n) * (squares - square / n)
    if spread <= 0.0:
        return 1.0 if square > 0.0 else 0.0
    rho = ((1 - 2 / n) * squares + square) / spread
    return float(np.clip(rho / (1 - rho), 0.0, 1.0)) if rho < 1 else 1.0


def is_wide(shape: LayerShape) -> bool:
    """Whether the outputs of a layer have to stand for its inputs."""
    return shape.num_columns > max(_WIDE, shape.out_features)


def fitted_shape(shape: LayerShape) -> LayerShape:
    """Sizes of what the regression reproduces: the layer, or the identity of a wide one."""
    f = shape.out_features
    return LayerShape(out_features=f, in_channels=f) if is_wide(shape) else shape


def widened(factors: Factors, weight: FloatArray, shape: LayerShape) -> Factors:
    """Factors of M W from those of M (f, f), for a wide weight W (f, n); one slice."""
    return balanced(Factors(shape=shape, U=factors.U, V=(factors.V[0] @ weight)[None]))


def predicted_moments(matrix: FloatArray, inputs: Moments) -> Moments:
    """Moments of inputs as observed and of the outputs y = W x that follow.

    Parameters
    ----------
    matrix
        W, shape (f, n).
    inputs
        Moments whose outputs are not used.
    """
    cross = matrix @ inputs.inputs
    return Moments(
        inputs=inputs.inputs,
        cross=cross,
        power=float(np.vdot(cross, matrix)),
        input_mean=inputs.input_mean,
        output_mean=matrix @ inputs.input_mean,
        uncertainty=inputs.uncertainty,
    )


def white_moments(matrix: FloatArray) -> Moments:
    """Moments of white noise: errors of outputs are then errors of the weight W (f, n)."""
    f, n = matrix.shape
    return Moments(
        inputs=np.eye(n),
        cross=matrix,
        power=float(np.vdot(matrix, matrix)),
        input_mean=np.zeros(n),
        output_mean=np.zeros(f),
    )


def outputs_of_white_noise(matrix: FloatArray) -> Moments:
    """Moments of the outputs of a wide weight W (f, n) for white noise, as for `is_wide`."""
    gram = matrix @ matrix.T
    f = len(gram)
    return Moments(
        inputs=gram,
        cross=gram,
        power=float(np.trace(gram)),
        input_mean=np.zeros(f),
        output_mean=np.zeros(f),
    )


def squared_error(matrix: FloatArray, moments: Moments) -> float:
    """Mean squared error of y ≈ A x, relative to the power of y.

    Parameters
    ----------
    matrix
        A, shape (f, n).
    moments
        Of x and y.
    """
    if moments.power <= 0.0:
        return 0.0
    explained = 2 * np.vdot(matrix, moments.cross) - np.vdot(matrix @ moments.inputs, matrix)
    return max(0.0, 1.0 - float(explained) / moments.power)


def joint_spectra(
    matrix: FloatArray, shape: LayerShape, moments: Moments, slice_counts: tuple[int, ...]
) -> Spectra:
    """Error curves of a layer on data, for each number of slices.

    Parameters
    ----------
    matrix
        W, shape (f, n).
    shape
        Its sizes.
    moments
        Of its inputs.
    slice_counts
        The k to try, ascending.

    Returns
    -------
    `relative_error[rank]` is the relative error (root mean square) of the layer's output, if every
    slice is encoded by its own leading components and one decoder reads all codes. `norm` is the
    root mean square of the output. Curves end at the last rank that saves parameters.
    """

    def solve(shrinkage: float) -> Spectra:
        C = shrunk(moments.inputs, shrinkage)
        power = max(0.0, float(np.vdot(matrix @ C, matrix)))
        curves = tuple(
            ErrorCurve(num_slices=k, relative_error=_joint_curve(matrix, shape, C, k, power))
            for k in slice_counts
        )
        return Spectra(shape=shape, norm=power**0.5, curves=curves)

    return _with_enough_ridge(solve, max(_SHRINKAGE, moments.uncertainty))


def _with_enough_ridge(solve: Callable[[float], _T], ridge: float) -> _T:
    """Solve with a ridge, or with ten times as much until the moments are positive definite.

    They are but for the rounding of sums in float32, which may be more than a small ridge where a
    few inputs are much larger than the others.
    """
    for _ in range(_MOST_RIDGES):
        try:
            return solve(ridge)
        except np.linalg.LinAlgError:
            ridge *= 10
    return solve(ridge)


def _joint_curve(
    W: FloatArray, shape: LayerShape, C: FloatArray, num_slices: int, power: float
) -> FloatArray:
    f, n = W.shape
    rank = min(shape.max_rank(num_slices), f, n // num_slices)
    if power == 0.0:
        return read_only(np.zeros(rank + 1))
    V = slice_components(W, C, num_slices, rank)  # (k, j, m)
    codes = _block_rows(V)  # (j·k, n), by rank first: the codes of every rank are a prefix
    deviation = np.sqrt(np.einsum("in,in->i", codes @ C, codes))
    codes /= np.where(deviation > 0, deviation, 1.0)[:, None]
    gram = codes @ C @ codes.T
    whitened = scipy.linalg.solve_triangular(
        np.linalg.cholesky(shrunk(gram, JITTER)), codes @ (C @ W.T), lower=True
    )  # (j·k, f)
    explained = np.cumsum((whitened**2).sum(axis=1))[num_slices - 1 :: num_slices]
    squared = np.clip(1 - explained / power, 0.0, 1.0)
    # Rounding must not make a curve rise.
    error = np.minimum.accumulate(np.concatenate([[1.0], np.sqrt(squared)]))
    return read_only(error)


def _block_rows(V: FloatArray) -> FloatArray:
    """The block-diagonal encoder (j·k, n) of V (k, j, m), its rows ordered by rank first."""
    k, j, m = V.shape
    rows = np.zeros((j, k, k, m))
    index = np.arange(k)
    rows[:, index, index, :] = V.transpose(1, 0, 2)
    return rows.reshape(j * k, k * m)


def regress(
    matrix: FloatArray, shape: LayerShape, moments: Moments, cut: Cut, *, ridge: float, sweeps: int
) -> Factors:
    """Factors that reproduce y from x as well as rank j in k slices can.

    Parameters
    ----------
    matrix
        W, shape (f, n): what the regression shrinks towards where data says little.
    shape
        Its sizes.
    moments
        Of the inputs that the compressed layer will see, and of the outputs that it should give.
    cut
        k and j.
    ridge
        Weight of ||A - W||_F² against the data, relative to the mean power of an input; > 0.
    sweeps
        How often to go through the blocks (k > 1) at most; less if the error hardly falls.

    Returns
    -------
    U (k, f, j) and V (k, j, n/k), balanced: U and V of a slice have the same norm, rank by rank.
    """
    scale = mean_power(moments.inputs)

    def solve(strength: float) -> Factors:
        problem = Blocks(
            C=shrunk(moments.inputs, strength),
            B=moments.cross + strength * scale * matrix,
            num_slices=cut.num_slices,
            rank=cut.rank,
        )
        power = moments.power + strength * scale * float(np.vdot(matrix, matrix))
        problem.solve(matrix, sweeps, power)
        return balanced(Factors(shape=shape, U=problem.D, V=problem.E))

    return _with_enough_ridge(solve, ridge)


def balanced(factors: Factors) -> Factors:
    """The same product, with columns of U and rows of V of equal norms."""
    left = np.linalg.norm(factors.U, axis=1)  # (k, j)
    right = np.linalg.norm(factors.V, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(right / left)
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    return Factors(
        shape=factors.shape,
        U=read_only(factors.U * scale[:, None, :]),
        V=read_only(factors.V / scale[:, :, None]),
    )


def bias_change(factors: Factors, moments: Moments) -> FloatArray:
    """What to add to the bias so that the mean output is right: E[y] - A E[x], shape (f,)."""
    return moments.output_mean - compose(factors) @ moments.input_mean
