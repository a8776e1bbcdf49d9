"""The computed properties of the values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, CutError, ErrorCurve, LayerShape, Spectra, read_only
from alds_onnx.results import Latency, Status, Verification
from alds_onnx.values import Budget, Decision, LayerPlan, Plan, SearchMethod

shapes = st.builds(
    LayerShape,
    out_features=st.integers(0, 40),
    in_channels=st.integers(0, 24),
    kernel=st.sampled_from([(), (1,), (3,), (3, 3), (0,), (2, 3, 2)]),
)
law = settings(deadline=None)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


@law
@given(st.integers(0, 10**12), fractions)
@example(10, 0.9)  # (1 - 0.9)·10 is 0.99... in floating point
@example(1000, 0.999)
@example(271402, 0.5)
@example(2**63 - 1, 1e-300)
@example(1, 5e-324)
@example(0, 0.5)
def test_a_budget_allows_the_most_that_is_reported_as_removing_enough(
    before: int, removed: float
) -> None:
    allowed = Budget(before=before, removed=removed).allowed
    assert 0 <= allowed <= before
    if before:
        assert 1 - allowed / before >= removed
        assert allowed == before or 1 - (allowed + 1) / before < removed


@law
@given(st.integers(1, 10**6), st.integers(1, 999))
def test_what_a_decimal_fraction_allows_is_that_of_exact_numbers(
    before: int, thousandths: int
) -> None:
    allowed = Budget(before=before, removed=thousandths / 1000).allowed
    # Exactly on the border the rounding of the fraction decides.
    exact, border = divmod((1000 - thousandths) * before, 1000)
    assert allowed == exact or (not border and allowed == exact - 1)


@law
@given(shapes)
def test_max_rank_is_the_largest_that_saves_parameters(shape: LayerShape) -> None:
    dense = shape.out_features * shape.in_channels * int(np.prod(shape.kernel))
    assert shape.num_parameters == dense
    for k in range(1, shape.in_channels + 1):
        rank = shape.max_rank(k)
        assert rank == 0 or Cut(num_slices=k, rank=rank).num_parameters(shape) < dense
        assert Cut(num_slices=k, rank=rank + 1).num_parameters(shape) >= dense


@law
@given(shapes)
def test_slice_counts_are_the_divisors_that_save_parameters(shape: LayerShape) -> None:
    c = shape.in_channels
    rank_one = {k: Cut(num_slices=k, rank=1).num_parameters(shape) for k in range(1, c + 1)}
    assert shape.slice_counts() == tuple(
        k for k, count in rank_one.items() if c % k == 0 and count < shape.num_parameters
    )


def test_a_curve_is_found_by_its_number_of_slices() -> None:
    curves = tuple(ErrorCurve(num_slices=k, relative_error=np.zeros(1)) for k in (1, 3))
    found = Spectra(shape=LayerShape(out_features=1, in_channels=3), norm=1.0, curves=curves)
    assert found.curve(3) is curves[1]
    with pytest.raises(KeyError, match="2"):
        found.curve(2)


def row(relative: float | None) -> LayerPlan:
    error = None if relative is None else CutError(relative=relative, spectral=0.5, bound=1.0)
    decision = Decision.KEEP if error is None else Decision.DECOMPOSE
    return LayerPlan(name="n", op="Conv", weight="w", shape=(), decision=decision, error=error)


def plan(parameters: int, after: int, *rows: LayerPlan) -> Plan:
    return Plan(
        file="",
        sha256="",
        parameters=parameters,
        search=SearchMethod.EXACT,
        seed=0,
        budget=None,
        layers=rows,
        parameters_after=after,
    )


def test_a_plan_knows_what_it_removes_and_its_largest_error() -> None:
    some = plan(100, 25, row(None), row(0.25), row(0.5), row(0.125))
    assert some.removed == 0.75
    assert some.max_relative_error == 0.5
    assert plan(100, 100, row(None)).max_relative_error == 0
    assert plan(0, 0).removed == 0


def test_the_latency_ratio_needs_both_times() -> None:
    one, two = (Latency(median_ms=ms, low_ms=ms, high_ms=ms, runs=1) for ms in (4.0, 1.0))
    both = Verification(status=Status.PASSED, latency_before=one, latency_after=two)
    assert both.latency_ratio == 0.25
    assert Verification(status=Status.PASSED, latency_before=one).latency_ratio is None
    assert Verification(status=Status.PASSED, latency_after=two).latency_ratio is None


def test_values_are_frozen_all_the_way_down() -> None:
    array = read_only(np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    cut = Cut(num_slices=1, rank=1)
    with pytest.raises(FrozenInstanceError):
        cut.rank = 2  # type: ignore[misc]
