"""No slow cuts, and budgets of time, by a clock that is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import alds_onnx
from alds_onnx import BudgetError, Measuring, Result, Runtime, UsageError
from alds_onnx.cuts import Cut, LayerShape, Scheme
from alds_onnx.evaluate.sessions import Execution, RunError
from alds_onnx.evaluate.timing import Timing
from alds_onnx.evaluate.timings import Timings
from alds_onnx.graph.alone import Alone
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.shapes import infer, known_shapes
from alds_onnx.search.costs import PARAMETERS, Ban, cost_of, one_cut
from alds_onnx.settings import Settings, silent
from alds_onnx.steps import pace
from alds_onnx.steps.budgets import Limit, parameter_limit
from alds_onnx.steps.clock import Clock as Steps
from alds_onnx.steps.latency import Nanoseconds, _Line, corrected, latency_limit
from alds_onnx.steps.survey import make_survey
from alds_onnx.values import Budget, BudgetKind

CHANNELS, LAYERS = 48, 3
CALL = 1000.0
SHAPE = LayerShape(out_features=CHANNELS, in_channels=CHANNELS, kernel=(3, 3))


@dataclass
class Clock:
    """Nanoseconds: one for each entry of a dense weight; `slowness` for each of a factor."""

    slowness: float = 0.9
    slices: float = 1.0
    slow_schemes: frozenset[Scheme] = frozenset()
    fails: bool = False
    asked: int = 0

    def time_cuts(self, alone: Alone, cuts: Sequence[Cut], execution: object) -> list[Timing]:
        self.asked += len(cuts)
        if self.fails:
            raise RunError("no")
        dense = float(np.prod(alone.skeleton.graph.initializer[0].dims))
        return [Timing(dense=dense + CALL, cut=self.cut(c) + CALL) for c in cuts]

    def cut(self, cut: Cut) -> float:
        factor = self.slowness * (self.slices if cut.num_slices > 1 else 1.0)
        if cut.scheme in self.slow_schemes:
            factor *= 1000.0
        return factor * cut.num_parameters(SHAPE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time_cuts", made.time_cuts)
    return made


@pytest.fixture(scope="module")
def net() -> ModelProto:
    """Convolutions whose spectra fall at different rates."""
    generator, nodes, weights, tensor = np.random.default_rng(0), [], [], "x"
    for i in range(LAYERS):
        u = np.linalg.qr(generator.standard_normal((CHANNELS, CHANNELS)))[0]
        v = np.linalg.qr(generator.standard_normal((9 * CHANNELS, CHANNELS)))[0]
        array = u * np.exp(-(0.02 + 0.03 * i) * np.arange(CHANNELS)) @ v.T
        weight = array.reshape(CHANNELS, CHANNELS, 3, 3).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        made = f"t{i}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [made], made, pads=[1] * 4))
        tensor = made
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 6, 6])
    y = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, CHANNELS, 6, 6])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measured(net: ModelProto, **options: object) -> Result:
    given = {"cr": 0.4, "target": Runtime.NONE, "measuring": Measuring.ALWAYS, "dry_run": True}
    return alds_onnx.compress(net, **given | options)  # type: ignore[arg-type]


def cuts_of(result: Result) -> dict[str, Cut]:
    return {row.name: row.cut for row in result.plan.layers if row.cut}


def test_where_all_is_faster_nothing_changes(net: ModelProto, clock: Clock) -> None:
    free, timed = alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True), measured(net)
    assert cuts_of(timed) == cuts_of(free)
    assert clock.asked
    assert (free.report.timed, timed.report.timed) == (False, True)


@pytest.mark.parametrize(("slowness", "slices"), [(0.9, 5.0), (0.9, 1000.0), (3.0, 1.0)])
def test_no_slow_cut_is_chosen_where_faster_ones_keep_the_budget(
    net: ModelProto, clock: Clock, slowness: float, slices: float
) -> None:
    clock.slowness, clock.slices = slowness, slices
    free = alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    assert any(cut.num_slices > 1 for cut in cuts_of(free).values())
    result = measured(net)
    assert result.plan.removed >= 0.4
    assert not result.report.warnings
    dense = CHANNELS * CHANNELS * 9
    assert all(clock.cut(cut) <= dense for cut in cuts_of(result).values())


def test_schemes_that_are_slow_leave_the_others(net: ModelProto, clock: Clock) -> None:
    schemes = tuple(Scheme)
    free = alds_onnx.compress(net, cr=0.4, schemes=schemes, dry_run=True)
    clock.slow_schemes = frozenset(cut.scheme for cut in cuts_of(free).values())
    assert 0 < len(clock.slow_schemes) < len(schemes)
    result = measured(net, schemes=schemes)
    assert result.plan.removed >= 0.4
    assert not clock.slow_schemes & {cut.scheme for cut in cuts_of(result).values()}
    assert not result.report.warnings


@pytest.mark.parametrize(
    "cut",
    [
        Cut(num_slices=2, rank=7, scheme=Scheme.DECODE),
        Cut(num_slices=1, rank=16, scheme=Scheme.SPLIT_WIDTH),
        Cut(num_slices=1, rank=7, scheme=Scheme.TUCKER2, rank_out=9),
    ],
    ids=lambda cut: cut.scheme.value,
)
def test_bans_are_of_the_scheme_that_was_slow(net: ModelProto, clock: Clock, cut: Cut) -> None:
    clock.slowness = 1000.0
    survey = make_survey(load_model(net), Settings(cr=0.4, threads=1))
    shapes, execution = known_shapes(survey.index, infer(net)), Execution(threads=1)
    made = pace.Pace(survey, shapes, execution, Timings(execution, None), Steps(silent))
    (bans,) = made.bans(made.slow({"t1": cut})).values()
    assert {ban.scheme for ban in bans} == {cut.scheme}
    smaller = replace(cut, rank=cut.rank - 5)
    for one in (cut, *([smaller] if cut.scheme is Scheme.TUCKER2 else [])):
        assert not all(ban.allows(one_cut(one)).all() for ban in bans)


def test_a_budget_wins_over_time_and_the_report_names_what_is_slower(
    net: ModelProto, clock: Clock
) -> None:
    clock.slowness = 1000.0
    result = measured(net)
    assert result.plan.removed >= 0.4
    slow = [n for n, cut in cuts_of(result).items() if clock.cut(cut) > CHANNELS * CHANNELS * 9]
    assert slow
    (warning,) = [w for w in result.report.warnings if w.startswith("slower in onnxruntime")]
    assert all(f"'{name}'" in warning for name in slow)


def test_no_more_layers_are_slow_than_the_budget_needs(net: ModelProto, clock: Clock) -> None:
    clock.slowness = 1000.0
    result = measured(net, cr=0.2)
    assert result.plan.removed >= 0.2
    assert len(cuts_of(result)) == 1


@pytest.mark.parametrize(
    ("most", "spared"),
    [(3, ""), (2, "b"), (1, "bc"), (0, "abc")],
)
def test_bans_that_cost_least_time_are_lifted_first(most: int, spared: str) -> None:
    def choose(bans: Mapping[str, Sequence[Ban]]) -> frozenset[str]:
        if len(bans) > most:
            raise BudgetError("out of reach")
        return frozenset(bans)

    bans = {name: (Ban(num_slices=1, above=0),) for name in "abc"}
    left, lifted = pace._within_reach(choose, bans, {"a": 3.0, "b": 1.0, "c": 2.0}, frozenset())
    assert lifted == frozenset(spared)
    assert left == frozenset("abc") - lifted


def test_slower_ones_may_be_allowed(net: ModelProto, clock: Clock) -> None:
    clock.slowness = 1000.0
    result = measured(net, allow_slower=True)
    assert cuts_of(result) == cuts_of(
        alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    )
    assert any(w.startswith("slower in onnxruntime") for w in result.report.warnings)


@pytest.mark.parametrize("measuring", [Measuring.NEVER, Measuring.CHEAP])
def test_nothing_is_timed_unasked_or_where_it_would_say_nothing(
    net: ModelProto, clock: Clock, measuring: Measuring
) -> None:
    measured(net, measuring=measuring)
    assert clock.asked == 0


def test_what_cannot_be_timed_is_taken_as_it_is(net: ModelProto, clock: Clock) -> None:
    clock.fails = True
    result = measured(net)
    assert cuts_of(result) == cuts_of(
        alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    )
    assert clock.asked == len(set(cuts_of(result).values()))


def test_with_calibration_data_too(net: ModelProto, clock: Clock) -> None:
    clock.slices = 1000.0
    data = [{"x": np.random.default_rng(1).standard_normal((16, CHANNELS, 6, 6), np.float32)}]
    free = ModelProto()
    free.CopyFrom(net)
    for value in (free.graph.input[0], free.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    result = measured(free, calibration=data)
    assert result.plan.removed >= 0.4
    assert all(cut.num_slices == 1 for cut in cuts_of(result).values())


def whole(clock: Clock, off: float):
    """Time of the whole net by the clock; the tables are off by a factor in what they save."""

    def measure(self: pace.Pace, cuts: Mapping[str, Cut], feeds: object) -> Timing:
        dense = float(CHANNELS * CHANNELS * 9)
        saved = sum(dense - clock.cut(cut) for cut in cuts.values())
        return Timing(dense=LAYERS * dense, cut=LAYERS * dense - off * saved)

    return measure


@pytest.mark.parametrize("off", [1.0, 0.8, 1.3])
@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_a_ratio_of_time_is_kept_though_tables_are_off(
    net: ModelProto, clock: Clock, monkeypatch: pytest.MonkeyPatch, off: float, ratio: float
) -> None:
    measure = whole(clock, off)
    monkeypatch.setattr(pace.Pace, "whole", measure)
    result = alds_onnx.compress(net, latency_ratio=ratio, dry_run=True)
    reached = measure(None, cuts_of(result), None).ratio  # type: ignore[arg-type]
    assert 0.9 * ratio <= reached <= 1.05 * ratio
    assert result.plan.budget == Budget(
        kind=BudgetKind.LATENCY, before=LAYERS * CHANNELS * CHANNELS * 9, removed=1 - ratio
    )


def test_a_ratio_is_that_of_the_model_with_cuts_to_the_whole_one(
    net: ModelProto, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "in_turns", lambda sessions, *_, **__: [10.0, 4.0][: len(sessions)])
    plan = alds_onnx.compress(net, latency_ratio=0.4, dry_run=True).plan
    assert plan.budget == Budget(kind=BudgetKind.LATENCY, before=10, removed=0.6)
    with pytest.raises(BudgetError, match=r"the fastest model that was found has 0\.40"):
        alds_onnx.compress(net, latency_ratio=0.3, dry_run=True)


def test_a_ratio_of_time_goes_with_other_budgets(
    net: ModelProto, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = whole(clock, 1.0)
    monkeypatch.setattr(pace.Pace, "whole", measure)
    result = alds_onnx.compress(net, latency_ratio=0.8, cr=0.6, dry_run=True)
    assert result.plan.removed >= 0.6
    reached = measure(None, cuts_of(result), None).ratio  # type: ignore[arg-type]
    assert reached <= 0.8 * 1.05


def test_a_ratio_of_time_out_of_reach_is_refused(
    net: ModelProto, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.slowness = 1000.0
    monkeypatch.setattr(pace.Pace, "whole", whole(clock, 1.0))
    with pytest.raises(BudgetError, match=r"latency ratio of 0\.5 is out of reach"):
        alds_onnx.compress(net, latency_ratio=0.5, dry_run=True)


def test_a_ratio_of_time_that_no_model_reaches_is_refused() -> None:
    table = Nanoseconds(whole={}, lines={})
    limits = (latency_limit(0.5, 100.0, table), parameter_limit(100, 0.3))
    tried: list[float | None] = []

    def choose(limits: Sequence[Limit]) -> dict[str, Cut]:
        tried.append(limits[0].aimed)
        assert limits[1].aimed is None
        return {}

    with pytest.raises(BudgetError, match=r"the fastest model that was found has 0\.90"):
        corrected(limits, choose, lambda cuts: 0.9)
    assert len(tried) == 4
    assert limits[1].cost is PARAMETERS


def test_tables_promise_nothing_of_other_schemes() -> None:
    line = _Line(ranks=np.array([1.0, 9.0]), times=np.array([10.0, 20.0]))
    table = Nanoseconds(
        whole={"a": 100}, lines={("a", 1, aligned): line for aligned in (False, True)}
    )
    cut = Cut(num_slices=1, rank=3)
    assert cost_of(table, "a", SHAPE, cut) < 100
    assert cost_of(table, "a", SHAPE, replace(cut, scheme=Scheme.DECODE)) > 100


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
