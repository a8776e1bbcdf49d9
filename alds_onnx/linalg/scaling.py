"""Matrices whose squares neither overflow nor vanish."""

from __future__ import annotations

import numpy as np

from alds_onnx.linalg.arrays import FloatArray

# Sums of squares of entries up to the larger, and squares of those near the smaller times the
# resolution of float64, are far inside its range.
_SMALLEST, _LARGEST = 1e-30, 1e30


def largest_entry(matrix: FloatArray) -> float:
    """Give the largest absolute value; 0 of a matrix without entries. Makes no copy."""
    if not matrix.size:
        return 0.0
    return float(max(np.max(matrix), -np.min(matrix)))


def scaled(matrix: FloatArray) -> tuple[FloatArray, float]:
    """Divide a matrix by its largest entry where that is needed; also give what it was divided by.

    Where its entries are of an ordinary size it is the matrix itself, since a copy of a large one
    takes longer than a pass over it.
    """
    scale = largest_entry(matrix)
    if scale == 0.0 or _SMALLEST < scale < _LARGEST:
        return matrix, 1.0
    return matrix / scale, scale
