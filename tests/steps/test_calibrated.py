"""Compression with calibration data, end to end on small models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.errors import DataError, UsageError
from alds_onnx.results import Status
from alds_onnx.values import Objective
from tests.graph.builders import normal, run
from tests.steps.nets import CR, feeds, models, relative_error


def cuts(result: alds_onnx.Result) -> Mapping[str, object]:
    return {row.name: row.cut for row in result.plan.layers}


@pytest.mark.parametrize("kind", ["dense", "conv", "shared", "branch"])
def test_it_removes_what_was_asked_and_is_nearer_than_without_data(kind: str) -> None:
    model = models()[kind]
    with_data = alds_onnx.compress(model, cr=CR, calibration=feeds(kind), threads=1)
    without = alds_onnx.compress(model, cr=CR, threads=1, dry_run=True)
    assert with_data.plan.removed >= CR
    assert with_data.report.verification is not None
    assert with_data.report.verification.status is Status.PASSED
    assert not with_data.report.verification.random_inputs
    held_out = feeds(kind, seed=1000)
    error = relative_error(model, with_data.model, held_out)
    assert error < 0.6 * relative_error(model, without.model, held_out)


@pytest.mark.parametrize("kind", ["conv", "branch"])
def test_same_bytes_on_any_number_of_threads(kind: str) -> None:
    first, second = (
        alds_onnx.compress(
            models()[kind], cr=CR, calibration=feeds(kind), threads=threads, dry_run=True
        )
        for threads in (1, 2)
    )
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_its_plan_applied_again_gives_the_same_cuts() -> None:
    model, data = models()["conv"], feeds("conv")
    first = alds_onnx.compress(model, cr=CR, calibration=data, threads=1, dry_run=True)
    again = alds_onnx.compress(model, plan=first.plan, calibration=data, threads=1, dry_run=True)
    assert cuts(first) == cuts(again)
    assert first.model.SerializeToString() == again.model.SerializeToString()


@pytest.mark.parametrize("objective", [Objective.SUM_OUTPUT_ERROR, Objective.MAX_OUTPUT_ERROR])
def test_the_objective_is_what_gets_small(objective: Objective) -> None:
    found = {}
    for each in (Objective.SUM_OUTPUT_ERROR, Objective.MAX_OUTPUT_ERROR):
        result = alds_onnx.compress(
            models()["conv"],
            cr=CR,
            calibration=feeds("conv"),
            objective=each,
            threads=1,
            dry_run=True,
        )
        assert result.plan.removed >= CR
        assert result.plan.objective is each
        found[each] = result
    assert found[objective].plan.objective is objective


def test_an_objective_on_outputs_needs_data() -> None:
    with pytest.raises(UsageError, match="calibration"):
        alds_onnx.compress(models()["dense"], cr=CR, objective=Objective.SUM_OUTPUT_ERROR)


@pytest.mark.parametrize(
    "data",
    [[], [{"z": normal(4, 24)}], [{"x": normal(4, 23)}], [{"x": np.array(["a"] * 24)[None]}]],
    ids=["none", "name", "shape", "type"],
)
def test_data_that_does_not_fit_is_refused(data: list[Feed]) -> None:
    with pytest.raises(DataError):
        alds_onnx.compress(models()["dense"], cr=CR, calibration=data, threads=1)


@pytest.mark.parametrize("kind", ["offset", "constant", "nan", "huge"])
def test_odd_numbers_do_no_harm(kind: str) -> None:
    data = [dict(feed) for feed in feeds("dense")]
    for feed in data:
        x = feed["x"].copy()
        if kind == "offset":
            x = 1000 + np.float32(0.01) * x
        elif kind == "constant":
            x[:] = 0.3
        else:
            x[3, 2] = np.nan if kind == "nan" else 1e25
        feed["x"] = x
    result = alds_onnx.compress(models()["dense"], cr=CR, calibration=data, threads=1, dry_run=True)
    assert result.plan.removed >= CR
    assert np.isfinite(run(result.model, {"x": normal(3, 24)})[0]).all()
