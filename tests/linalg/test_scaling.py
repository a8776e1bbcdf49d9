"""Scaling before squares are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.scaling import largest_entry, scaled

MATRICES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)


@given(MATRICES)
def test_largest_entry_is_the_largest_absolute_value(matrix: FloatArray) -> None:
    assert largest_entry(matrix) == np.abs(matrix).max(initial=0.0)


@given(MATRICES)
def test_squares_of_the_largest_entries_are_in_range(matrix: FloatArray) -> None:
    found, scale = scaled(matrix)
    largest = largest_entry(found)
    assert (largest == 0) == (not matrix.any())
    if largest:
        assert 1e-60 <= largest**2 <= 1e60
        assert np.abs(found * scale - matrix).max() <= 1e-15 * largest_entry(matrix)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e20])
def test_ordinary_matrices_are_not_copied(size: float) -> None:
    matrix = np.full((2, 3), size)
    found, scale = scaled(matrix)
    assert found is matrix
    assert scale == 1.0
