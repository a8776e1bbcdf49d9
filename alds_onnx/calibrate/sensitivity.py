"""The measured change of the model's outputs when one layer is cut.

Local errors mislead: one layer may lose 25 % of its output without harm, while 0.02 % at another
one ruins the model. So each layer is cut to a few ranks while all others stay whole, the model is
run, and a monotone curve through the measured points gives the output error at other local errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alds_onnx.cuts import Cut, Factors, FloatArray, Spectra
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.regression import (
    Halves,
    bias_change,
    fitted_shape,
    regress,
    squared_error,
    widened,
)
from alds_onnx.graph.layers import Layer

#: Squared local errors at which a layer is probed, as closely as its ranks allow.
_PROBED_ERRORS = (0.01, 0.05, 0.25)
_RIDGE = 1e-4
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Output error of the model as a function of the local error of one layer.

    Both are squared relative errors in ascending order; there is at least one point.
    """

    local: tuple[float, ...]
    output: tuple[float, ...]

    def damage(self, relative_error: FloatArray) -> FloatArray:
        """Give the squared relative output error at local relative errors.

        Between the points the interpolation is linear in logarithms. Beyond them the error grows at
        least in proportion to the squared local error.
        """
        x = np.log(np.maximum(np.square(relative_error), _SMALLEST))
        knots, values = np.log(self.local), np.log(self.output)
        inside = np.interp(x, knots, values)
        slope = 1.0
        if len(knots) > 1 and knots[-1] > knots[-2]:
            slope = max(1.0, float((values[-1] - values[-2]) / (knots[-1] - knots[-2])))
        below = np.minimum(x - knots[0], 0.0)
        above = np.maximum(x - knots[-1], 0.0)
        return np.where(relative_error > 0, np.exp(inside + below + slope * above), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A weight W (f, n) to probe, the layers that read it, and its error curves on the data.

    The regression reproduces `matrix`: W, or the identity (f, f) for a wide layer. The moments are
    those of the inputs, or of the outputs W x for a wide layer. The bias (f,) may change, if there
    is one.
    """

    layers: tuple[Layer, ...]
    weight: FloatArray
    matrix: FloatArray
    moments: Halves
    bias: FloatArray | None
    spectra: Spectra

    @property
    def is_wide(self) -> bool:
        """Whether the outputs replace the inputs in the regression."""
        return self.matrix is not self.weight

    def factors(self, found: Factors) -> Factors:
        """Convert the factors that the regression found to factors of the weight."""
        return widened(found, self.weight, self.spectra.shape) if self.is_wide else found


def measure(
    probe: Probe, distance: Callable[[FloatArray, FloatArray | None], float]
) -> Sensitivity:
    """Probe one weight by factors that are fitted to the first half of the samples.

    `distance` gives the squared relative error of the model's outputs for a weight (f, n) and a
    bias (f,), on samples of the second half.
    """
    curves = [c for c in probe.spectra.curves if len(c.relative_error) > 1]
    if not curves:  # no rank saves parameters: the layer stays dense
        return Sensitivity(local=(1.0,), output=(1.0,))
    curve = curves[0]
    squared = np.square(curve.relative_error[1:])
    ranks = sorted({int(np.abs(squared - t).argmin()) + 1 for t in _PROBED_ERRORS}, reverse=True)
    fitted = probe.moments.first
    ridge = max(_RIDGE, fitted.uncertainty)
    points = []
    for rank in ranks:
        cut = Cut(num_slices=curve.num_slices, rank=rank, scheme=curve.scheme)
        shape = fitted_shape(probe.spectra.shape)
        factors = regress(probe.matrix, shape, fitted, cut, ridge=ridge, sweeps=2)
        bias = None if probe.bias is None else probe.bias + bias_change(factors, fitted)
        local = squared_error(compose(factors), probe.moments.second)
        points.append((local, distance(compose(probe.factors(factors)), bias)))
    return _monotone(points)


def _monotone(points: Sequence[tuple[float, float]]) -> Sensitivity:
    """Sort by local error, and make the output error monotone where noise lets it fall."""
    local = [max(x, _SMALLEST) for x, _ in sorted(points)]
    output = np.maximum.accumulate([max(y, _SMALLEST) for _, y in sorted(points)])
    distinct = [i for i, (a, b) in enumerate(pairwise([*local, np.inf])) if b > a]
    return Sensitivity(
        local=tuple(local[i] for i in distinct), output=tuple(float(output[i]) for i in distinct)
    )
