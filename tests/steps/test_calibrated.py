"""Compression with calibration data, end to end on small models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.errors import DataError, UsageError
from alds_onnx.values import Objective, Status
from tests.graph.builders import Array, normal, parse, run

CR = 0.4

DENSE = "m (float[N,24] x) => (float[N,16] y) { h = Gemm(x, w1, b1) a = Relu(h) y = MatMul(a, w2) }"
CONV = """m (float[N,8,6,6] x) => (float[N,10] y) {
    h = Conv<pads=[1,1,1,1]>(x, w1, b1) a = Relu(h)
    g = Conv<strides=[2,2]>(a, w2) r = Relu(g)
    p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w3, b3)
}"""
SHARED = "m (float[N,24] x) => (float[N,24] y) { h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w1) }"
BRANCH = """m (float[N,24] x) => (float[N,16] y) {
    h = MatMul(x, w1) a = Relu(h) s = ReduceSum<keepdims=0>(x)
    zero = Constant<value = float {0.0}>() up = Greater(s, zero)
    y = If(up) <
        then_branch = t () => (float[N,16] p) { p = MatMul(a, w2) },
        else_branch = e () => (float[N,16] q) { q = MatMul(a, w3) }
    >
}"""


def models() -> dict[str, ModelProto]:
    return {
        "dense": parse(DENSE, {"w1": normal(24, 32), "b1": normal(32), "w2": normal(32, 16)}),
        "conv": parse(
            CONV,
            {
                "w1": normal(16, 8, 3, 3),
                "b1": normal(16),
                "w2": normal(24, 16, 3, 3),
                "w3": normal(24, 10),
                "b3": normal(10),
            },
        ),
        "shared": parse(SHARED, {"w1": normal(24, 24)}),
        "branch": parse(
            BRANCH, {"w1": normal(24, 32), "w2": normal(32, 16), "w3": normal(32, 16, seed=1)}
        ),
    }


def feeds(kind: str, count: int = 6, seed: int = 0) -> list[Feed]:
    """Inputs that depend on each other, as real ones do: on that data-aware ranks rest."""
    shape = (8, 6, 6) if kind == "conv" else (24,)
    mix = normal(4, int(np.prod(shape)), seed=99)
    return [
        {"x": (normal(32, 4, seed=seed + i) @ mix).reshape(32, *shape) + np.float32(0.5)}
        for i in range(count)
    ]


def relative_error(before: ModelProto, after: ModelProto, data: list[Feed]) -> float:
    def outputs(model: ModelProto) -> Array:
        return np.concatenate([run(model, feed)[0] for feed in data])

    y, z = outputs(before), outputs(after)
    return float(np.linalg.norm(y - z) / np.linalg.norm(y))


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
