"""Slow cuts are excluded, by times that are a known function of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx import BudgetError, Measuring, Runtime
from alds_onnx.cuts import Cut, Scheme
from alds_onnx.search.costs import ExcludedRanks, one_cut
from alds_onnx.search.frontier import Choice
from alds_onnx.timing import slow_cuts
from alds_onnx.timing.slow_cuts import exclusions, find_slow_cuts
from tests.timing.fake import CHANNELS, DENSE, SHAPE, FakeTimes, cuts_of, layer_times, measured


def test_where_all_is_faster_nothing_changes(net: ModelProto, fake: FakeTimes) -> None:
    free, timed = alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True), measured(net)
    assert cuts_of(timed) == cuts_of(free)
    assert fake.asked
    assert (free.report.timed, timed.report.timed) == (False, True)


@pytest.mark.parametrize(("slowness", "slices"), [(0.9, 5.0), (0.9, 1000.0), (3.0, 1.0)])
def test_no_slow_cut_is_chosen_where_faster_ones_keep_the_budget(
    net: ModelProto, fake: FakeTimes, slowness: float, slices: float
) -> None:
    fake.slowness, fake.slices = slowness, slices
    free = alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    assert any(cut.num_slices > 1 for cut in cuts_of(free).values())
    result = measured(net)
    assert result.plan.removed >= 0.4
    assert not result.report.warnings
    assert all(fake.cut(cut) <= DENSE for cut in cuts_of(result).values())


# Recorded before the curves were shared with latency budgets.
@pytest.mark.parametrize(
    ("target", "slowness", "slices", "removed", "cuts"),
    [
        (Runtime.NONE, 0.9, 5.0, 0.4, {"t1": (1, 28), "t2": (12, 3)}),
        (Runtime.NONE, 0.9, 1000.0, 0.6, {"t0": (1, 30), "t1": (1, 13), "t2": (1, 8)}),
        (Runtime.NONE, 2.0, 1.0, 0.6, {"t0": (24, 6), "t1": (48, 3), "t2": (12, 7)}),
        (Runtime.NONE, 3.0, 1.0, 0.4, {"t1": (48, 2), "t2": (1, 14)}),
        (Runtime.NONE, 1.5, 1.5, 0.4, {"t1": (48, 3), "t2": (24, 5)}),
        (Runtime.NONE, 1000.0, 1.0, 0.2, {"t0": (48, 3)}),
        (Runtime.ORT, 1.2, 1.0, 0.6, {"t0": (48, 1), "t1": (24, 3), "t2": (1, 36)}),
        (Runtime.ORT, 2.0, 1.0, 0.4, {"t1": (48, 2), "t2": (1, 21)}),
        (Runtime.ORT, 3.0, 1.0, 0.6, {"t0": (1, 14), "t1": (1, 14), "t2": (1, 14)}),
        (Runtime.ORT, 0.9, 1000.0, 0.4, {"t1": (1, 21), "t2": (1, 13)}),
    ],
)
def test_the_same_cuts_are_chosen_as_before(
    net: ModelProto,
    fake: FakeTimes,
    target: Runtime,
    slowness: float,
    slices: float,
    removed: float,
    cuts: dict[str, tuple[int, int]],
) -> None:
    fake.slowness, fake.slices = slowness, slices
    found = measured(net, cr=removed, target=target, schemes=(Scheme.ENCODE,))
    assert cuts_of(found) == {name: Cut(num_slices=k, rank=j) for name, (k, j) in cuts.items()}


def test_schemes_that_are_slow_leave_the_others(net: ModelProto, fake: FakeTimes) -> None:
    schemes = tuple(Scheme)
    free = alds_onnx.compress(net, cr=0.4, schemes=schemes, dry_run=True)
    fake.slow_schemes = frozenset(cut.scheme for cut in cuts_of(free).values())
    assert 0 < len(fake.slow_schemes) < len(schemes)
    result = measured(net, schemes=schemes)
    assert result.plan.removed >= 0.4
    assert not fake.slow_schemes & {cut.scheme for cut in cuts_of(result).values()}
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
def test_exclusions_are_of_the_scheme_that_was_slow(
    net: ModelProto, fake: FakeTimes, cut: Cut
) -> None:
    fake.slowness = 1000.0
    times = layer_times(net)
    (bans,) = exclusions(times, find_slow_cuts(times, {"t1": cut})).values()
    assert {ban.scheme for ban in bans} == {cut.scheme}
    smaller = replace(cut, rank=cut.rank - 5)
    for one in (cut, *([smaller] if cut.scheme is Scheme.TUCKER2 else [])):
        assert not all(ban.allows(one_cut(one)).all() for ban in bans)


@pytest.mark.parametrize(
    "cut",
    [
        Cut(num_slices=1, rank=36),
        Cut(num_slices=3, rank=32),
        Cut(num_slices=2, rank=17, scheme=Scheme.DECODE),
        Cut(num_slices=1, rank=47, scheme=Scheme.SPLIT_HEIGHT),
        Cut(num_slices=1, rank=40, scheme=Scheme.TUCKER2, rank_out=45),
    ],
    ids=lambda cut: cut.scheme.value,
)
def test_ranks_that_are_faster_stay(net: ModelProto, fake: FakeTimes, cut: Cut) -> None:
    def scaled(rank: int) -> Cut:
        return replace(cut, rank=rank, rank_out=round(rank * cut.rank_out / cut.rank))

    fake.slowness = 1.1 * DENSE / cut.num_parameters(SHAPE)
    times = layer_times(net)
    (bans,) = exclusions(times, find_slow_cuts(times, {"t1": cut})).values()
    step = times.block("t1") if cut.rank % times.block("t1") == 0 else 1
    for rank in range(cut.rank, 0, -step):
        if step > 1 or rank % times.block("t1") or cut.scheme is Scheme.TUCKER2:
            allowed = all(ban.allows(one_cut(scaled(rank))).all() for ban in bans)
            # Two ranks that are rounded are a little off the straight line between the two.
            close = cut.scheme is Scheme.TUCKER2 and abs(fake.cut(scaled(rank)) / DENSE - 1) < 0.05
            assert close or allowed == (fake.cut(scaled(rank)) <= DENSE)


def test_a_layer_that_stays_slow_keeps_plain_cuts(net: ModelProto, fake: FakeTimes) -> None:
    plain = slow_cuts._all_but_plain(layer_times(net).shape("t1"))

    def allowed(cut: Cut) -> bool:
        return all(ban.allows(one_cut(cut)).all() for ban in plain)

    assert allowed(Cut(num_slices=1, rank=7))
    assert not allowed(Cut(num_slices=2, rank=7))
    for scheme in set(Scheme) - {Scheme.ENCODE}:
        assert not allowed(Cut(num_slices=1, rank=7, scheme=scheme, rank_out=7))


def test_a_budget_wins_over_time_and_the_report_names_what_is_slower(
    net: ModelProto, fake: FakeTimes
) -> None:
    fake.slowness = 1000.0
    result = measured(net)
    assert result.plan.removed >= 0.4
    slow = [n for n, cut in cuts_of(result).items() if fake.cut(cut) > DENSE]
    assert slow
    (warning,) = [w for w in result.report.warnings if w.startswith("slower in onnxruntime")]
    assert all(f"'{name}'" in warning for name in slow)


def test_no_more_layers_are_slow_than_the_budget_needs(net: ModelProto, fake: FakeTimes) -> None:
    fake.slowness = 1000.0
    result = measured(net, cr=0.2)
    assert result.plan.removed >= 0.2
    assert len(cuts_of(result)) == 1


@pytest.mark.parametrize(
    ("most", "spared"),
    [(3, ""), (2, "b"), (1, "bc"), (0, "abc")],
)
def test_slow_cuts_that_lose_least_time_are_allowed_first(most: int, spared: str) -> None:
    def choose(bans: Mapping[str, Sequence[ExcludedRanks]]) -> Choice:
        if len(bans) > most:
            raise BudgetError("out of reach")
        return Choice(cuts=dict.fromkeys(bans, Cut(num_slices=1, rank=1)))

    bans = {name: (ExcludedRanks(num_slices=1, above=0),) for name in "abc"}
    left, lifted = slow_cuts._within_reach(
        choose, bans, {"a": 3.0, "b": 1.0, "c": 2.0}, frozenset()
    )
    assert lifted == frozenset(spared)
    assert left.cuts.keys() == frozenset("abc") - lifted


def test_slower_ones_may_be_allowed(net: ModelProto, fake: FakeTimes) -> None:
    fake.slowness = 1000.0
    result = measured(net, allow_slower=True)
    assert cuts_of(result) == cuts_of(
        alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    )
    assert any(w.startswith("slower in onnxruntime") for w in result.report.warnings)


@pytest.mark.parametrize("measuring", [Measuring.NEVER, Measuring.CHEAP])
def test_nothing_is_timed_unasked_or_where_it_would_say_nothing(
    net: ModelProto, fake: FakeTimes, measuring: Measuring
) -> None:
    measured(net, measuring=measuring)
    assert fake.asked == 0


def test_what_cannot_be_timed_is_taken_as_it_is(net: ModelProto, fake: FakeTimes) -> None:
    fake.fails = True
    result = measured(net)
    assert cuts_of(result) == cuts_of(
        alds_onnx.compress(net, cr=0.4, target=Runtime.NONE, dry_run=True)
    )
    assert fake.asked == len(set(cuts_of(result).values()))


def test_with_calibration_data_too(net: ModelProto, fake: FakeTimes) -> None:
    fake.slices = 1000.0
    data = [{"x": np.random.default_rng(1).standard_normal((16, CHANNELS, 6, 6), np.float32)}]
    free = ModelProto()
    free.CopyFrom(net)
    for value in (free.graph.input[0], free.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    result = measured(free, calibration=data)
    assert result.plan.removed >= 0.4
    assert all(cut.num_slices == 1 for cut in cuts_of(result).values())
