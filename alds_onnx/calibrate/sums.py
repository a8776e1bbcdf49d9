"""Sums over samples, from which the moments of a layer are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alds_onnx.calibrate.rows import Rows
from alds_onnx.cuts import FloatArray
from alds_onnx.decompose.regression import Moments, uncertainty

# Sums of millions of squares of smaller numbers do not overflow float32.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over rows x (n) and outputs y (f), of deviations from their means. Sums can be added.

    Without the means, the small spread of inputs far from zero would be lost in the difference of
    large sums, and the covariance might not be positive.

    Attributes
    ----------
    count
        Number of rows.
    xx, yx, yy
        Sums of products of deviations from the means: of x xᵀ (n, n), y xᵀ (f, n) and yᵀ y.
    x, y
        Means of x (n,) and y (f,).
    """

    count: int
    xx: FloatArray
    yx: FloatArray
    yy: float
    x: FloatArray
    y: FloatArray

    def __add__(self, other: Sums) -> Sums:
        """Combine the sums over two sets of samples.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
        """
        count = self.count + other.count
        part = other.count / max(1, count)
        weight = self.count * part
        x, y = other.x - self.x, other.y - self.y
        return Sums(
            count=count,
            xx=self.xx + other.xx + weight * np.outer(x, x),
            yx=self.yx + other.yx + weight * np.outer(y, x),
            yy=self.yy + other.yy + weight * float(y @ y),
            x=self.x + part * x,
            y=self.y + part * y,
        )

    def moments(self, *, centred: bool) -> Moments:
        """Compute the moments. Centre them if a bias can absorb the means."""
        count = max(1, self.count)
        inputs, cross, power = self.xx / count, self.yx / count, self.yy / count
        x, y = self.x, self.y
        if not centred:
            inputs, cross = inputs + np.outer(x, x), cross + np.outer(y, x)
            power += float(y @ y)
            x, y = np.zeros_like(x), np.zeros_like(y)
        return Moments(
            inputs=inputs,
            cross=cross,
            power=power,
            input_mean=x,
            output_mean=y,
            uncertainty=uncertainty(inputs, count),
        )


def usable(*parts: Rows) -> npt.NDArray[np.bool_]:
    """Mark the rows of arrays (t, ·) that hold only numbers, and none too large to be squared."""
    # A comparison with NaN is false.
    kept = [(np.abs(part) < _LARGEST).all(axis=1) for part in parts]
    return np.asarray(np.logical_and.reduce(kept), dtype=np.bool_)


def sums_of(rows: Rows, outputs: Rows) -> Sums:
    """Compute the sums over usable rows x (t, n) and y (t, f).

    Products are computed in float32; sums of batches are added in float64.
    """
    x, y = _mean(rows), _mean(outputs)
    # Rounding the means to float32 does no more harm than the rounding of the inputs.
    dx, dy = rows - x.astype(np.float32), outputs - y.astype(np.float32)
    return Sums(
        count=len(rows),
        xx=(dx.T @ dx).astype(np.float64),
        yx=(dy.T @ dx).astype(np.float64),
        yy=float(np.vdot(dy, dy)),
        x=x,
        y=y,
    )


def _mean(rows: Rows) -> FloatArray:
    return np.asarray(rows.sum(axis=0, dtype=np.float64) / max(1, len(rows)))
