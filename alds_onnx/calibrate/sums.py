"""Sums over samples from which the moments of a layer follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alds_onnx.calibrate.rows import Rows
from alds_onnx.cuts import FloatArray
from alds_onnx.decompose.regression import Moments, uncertainty

# Sums of millions of squares of smaller numbers fit into float32.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over rows x (n) and outputs y (f), around their means; they add up.

    Around the means, because a difference of large sums would lose the small spread of inputs that
    are far from zero, and leave a covariance that is not positive.

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
        """Sums over both sets of samples.

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
        """Mean moments; centred where a bias takes up the means."""
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
    """Which rows of arrays (t, ·) hold numbers only, and none too large to be multiplied."""
    # A comparison with NaN is false.
    kept = [(np.abs(part) < _LARGEST).all(axis=1) for part in parts]
    return np.asarray(np.logical_and.reduce(kept), dtype=np.bool_)


def sums_of(rows: Rows, outputs: Rows) -> Sums:
    """Sums over rows x (t, n) and y (t, f), all usable.

    Products are in float32, sums in float64 across batches.
    """
    x, y = _mean(rows), _mean(outputs)
    # The means are rounded to float32 here: that is as little as the rounding of the inputs.
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
