"""Wide layers, whose outputs replace their inputs: the same cuts with less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.reference import reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.statistics import Sums
from alds_onnx.cuts import Cut
from alds_onnx.decompose import regression
from alds_onnx.results import Status
from alds_onnx.runtimes import Provider
from alds_onnx.values import Decision, Plan
from tests.graph.builders import normal, parse

# Ridges differ: on the inputs' side and on the outputs'.
CLOSE = 1.05

WIDE = """m (float[N,200] x) => (float[N,10] y) {
    h = Gemm<transB=1>(x, w1, b1) a = Relu(h) y = MatMul(a, w2)
}"""
BRANCH = """m (float[N,200] x, bool up) => (float[N,16] y) {
    y = If(up) <
        then_branch = t () => (float[N,16] p) { p = MatMul(x, w) },
        else_branch = e () => (float[N,16] q) { q = MatMul(x, v) }
    >
}"""


def model() -> ModelProto:
    constants = {"w1": normal(24, 200) / 14, "b1": normal(24), "w2": normal(24, 10)}
    return parse(WIDE, constants)


def feeds(count: int = 8) -> list[Feed]:
    mix = normal(12, 200, seed=99)
    noise = [0.1 * normal(32, 200, seed=i) for i in range(count)]
    return [{"x": normal(32, 12, seed=50 + i) @ mix + noise[i] + 0.5} for i in range(count)]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "_WIDE", 100)


def distance(result: alds_onnx.Result, data: list[Feed]) -> float:
    runner = Runner(batches=tuple(data), folder=Path("/nowhere"), threads=1, provider=Provider.CPU)
    return reference(runner, model()).distance_of(result.model)


def test_as_good_as_on_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = feeds()
    plan = one_slice(alds_onnx.compress(model(), cr=0.5, calibration=data, threads=1).plan)
    narrow = alds_onnx.compress(model(), plan=plan, calibration=data, threads=1)
    sizes = []
    monkeypatch.setattr(regression, "_WIDE", 100)
    add = Sums.__add__

    def recorded(self: Sums, other: Sums) -> Sums:
        sizes.append(len(self.xx))
        return add(self, other)

    monkeypatch.setattr(Sums, "__add__", recorded)
    wide = alds_onnx.compress(model(), plan=plan, calibration=data, threads=1)
    assert max(sizes) == 24, "no moments of 200 inputs"
    assert wide.report.verification is not None
    assert wide.report.verification.status is Status.PASSED
    assert 0 < distance(wide, data) < CLOSE * distance(narrow, data)
    exact = alds_onnx.compress(model(), plan=plan, threads=1)
    assert distance(wide, data) < 0.7 * distance(exact, data)


def one_slice(plan: Plan, rank: int = 4, num_slices: int = 1) -> Plan:
    """The first layer cut to a rank, the others whole."""
    first, *rest = plan.layers
    cut = replace(first, decision=Decision.DECOMPOSE, cut=Cut(num_slices=num_slices, rank=rank))
    whole = [replace(row, decision=Decision.KEEP, cut=None, error=None) for row in rest]
    return replace(plan, layers=(cut, *whole))


@pytest.mark.usefixtures("low_limit")
def test_a_search_gives_wide_layers_one_slice() -> None:
    result = alds_onnx.compress(model(), cr=0.7, calibration=feeds(), threads=1)
    (row, _) = result.plan.layers
    assert row.cut is not None
    assert row.cut.num_slices == 1
    assert row.output_error is not None
    assert result.plan.removed >= 0.7


@pytest.mark.usefixtures("low_limit")
def test_a_plan_may_slice_them_all_the_same() -> None:
    data = feeds()
    plan = alds_onnx.compress(model(), cr=0.5, calibration=data, threads=1).plan
    sliced = one_slice(plan, num_slices=2)
    result = alds_onnx.compress(model(), plan=sliced, calibration=data, threads=1)
    assert result.plan.layers[0].cut == Cut(num_slices=2, rank=4)


@pytest.mark.usefixtures("low_limit")
def test_wide_layers_of_branches() -> None:
    weights = {"w": normal(200, 16), "v": normal(200, 16, seed=1)}
    data = [{**feed, "up": np.array(i % 2 == 0)} for i, feed in enumerate(feeds())]
    result = alds_onnx.compress(parse(BRANCH, weights), cr=0.3, calibration=data, threads=1)
    assert result.plan.removed >= 0.3
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED


def test_downstream_of_a_cut_layer_it_is_fitted_to_what_that_has_become(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = "m (float[N,24] x) => (float[N,20] y) { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }"
    both = parse(graph, {"w": normal(24, 200), "v": normal(200, 20)})
    mix = normal(12, 24, seed=5)
    data: list[Feed] = [
        {"x": normal(64, 12, seed=i) @ mix + 0.3 * normal(64, 24, seed=90 + i)} for i in range(10)
    ]
    plan = alds_onnx.compress(both, cr=0.5, calibration=data, threads=1).plan
    ranks = zip(plan.layers, (5, 6), strict=True)
    rows = tuple(
        replace(row, decision=Decision.DECOMPOSE, cut=Cut(num_slices=1, rank=rank))
        for row, rank in ranks
    )
    runner = Runner(batches=tuple(data), folder=Path("/nowhere"), threads=1, provider=Provider.CPU)
    original, errors = reference(runner, both), []
    for limit in (10**6, 100):
        monkeypatch.setattr(regression, "_WIDE", limit)
        result = alds_onnx.compress(
            both, plan=replace(plan, layers=rows), calibration=data, threads=1
        )
        errors.append(original.distance_of(result.model))
    assert errors[1] < CLOSE * errors[0]
