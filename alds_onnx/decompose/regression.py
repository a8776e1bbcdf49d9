"""The local step in the metric of data: encoder and decoder by reduced-rank regression.

A layer computes y = W x. With the second moments of its inputs,

    C = E[x xᵀ] (n, n),    B = E[y xᵀ] (f, n),

the mean squared error of any linear replacement A is  tr E[y yᵀ] - 2 tr(A Bᵀ) + tr(A C Aᵀ):  all
that follows needs the moments only, never the samples. Decoders see the codes of *all* slices and
taps together: these overlap in what they explain, which the sum of their own errors would ignore.
The solver is `linalg.alternating`; what a scheme makes of it is in `schemes`.

C of a layer with very many inputs would not fit into memory, and one-hot inputs, of which each
looks up a row of a table, are as many as the table has rows. For such a *wide* layer the outputs
W x take the place of the inputs, and the identity that of W: M of rank j with y ≈ M (W x) gives the
decoder and, times W, the encoder. With one slice of `ENCODE` nothing is lost by that (the best A of
rank j on the data is U_j U_jᵀ W, with U_j the leading eigenvectors of the covariance of the
outputs); slices and other schemes would need the inputs, and wide layers do not have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from alds_onnx.cuts import (
    Cut,
    ErrorCurve,
    ErrorNorm,
    Factors,
    FloatArray,
    LayerShape,
    Scheme,
    Spectra,
    read_only,
)
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.spectra import counts_of_folds
from alds_onnx.linalg.alternating import joint_errors
from alds_onnx.linalg.least_squares import Problem, mean_power, reordered, shrunk
from alds_onnx.schemes.folded import balanced

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
    count
        Number of inputs; 0 if the moments are not of samples.
    """

    inputs: FloatArray
    cross: FloatArray
    power: float
    input_mean: FloatArray
    output_mean: FloatArray
    uncertainty: float = 0.0
    count: int = 0

    def __add__(self, other: Moments) -> Moments:
        """Combine the moments of two sets of samples, both centred or neither."""
        count = self.count + other.count
        part = other.count / max(1, count)
        x = other.input_mean - self.input_mean
        y = other.output_mean - self.output_mean
        spread = part * (1 - part)
        inputs = (1 - part) * self.inputs + part * other.inputs + spread * np.outer(x, x)
        return Moments(
            inputs=inputs,
            cross=(1 - part) * self.cross + part * other.cross + spread * np.outer(y, x),
            power=(1 - part) * self.power + part * other.power + spread * float(y @ y),
            input_mean=self.input_mean + part * x,
            output_mean=self.output_mean + part * y,
            uncertainty=uncertainty(inputs, count),
            count=count,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Halves:
    """The moments of two halves of the samples: what is fitted to one is judged on the other.

    Where there is one half only, or none is observed, the two are the same object.
    """

    first: Moments
    second: Moments

    @property
    def both(self) -> Moments:
        """The moments of all samples."""
        return self.first if self.first is self.second else self.first + self.second


def uncertainty(inputs: FloatArray, count: int) -> float:
    """The ridge that brings sample moments C (n, n) nearest to the true ones.

    Relative to their mean it is ρ / (1 - ρ), where (1 - ρ) C + ρ (tr C / n) I is the oracle
    approximating shrinkage estimate of Chen, Wiesel, Eldar and Hero ("Shrinkage algorithms for MMSE
    covariance estimation", 2010, equation 23) from `count` samples: about (1 + p) / count, where p
    is the number of directions that matter. At most 1.
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
    return shape.one_hot or shape.num_columns > max(_WIDE, shape.out_features)


def fitted_shape(shape: LayerShape) -> LayerShape:
    """Sizes of what the regression reproduces: the layer, or the identity of a wide one."""
    f = shape.out_features
    return LayerShape(out_features=f, in_channels=f) if is_wide(shape) else shape


def widened(factors: Factors, weight: FloatArray, shape: LayerShape) -> Factors:
    """Factors of M W from those of M (f, f), for a wide weight W (f, n); one slice."""
    return Factors.of_parts(shape, factors.scheme, balanced(factors.V @ weight, factors.U))


def predicted_moments(matrix: FloatArray, inputs: Moments) -> Moments:
    """Moments of inputs as observed, and of the outputs y = W x that follow from W (f, n)."""
    cross = matrix @ inputs.inputs
    return Moments(
        inputs=inputs.inputs,
        cross=cross,
        power=float(np.vdot(cross, matrix)),
        input_mean=inputs.input_mean,
        output_mean=matrix @ inputs.input_mean,
        uncertainty=inputs.uncertainty,
        count=inputs.count,
    )


def white_moments(matrix: FloatArray) -> Moments:
    """Moments of white noise: errors of outputs are then errors of the weight W (f, n)."""
    return _centred(np.eye(matrix.shape[1]), matrix, float(np.vdot(matrix, matrix)))


def outputs_of_white_noise(matrix: FloatArray) -> Moments:
    """Moments of the outputs of a wide weight W (f, n) for white noise, as for `is_wide`."""
    gram = matrix @ matrix.T
    return _centred(gram, gram, float(np.trace(gram)))


def _centred(inputs: FloatArray, cross: FloatArray, power: float) -> Moments:
    f, n = cross.shape
    means = np.zeros(n), np.zeros(f)
    return Moments(
        inputs=inputs, cross=cross, power=power, input_mean=means[0], output_mean=means[1]
    )


def squared_error(matrix: FloatArray, moments: Moments) -> float:
    """Mean squared error of y ≈ A x, relative to the power of y, for a map A (f, n)."""
    if moments.power <= 0.0:
        return 0.0
    explained = 2 * np.vdot(matrix, moments.cross) - np.vdot(matrix @ moments.inputs, matrix)
    return max(0.0, 1.0 - float(explained) / moments.power)


def joint_spectra(
    matrix: FloatArray,
    shape: LayerShape,
    moments: Moments,
    slice_counts: Mapping[Scheme, tuple[int, ...]],
    judge: Moments | None = None,
) -> Spectra:
    """Error curves of a layer on data, for each scheme and number of slices.

    `matrix` is W (f, n), or the identity of a wide layer, which has curves of one slice of `ENCODE`
    only. `slice_counts` has the k to try, ascending, for each of the schemes that may be chosen;
    none for Tucker-2.

    In the result `relative_error[rank]` is the relative error (root mean square) of the layer's
    output, if every slice is encoded by its own leading components and one decoder reads all codes;
    `regress` with the same ridge does no worse. `norm` is the root mean square of the output.
    Curves end at the last rank that saves parameters.

    The curves are fitted to `moments`. Their errors are those on the samples of `judge`: so many
    directions as there are samples explain these perfectly, and others badly. Without `judge` they
    are those on the same samples.

    Raises
    ------
    ValueError
        If other curves of a wide layer are wanted.
    """
    if is_wide(shape) and dict(slice_counts) != {Scheme.ENCODE: (1,)}:
        raise ValueError("a wide layer has one slice of 'encode' on data, nothing else")

    def solve(shrinkage: float) -> Spectra:
        C = shrunk(moments.inputs, shrinkage)
        cross = matrix @ C
        power = max(0.0, float(np.vdot(cross, matrix)))
        problem = Problem(C=C, B=cross, power=power, W=matrix)
        other = C if judge is None else shrunk(judge.inputs, _SHRINKAGE)
        curves = tuple(
            curve
            for scheme, counts in counts_of_folds(slice_counts).items()
            for curve in _joint_curves(problem, other, shape, scheme, counts)
        )
        return Spectra(
            shape=shape,
            norm=power**0.5,
            curves=curves,
            schemes=tuple(slice_counts),
            error_norm=ErrorNorm.FROBENIUS,
        )

    return _with_enough_ridge(solve, max(_SHRINKAGE, moments.uncertainty))


def crossed_spectra(
    matrix: FloatArray,
    shape: LayerShape,
    moments: Halves,
    slice_counts: Mapping[Scheme, tuple[int, ...]],
) -> Spectra:
    """Error curves fitted to each half and judged on the other; see `joint_spectra`."""
    first, second = moments.first, moments.second
    if first is second:
        return joint_spectra(matrix, shape, first, slice_counts)
    return _mean(
        joint_spectra(matrix, shape, first, slice_counts, second),
        joint_spectra(matrix, shape, second, slice_counts, first),
    )


def _mean(first: Spectra, second: Spectra) -> Spectra:
    """The root mean square of the curves of a layer, judged in two ways."""
    curves = tuple(
        replace(
            one,
            relative_error=read_only(
                np.sqrt((one.relative_error**2 + other.relative_error**2) / 2)
            ),
        )
        for one, other in zip(first.curves, second.curves, strict=True)
    )
    return replace(first, norm=((first.norm**2 + second.norm**2) / 2) ** 0.5, curves=curves)


def _joint_curves(
    problem: Problem, judge: FloatArray, shape: LayerShape, scheme: Scheme, counts: tuple[int, ...]
) -> Iterator[ErrorCurve]:
    (fold,) = scheme.structure.folds
    sizes = fold.sizes(shape)
    if not is_wide(shape):
        order = fold.taps(shape).ravel()
        same = judge is problem.C
        problem = problem.reordered(order)
        judge = problem.C if same else reordered(judge, order)
    f, n = problem.W.shape
    taps = fold.num_taps(shape)
    for k in counts:
        rank = min(sizes.max_rank(k), f * taps, n // (taps * k))
        error = joint_errors(problem, judge, num_slices=k, rank=rank, taps=taps)
        yield ErrorCurve(num_slices=k, relative_error=read_only(error), scheme=scheme)


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


def regress(
    matrix: FloatArray, shape: LayerShape, moments: Moments, cut: Cut, *, ridge: float, sweeps: int
) -> Factors:
    """Balanced factors that reproduce y from x as well as a cut can.

    Parameters
    ----------
    matrix, shape
        W, shape (f, n): what the regression shrinks towards where data says little.
    moments
        Of the inputs that the compressed layer will see, and of the outputs that it should give.
    cut
        Scheme, slices and ranks.
    ridge
        Weight of ||A - W||_F² against the data, relative to the mean power of an input; > 0.
    sweeps
        How often to go through encoders and decoders at most, unless there is a closed form (one
        slice of `ENCODE`); less if the error hardly falls.
    """
    scale = mean_power(moments.inputs)

    def solve(strength: float) -> Factors:
        problem = Problem(
            C=shrunk(moments.inputs, strength),
            B=moments.cross + strength * scale * matrix,
            power=moments.power + strength * scale * float(np.vdot(matrix, matrix)),
            W=matrix,
        )
        parts = cut.scheme.structure.regress(problem, shape, cut, sweeps)
        return Factors.of_parts(shape, cut.scheme, parts)

    return _with_enough_ridge(solve, ridge)


def bias_change(factors: Factors, moments: Moments) -> FloatArray:
    """What to add to the bias so that the mean output is right: E[y] - A E[x], shape (f,)."""
    return moments.output_mean - compose(factors) @ moments.input_mean
