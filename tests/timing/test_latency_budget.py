"""Latency budgets are kept, by times that are a known function of sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import alds_onnx
from alds_onnx import BudgetError, Runtime, UsageError
from alds_onnx.cuts import Cut, Scheme
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.graph.layers import Layer
from alds_onnx.runtimes import preset
from alds_onnx.search.alignment import Alignment
from alds_onnx.search.costs import cost_of, one_cut
from alds_onnx.steps import attempt
from alds_onnx.timing.curves import Grid, TimeCurve, Variant
from alds_onnx.timing.latency_budget import LatencyCost, corrected_saving, measure_latency_cost
from alds_onnx.timing.timer import OrtTimer, Timing
from alds_onnx.values import Budget, BudgetKind
from tests.timing.fake import CALL, DENSE, LAYERS, SHAPE, FakeTimes, cuts_of, layer_times


def reached(fake: FakeTimes, cuts: Iterable[Cut], off: float = 1.0) -> Timing:
    """Times of the whole net, in which cuts save `off` times as much as in isolation."""
    saved = sum(DENSE - fake.cut(cut) for cut in cuts)
    return Timing(dense=LAYERS * DENSE, cut=LAYERS * DENSE - off * saved)


def time_nets(monkeypatch: pytest.MonkeyPatch, fake: FakeTimes, off: float = 1.0) -> None:
    """Time whole nets so."""

    def whole(
        timer: object,
        model: object,
        folder: object,
        cuts: Sequence[tuple[tuple[Layer, ...], Cut]],
        feeds: object,
    ) -> Timing:
        return reached(fake, [cut for _, cut in cuts], off)

    monkeypatch.setattr(attempt, "time_whole_model", whole)


# Recorded before these curves were shared with the exclusion of slow cuts.
@pytest.mark.parametrize(
    ("off", "ratio", "slices", "cuts"),
    [
        (1.0, 0.4, 1.0, {"t1": (48, 1), "t2": (48, 1)}),
        (1.0, 0.6, 1.0, {"t1": (48, 1), "t2": (1, 29)}),
        (1.0, 0.8, 1.0, {"t1": (3, 32), "t2": (1, 23)}),
        (1.0, 0.8, 1.5, {"t1": (1, 33), "t2": (3, 16)}),
        (0.8, 0.4, 1.5, {"t0": (48, 1), "t1": (48, 1), "t2": (1, 22)}),
        (0.8, 0.8, 1.0, {"t1": (1, 34), "t2": (3, 16)}),
        (1.3, 0.6, 1.0, {"t1": (48, 1), "t2": (1, 43)}),
        (1.3, 0.8, 1.5, {"t1": (1, 41), "t2": (1, 26)}),
    ],
)
def test_the_same_cuts_are_chosen_as_before(
    net: ModelProto,
    fake: FakeTimes,
    monkeypatch: pytest.MonkeyPatch,
    off: float,
    ratio: float,
    slices: float,
    cuts: dict[str, tuple[int, int]],
) -> None:
    fake.slices = slices
    time_nets(monkeypatch, fake, off)
    found = cuts_of(
        alds_onnx.compress(net, latency_ratio=ratio, schemes=[Scheme.ENCODE], dry_run=True)
    )
    assert found == {name: Cut(num_slices=k, rank=j) for name, (k, j) in cuts.items()}


@pytest.mark.parametrize("off", [1.0, 0.8, 1.3])
@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_a_ratio_is_kept_though_the_curves_are_off(
    net: ModelProto, fake: FakeTimes, monkeypatch: pytest.MonkeyPatch, off: float, ratio: float
) -> None:
    time_nets(monkeypatch, fake, off)
    result = alds_onnx.compress(net, latency_ratio=ratio, dry_run=True)
    found = reached(fake, cuts_of(result).values(), off).ratio
    assert 0.9 * ratio <= found <= 1.05 * ratio
    assert result.plan.budget == Budget(
        kind=BudgetKind.LATENCY, before=int(LAYERS * DENSE), removed=1 - ratio
    )


def test_small_ranks_are_known_well_enough_for_a_small_ratio(
    net: ModelProto, fake: FakeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.slowness = 2.0
    time_nets(monkeypatch, fake)
    result = alds_onnx.compress(net, latency_ratio=0.2, dry_run=True)
    assert reached(fake, cuts_of(result).values()).ratio <= 0.2 * 1.05


def test_a_ratio_is_that_of_the_model_with_cuts_to_the_whole_one(
    net: ModelProto, fake: FakeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OrtTimer, "time_models", lambda self, models, *_: [10.0, 4.0][: len(models)]
    )
    plan = alds_onnx.compress(net, latency_ratio=0.4, dry_run=True).plan
    assert plan.budget == Budget(kind=BudgetKind.LATENCY, before=10, removed=0.6)
    with pytest.raises(BudgetError, match=r"the fastest model that was found has 0\.40"):
        alds_onnx.compress(net, latency_ratio=0.3, dry_run=True)


def test_a_ratio_goes_with_other_budgets(
    net: ModelProto, fake: FakeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_nets(monkeypatch, fake)
    result = alds_onnx.compress(net, latency_ratio=0.8, cr=0.6, dry_run=True)
    assert result.plan.removed >= 0.6
    assert reached(fake, cuts_of(result).values()).ratio <= 0.8 * 1.05


def test_a_ratio_out_of_reach_is_refused(
    net: ModelProto, fake: FakeTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.slowness = 1000.0
    time_nets(monkeypatch, fake)
    with pytest.raises(BudgetError, match=r"latency ratio of 0\.5 is out of reach: no cut"):
        alds_onnx.compress(net, latency_ratio=0.5, dry_run=True)


def test_a_ratio_that_no_model_reaches_is_refused() -> None:
    tried: list[float] = []

    def ratio_of(saving: float) -> float:
        tried.append(saving)
        return 0.9

    with pytest.raises(BudgetError, match=r"the fastest model that was found has 0\.90"):
        corrected_saving(0.5, ratio_of, 0.95)
    assert tried == [0.5, 0.95]


def test_curves_that_promise_what_no_model_keeps_are_asked_for_more() -> None:
    tried: list[float] = []

    def ratio_of(saving: float) -> float:
        tried.append(saving)
        return 1.02

    with pytest.raises(BudgetError, match=r"the fastest model that was found has 1\.02"):
        corrected_saving(0.9, ratio_of, 0.95)
    assert tried == [pytest.approx(0.1), 0.95]


def test_four_models_are_tried_at_most() -> None:
    tried: list[float] = []

    def ratio_of(saving: float) -> float:
        tried.append(saving)
        return 0.52 - 0.001 * len(tried)

    assert corrected_saving(0.5, ratio_of, 0.95) == tried[-1]
    assert tried == sorted(set(tried))
    assert len(tried) == 4


def test_the_nearest_of_the_models_is_kept_where_more_is_out_of_reach() -> None:
    def ratio_of(saving: float) -> float:
        if saving > 0.55:
            raise BudgetError("out of reach")
        return 0.52

    assert corrected_saving(0.5, ratio_of, 0.95) == 0.5
    with pytest.raises(BudgetError, match="out of reach"):
        corrected_saving(0.4, ratio_of, 0.95)


def test_every_scheme_costs_its_time(net: ModelProto, fake: FakeTimes) -> None:
    fake.slow_schemes = frozenset({Scheme.SPLIT_WIDTH})
    counts = {s: (1, 2, 3, 16) if s is not Scheme.TUCKER2 else () for s in Scheme}
    spectra = spectra_of_schemes(np.eye(SHAPE.out_features, SHAPE.num_columns), SHAPE, counts)
    rule = Alignment(preset=preset(Runtime.ORT))
    cost = measure_latency_cost(layer_times(net), {"t1": spectra}, rule)
    assert cost.dense("t1", SHAPE) == DENSE + CALL
    for scheme in Scheme:
        second = 32 if scheme is Scheme.TUCKER2 else 0
        cut = Cut(num_slices=1, rank=16, scheme=scheme, rank_out=second)
        found = int(cost.cuts("t1", SHAPE, one_cut(cut))[0])
        if scheme in fake.slow_schemes:
            assert found > DENSE + CALL
        else:
            assert found == pytest.approx(fake.cut(cut) + CALL, rel=1e-3)
    aligned = Cut(num_slices=3, rank=16, scheme=Scheme.SPLIT_HEIGHT)
    assert cost.cuts("t1", SHAPE, one_cut(aligned))[0] < DENSE + CALL


def test_what_was_not_timed_costs_more_than_the_dense_layer() -> None:
    grid = Grid(ranks=(1, 9))
    curve = TimeCurve(dense=100.0, grid=grid, times=np.array([[10.0], [20.0]]))
    variants = [
        Variant(name="a", scheme=Scheme.ENCODE, num_slices=1, aligned=aligned)
        for aligned in (False, True)
    ]
    cost = LatencyCost(
        curves=dict.fromkeys(variants, curve), blocks={"a": 16, "b": 16}, whole={"a": 100}
    )
    cut = Cut(num_slices=1, rank=3)
    assert cost_of(cost, "a", SHAPE, cut) == 12
    assert cost_of(cost, "a", SHAPE, replace(cut, scheme=Scheme.DECODE)) == 101
    assert cost_of(cost, "a", SHAPE, replace(cut, rank=10)) == 101
    assert (cost.dense("b", SHAPE), cost_of(cost, "b", SHAPE, cut)) == (0, 1)
    assert cost.most_saved() == int(0.995 * 90)


def test_a_model_that_does_not_run_has_no_time() -> None:
    node = helper.make_node("Twist", ["x"], ["h"], domain="unknown")
    product = helper.make_node("MatMul", ["h", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 16])
    weight = numpy_helper.from_array(np.eye(32, 16, dtype=np.float32), "w")
    graph = helper.make_graph([node, product], "g", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("unknown", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(UsageError, match="--latency-ratio: the model cannot be timed"):
        alds_onnx.compress(model, latency_ratio=0.5, dry_run=True)
