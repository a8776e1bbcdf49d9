"""The data for plots agrees with the choice."""

from __future__ import annotations

import numpy as np
import pytest

import alds_onnx
from alds_onnx import Runtime
from alds_onnx.cuts import Cut, ErrorCurve, LayerShape, Scheme
from alds_onnx.evidence import Evidence
from alds_onnx.steps.evidence import _thin
from alds_onnx.values import Objective
from tests.conftest import DIGITS
from tests.graph.builders import normal, parse

GRAPH = """m (float[N,30] x) => (float[N,10] y) {
    h = MatMul(x, w1) a = Relu(h) g = MatMul(a, w2) b = Relu(g) y = MatMul(b, w3)
}"""
WEIGHTS = {"w1": normal(30, 40) / 6, "w2": normal(40, 40) / 6, "w3": normal(40, 10) / 6}
FEEDS = [{"x": normal(16, 30, seed=i)} for i in range(8)]


def evidence(result: alds_onnx.Result) -> Evidence:
    assert result.report.evidence is not None
    return result.report.evidence


@pytest.fixture(scope="module")
def half() -> alds_onnx.Result:
    return alds_onnx.compress(DIGITS, cr=0.5, target=Runtime.NONE, dry_run=True, threads=1)


@pytest.fixture(scope="module")
def fitted() -> alds_onnx.Result:
    model = parse(GRAPH, WEIGHTS)
    return alds_onnx.compress(model, cr=0.1, target=Runtime.NONE, calibration=FEEDS, threads=1)


def test_the_cut_is_a_point_of_its_curve(half: alds_onnx.Result) -> None:
    rows = {row.name: row for row in half.plan.layers}
    for weight in evidence(half).weights:
        row = rows[weight.layers[0]]
        ks = [curve.num_slices for curve in weight.curves]
        assert ks == sorted({1, row.cut.num_slices if row.cut else 1})
        if row.cut is None or row.error is None:
            continue
        curve = weight.curves[ks.index(row.cut.num_slices)]
        at = curve.ranks.index(row.cut.rank)
        assert curve.errors[at] == row.error.relative
        assert curve.parameters_per_rank * row.cut.rank == row.parameters_after


@pytest.mark.parametrize("scheme", Scheme)
def test_the_curve_is_that_of_the_fold_that_was_cut(scheme: Scheme) -> None:
    made = alds_onnx.compress(DIGITS, cr=0.5, schemes=(scheme,), dry_run=True, threads=1)
    rows = {row.name: row for row in made.plan.layers}
    cut = [w for w in evidence(made).weights if (c := rows[w.layers[0]].cut) and c.scheme is scheme]
    assert cut
    for weight in cut:
        row = rows[weight.layers[0]]
        assert row.cut is not None
        assert row.error is not None
        (curve,) = (c for c in weight.curves if c.num_slices == row.cut.num_slices)
        error = curve.errors[curve.ranks.index(row.cut.rank)]
        if scheme is Scheme.TUCKER2:
            assert error <= row.error.relative
        else:
            assert error == row.error.relative
            assert curve.parameters_per_rank * row.cut.rank == row.parameters_after


def test_the_cut_of_a_long_curve_is_kept_too() -> None:
    shape = LayerShape(out_features=2000, in_channels=2000)
    curve = ErrorCurve(num_slices=1, relative_error=np.linspace(1, 0, 2001))
    for rank in (1, 777, 1999):
        thin = _thin(shape, curve, Cut(num_slices=1, rank=rank))
        assert len(thin.ranks) <= 121
        assert thin.errors[thin.ranks.index(rank)] == 1 - rank / 2000


def test_curves_fall_from_end_to_end(half: alds_onnx.Result) -> None:
    for weight in evidence(half).weights:
        for curve in weight.curves:
            assert curve.ranks[0] == 0
            assert curve.errors[-1] == 0
            assert list(curve.ranks) == sorted(set(curve.ranks))
            assert list(curve.errors) == sorted(curve.errors, reverse=True)


def test_no_point_of_the_trade_off_is_worse_than_the_plan(half: alds_onnx.Result) -> None:
    """Where more is removed the error is larger, where less is, smaller: both are optimal."""
    (line,) = evidence(half).trade_offs
    largest = half.plan.max_relative_error
    assert line.points[0].removed == 0
    assert line.points[-1].removed > 0.9
    for point in line.points:
        if point.removed >= half.plan.removed:
            assert point.error >= largest
        else:
            assert point.error <= largest


def test_two_lines_where_a_runtime_was_named() -> None:
    found = alds_onnx.compress(
        DIGITS, cr=0.5, target=alds_onnx.Runtime.MNN, dry_run=True, threads=1
    )
    fast, free = evidence(found).trade_offs
    assert (fast.runtime, free.runtime) == (alds_onnx.Runtime.MNN, alds_onnx.Runtime.NONE)
    removed = np.linspace(0.1, 0.9, 9)
    lines = [
        np.interp(removed, [p.removed for p in line.points], [p.error for p in line.points])
        for line in (fast, free)
    ]
    assert (lines[0] >= lines[1]).all()


def test_with_data_errors_are_those_of_outputs(fitted: alds_onnx.Result) -> None:
    found = evidence(fitted)
    assert found.on_data
    assert fitted.plan.objective is Objective.SUM_OUTPUT_ERROR
    assert all(weight.probes for weight in found.weights)
    for weight in found.weights:
        locals_ = [probe.local for probe in weight.probes]
        assert locals_ == sorted(locals_)
        assert max(locals_) <= 1
    (line,) = found.trade_offs
    predicted = np.interp(
        fitted.plan.removed, [p.removed for p in line.points], [p.error for p in line.points]
    )
    assert fitted.report.verification is not None
    measured = fitted.report.verification.fidelity[0].relative_l2
    # Probes are of single cuts in the original model: within a factor of what happens together.
    assert predicted / 2 < measured < predicted * 2


def test_the_price_of_a_target_is_that_of_the_smallest_error(half: alds_onnx.Result) -> None:
    found = alds_onnx.compress(DIGITS, cr=0.5, target=Runtime.ORT_AVX2, dry_run=True, threads=1)
    free = alds_onnx.compress(
        DIGITS, cr=found.plan.removed, target=Runtime.NONE, dry_run=True, threads=1
    )
    price = evidence(found).price
    assert price == pytest.approx(
        found.plan.max_relative_error / free.plan.max_relative_error, rel=0.01
    )
    assert price > 1
    assert evidence(half).price is None


def test_with_data_the_price_is_of_the_outputs_errors() -> None:
    found = alds_onnx.compress(parse(GRAPH, WEIGHTS), cr=0.1, calibration=FEEDS, threads=1)
    price = evidence(found).price
    assert price is not None
    assert price >= 1 - 1e-9


def test_a_plan_leaves_nothing_to_trade(fitted: alds_onnx.Result) -> None:
    for calibration in (None, FEEDS):
        model = parse(GRAPH, WEIGHTS)
        found = alds_onnx.compress(model, plan=fitted.plan, calibration=calibration, threads=1)
        assert evidence(found).trade_offs == ()
        assert len(evidence(found).weights) == 3
