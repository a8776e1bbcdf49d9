"""Error curves against singular values from a full SVD of each slice."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import FloatArray, LayerShape, Spectra
from alds_onnx.linalg import slices as module

from .matrices import RESOLUTION, ROUNDING, Weight, random_matrix, singular_values, spectra, weights

# At k = 1, 2, 3 the slices of this weight are wide, at 6 and 12 narrow; neither 2 nor 3 divides the
# other.
MIXED = LayerShape(out_features=6, in_channels=12, kernel=(2,))


def curves_by_svd(matrix: FloatArray, num_slices: int) -> FloatArray:
    """`relative_error` as its definition says: max over slices of sigma_{i,j+1} / sigma_1."""
    sigma = singular_values(matrix, num_slices).max(axis=0)
    norm = np.linalg.norm(matrix, 2)
    return np.append(sigma, 0.0) / (norm if norm > 0 else 1.0)


def assert_same_curves(one: Spectra, other: Spectra, tolerance: float) -> None:
    for curve in one.curves:
        np.testing.assert_allclose(
            other.curve(curve.num_slices).relative_error, curve.relative_error, atol=tolerance
        )


@given(weights())
def test_curves_are_the_largest_singular_values_over_the_slices(weight: Weight) -> None:
    found = spectra(weight.matrix, weight.shape, weight.divisors)
    assert found.norm == pytest.approx(np.linalg.norm(weight.matrix, 2), rel=ROUNDING)
    assert tuple(curve.num_slices for curve in found.curves) == weight.divisors
    for curve in found.curves:
        expected = curves_by_svd(weight.matrix, curve.num_slices)
        np.testing.assert_allclose(curve.relative_error, expected, atol=RESOLUTION)


def test_a_wrong_curve_is_noticed() -> None:
    matrix = random_matrix(MIXED, 0)
    curve = spectra(matrix, MIXED, ()).curve(1)
    wrong = np.append(curve.relative_error[1:], 0.0)  # one rank too early
    assert np.abs(wrong - curves_by_svd(matrix, 1)).max() > 1000 * RESOLUTION


@given(weights())
def test_the_error_falls_with_the_rank_from_at_most_one_to_zero(weight: Weight) -> None:
    found = spectra(weight.matrix, weight.shape, weight.divisors)
    for curve in found.curves:
        error = curve.relative_error
        assert len(error) == weight.full_rank(curve.num_slices) + 1
        assert (np.diff(error) <= 0).all()
        assert error[-1] == 0
        assert error[0] <= 1 + ROUNDING  # a slice has no larger norm than the whole
    assert found.curve(1).relative_error[0] == (1 if weight.matrix.any() else 0)


@given(weights(), st.data())
def test_curves_do_not_depend_on_which_others_are_asked_for(
    weight: Weight, data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(weight.divisors), unique=True))
    found = spectra(weight.matrix, weight.shape, tuple(some))
    assert [curve.num_slices for curve in found.curves] == sorted({1, *some})
    assert_same_curves(found, spectra(weight.matrix, weight.shape, weight.divisors), RESOLUTION)


@pytest.mark.parametrize("counts", [(2, 3, 6, 12), (3, 2), (12,), (4, 6), ()])
def test_every_choice_of_slices_is_served(counts: tuple[int, ...]) -> None:
    matrix = random_matrix(MIXED, 3)
    for curve in spectra(matrix, MIXED, counts).curves:
        expected = curves_by_svd(matrix, curve.num_slices)
        np.testing.assert_allclose(curve.relative_error, expected, atol=RESOLUTION)


@pytest.mark.parametrize("factor", [1e30, 1e-30, 1e-42, 1e200, 1e-200, 5e-309])
def test_scaling_leaves_relative_errors(factor: float) -> None:
    matrix = random_matrix(MIXED, 1)
    found, scaled = (spectra(m, MIXED, (2, 3, 6, 12)) for m in (matrix, matrix * factor))
    assert scaled.norm == pytest.approx(found.norm * factor, rel=ROUNDING)
    assert_same_curves(found, scaled, RESOLUTION)


def test_weights_below_the_normal_range_of_float32() -> None:
    matrix = (random_matrix(MIXED, 1) * 1e-42).astype(np.float32).astype(np.float64)
    assert 0 < np.abs(matrix).max() < np.finfo(np.float32).tiny
    curve = spectra(matrix, MIXED, ()).curve(1)
    scaled_up = curves_by_svd(matrix * 2.0**140, 1)
    np.testing.assert_allclose(curve.relative_error, scaled_up, atol=RESOLUTION)


def test_zeros_have_no_error() -> None:
    found = spectra(np.zeros((6, 24)), MIXED, (2, 12))
    assert found.norm == 0
    assert not any(curve.relative_error.any() for curve in found.curves)


@pytest.mark.parametrize(("f", "c"), [(0, 4), (4, 0), (0, 0)])
def test_empty_weights_have_empty_curves(f: int, c: int) -> None:
    shape = LayerShape(out_features=f, in_channels=c)
    found = spectra(np.zeros((f, c)), shape, ())
    assert found.norm == 0
    np.testing.assert_array_equal(found.curve(1).relative_error, [0.0])


def test_ranks_that_a_weight_does_not_have_cost_nothing() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((6, 2)) @ generator.standard_normal((2, 24))
    for curve in spectra(matrix, MIXED, (2, 3, 6, 12)).curves:
        assert (curve.relative_error[2:] < RESOLUTION).all()
        assert curve.relative_error[1] > 1000 * RESOLUTION


def test_curves_are_read_only() -> None:
    curve = spectra(random_matrix(MIXED, 0), MIXED, ()).curve(1)
    with pytest.raises(ValueError, match="read-only"):
        curve.relative_error[0] = 0


def test_a_second_solver_takes_over_where_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix(MIXED, 2)
    expected = spectra(matrix, MIXED, (2, 6))
    calls = []

    def fail(grams: FloatArray) -> FloatArray:
        calls.append(grams.shape)
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigvalsh", fail)
    found = spectra(matrix, MIXED, (2, 6))
    assert len(calls) == 3
    assert found.norm == pytest.approx(expected.norm, rel=ROUNDING)
    assert_same_curves(expected, found, RESOLUTION)


@given(weights())
def test_slices_that_come_in_parts_are_all_seen(weight: Weight) -> None:
    at_once = spectra(weight.matrix, weight.shape, weight.divisors)
    with patch.object(module, "_AT_ONCE", 1):
        in_parts = spectra(weight.matrix, weight.shape, weight.divisors)
    assert_same_curves(at_once, in_parts, RESOLUTION)


def test_slices_across_coarser_ones() -> None:
    shape = LayerShape(out_features=30, in_channels=60)  # narrow from k = 3 on
    matrix = np.random.default_rng(0).standard_normal((30, 60))
    found = spectra(matrix, shape, (3, 4, 5, 10, 12, 20))
    assert [curve.num_slices for curve in found.curves] == [1, 3, 4, 5, 10, 12, 20]
    for curve in found.curves:
        expected = curves_by_svd(matrix, curve.num_slices)
        np.testing.assert_allclose(curve.relative_error, expected, atol=RESOLUTION)
