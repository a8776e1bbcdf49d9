"""The trade-off curve agrees with the search for each single budget."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given

from alds_onnx.cuts import ErrorCurve, LayerShape, Spectra
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost
from alds_onnx.search.tradeoff import smallest_maxima, smallest_sums
from tests.search.layers import is_strictly_monotone, models

# Sums of the same few errors in another order.
ROUNDING = 1e-12


def frontiers(model: dict[str, Spectra]) -> list[Frontier]:
    return [frontier(name, spectra) for name, spectra in model.items()]


def dense(model: dict[str, Spectra]) -> int:
    return sum(spectra.shape.num_parameters for spectra in model.values())


@given(models())
def test_largest_errors_are_those_of_the_search(model: dict[str, Spectra]) -> None:
    curves = frontiers(model)
    parameters, error = smallest_maxima(curves)
    for budget, largest in zip(parameters, error, strict=True):
        chosen = minimize_maximum_error(curves, int(budget))
        assert largest == max(float(f.error[i]) for f, i in zip(curves, chosen, strict=True))


@given(models())
def test_sums_are_those_of_the_search(model: dict[str, Spectra]) -> None:
    """A point of the curve is a vertex of the hull: nothing is left for the search to spend."""
    curves = frontiers(model)
    parameters, error = smallest_sums(curves)
    for budget, total in zip(parameters, error, strict=True):
        chosen = minimize_sum_of_errors(curves, int(budget))
        found = sum(float(f.error[i]) for f, i in zip(curves, chosen, strict=True))
        assert abs(found - total) <= ROUNDING


@given(models())
def test_sums_are_convex(model: dict[str, Spectra]) -> None:
    """Each further parameter saves less error."""
    parameters, error = smallest_sums(frontiers(model), 10_000)
    saved = -np.diff(error) / np.diff(parameters)
    assert (np.diff(saved) <= ROUNDING).all()


def test_ties_hide_no_vertex() -> None:
    """At the price of an edge both of its ends cost the same, and rounding may choose either."""
    errors = {1: [0.75, 0.75, 0.625, 0.625, 0.0], 2: [0.375, 0.375, 0.375, 0.0]}
    curves = tuple(
        ErrorCurve(num_slices=k, relative_error=np.array(values)) for k, values in errors.items()
    )
    shape = LayerShape(out_features=4, in_channels=6)
    layer = frontier("a", Spectra(shape=shape, norm=1.0, curves=curves))
    assert layer.cost.tolist() == [10, 14, 24]
    assert smallest_sums([layer])[0].tolist() == [10, 14, 24]


@given(models(most=1))
def test_sums_miss_no_vertex(model: dict[str, Spectra]) -> None:
    """For one layer the curve has every choice that lies below all lines between two others."""
    (curve,) = frontiers(model)
    points = list(zip(curve.cost.tolist(), curve.error.tolist(), strict=True))
    found = smallest_sums([curve], 10_000)[0].tolist()
    for n, (x, y) in enumerate(points):
        lines = product(points[:n], points[n + 1 :])
        if all(y < a + (b - a) * (x - p) / (q - p) - ROUNDING for (p, a), (q, b) in lines):
            assert x in found


@given(models())
def test_from_the_smallest_to_no_error_at_all(model: dict[str, Spectra]) -> None:
    for sweep in (smallest_maxima, smallest_sums):
        parameters, error = sweep(frontiers(model))
        assert parameters[0] == smallest_cost(frontiers(model))
        assert parameters[-1] <= dense(model)
        assert error[-1] == 0
        assert is_strictly_monotone(list(parameters))
        assert is_strictly_monotone(list(-error))


@given(models(most=2))
def test_few_points_are_points_of_the_whole_curve(model: dict[str, Spectra]) -> None:
    for sweep in (smallest_maxima, smallest_sums):
        whole = dict(zip(*sweep(frontiers(model), 10_000), strict=True))
        few = dict(zip(*sweep(frontiers(model), 5), strict=True))
        assert 1 <= len(few) <= 5
        assert few.items() <= whole.items()
        assert {min(whole), max(whole)} <= few.keys()
        assert np.isfinite(list(whole.values())).all()
