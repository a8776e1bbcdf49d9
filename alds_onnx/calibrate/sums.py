"""Sums over samples from which the moments of a layer follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alds_onnx.calibrate.rows import Rows
from alds_onnx.decompose.regression import Moments
from alds_onnx.values import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over rows x (n) and outputs y (f); they add up.

    Attributes
    ----------
    count
        Number of rows.
    xx, yx, yy
        Sums of x xᵀ (n, n), y xᵀ (f, n) and yᵀ y.
    x, y
        Sums of x (n,) and y (f,).
    """

    count: int
    xx: FloatArray
    yx: FloatArray
    yy: float
    x: FloatArray
    y: FloatArray

    def __add__(self, other: Sums) -> Sums:
        """Sums over both sets of samples."""
        return Sums(
            count=self.count + other.count,
            xx=self.xx + other.xx,
            yx=self.yx + other.yx,
            yy=self.yy + other.yy,
            x=self.x + other.x,
            y=self.y + other.y,
        )

    def moments(self, *, centred: bool) -> Moments:
        """Mean moments; centred where a bias takes up the means."""
        count = max(1, self.count)
        x, y = self.x / count, self.y / count
        if not centred:
            x, y = np.zeros_like(x), np.zeros_like(y)
        return Moments(
            inputs=self.xx / count - np.outer(x, x),
            cross=self.yx / count - np.outer(y, x),
            power=self.yy / count - float(y @ y),
            input_mean=x,
            output_mean=y,
        )


def sums_of(rows: Rows, outputs: Rows) -> Sums:
    """Sums over rows x (t, n) and y (t, f): products in float32, sums in float64 across batches."""
    return Sums(
        count=len(rows),
        xx=(rows.T @ rows).astype(np.float64),
        yx=(outputs.T @ rows).astype(np.float64),
        yy=float(np.vdot(outputs, outputs)),
        x=rows.sum(axis=0, dtype=np.float64),
        y=outputs.sum(axis=0, dtype=np.float64),
    )
