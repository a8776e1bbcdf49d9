"""Excludes slow cuts: what a search chooses is timed, and the search runs again without them.

A cut is slow if the layer in isolation (`timing.layer_models`) takes longer with it than without.
Then its curve over the ranks is measured (`timing.curves`), and the ranks above the largest one
that is faster are excluded. In the end every cut is faster, or the layer stays dense. If that
leaves too little for a budget, slow cuts are allowed again, those that cost least time first: a
budget is kept whenever it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from alds_onnx.cuts import Cut, LayerShape, Scheme, distinct
from alds_onnx.errors import BudgetError
from alds_onnx.search.alignment import FREE
from alds_onnx.search.costs import Excluded, ExcludedRanks
from alds_onnx.search.frontier import Choice
from alds_onnx.timing.curves import Grid, TimeCurve, Variant, grid_of, measure_curves
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.timer import Timing

# Searches until layers that are still slow may have one slice of the paper's scheme only.
_ROUNDS = 10
# Searches at most; the cuts that are slow then are reported.
_MOST_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCut:
    """A cut that is slower than the dense layer: the name of its weight, and both times."""

    name: str
    cut: Cut
    timing: Timing


def find_slow_cuts(times: LayerTimes, cuts: Mapping[str, Cut]) -> list[SlowCut]:
    """Give those cuts that take longer than the dense layers; cuts are keyed by weight name."""
    times.measure(cuts.items())
    timed = ((name, cut, times.timing(name, cut)) for name, cut in cuts.items())
    return [
        SlowCut(name=name, cut=cut, timing=timing)
        for name, cut, timing in timed
        if timing is not None and timing.saved < 0
    ]


def exclude_slow_cuts(
    choose: Callable[[Excluded], Choice],
    times: LayerTimes,
    excluded: Excluded,
) -> tuple[Choice, Excluded]:
    """Search until every cut that is chosen is faster than the dense layer; see the module.

    `excluded` is left out to begin with; what the last search left out is part of the result.
    BudgetError if a budget is out of reach whatever the time.
    """
    known = {name: tuple(own) for name, own in excluded.items()}
    lost: dict[str, float] = {}  # nanoseconds, the most that a slow cut of a weight has lost
    allowed: frozenset[str] = frozenset()  # weights that may be slow
    for attempt in count(1):
        found, allowed = _within_reach(choose, known, lost, allowed)
        slow = find_slow_cuts(times, found.cuts)
        new = [one for one in slow if one.name not in allowed]
        if not new or attempt == _MOST_ROUNDS:
            return found, _without(known, allowed)
        for one in new:
            lost[one.name] = max(lost.get(one.name, 0.0), -one.timing.saved)
        fresh = exclusions(times, new)
        if attempt >= _ROUNDS:
            fresh = {
                name: (*own, *_all_but_plain(times.shape(name))) for name, own in fresh.items()
            }
        known |= {name: (*known.get(name, ()), *own) for name, own in fresh.items()}
    raise AssertionError  # the last round returns


def _without(excluded: Excluded, allowed: frozenset[str]) -> Excluded:
    return {name: own for name, own in excluded.items() if name not in allowed}


def _within_reach(
    choose: Callable[[Excluded], Choice],
    excluded: Excluded,
    lost: Mapping[str, float],
    allowed: frozenset[str],
) -> tuple[Choice, frozenset[str]]:
    """Search; allow slow cuts of as few weights as the budgets need, the cheapest first."""
    try:
        return choose(_without(excluded, allowed)), allowed
    except BudgetError:
        order = sorted(set(excluded) - allowed, key=lambda name: (lost.get(name, 0.0), name))
    low, high = 0, len(order)  # to allow none is not enough
    while high - low > 1:
        middle = (low + high) // 2
        try:
            choose(_without(excluded, allowed | set(order[:middle])))
            high = middle
        except BudgetError:
            low = middle
    allowed |= set(order[:high])
    return choose(_without(excluded, allowed)), allowed


def exclusions(times: LayerTimes, slow: Sequence[SlowCut]) -> dict[str, tuple[ExcludedRanks, ...]]:
    """Exclude slow cuts, and others like them that their curves show to be slow."""
    grids = {one: _smaller_ranks(times, one) for one in slow}
    curves = measure_curves(
        times, {_variant(times, one): grid for one, grid in grids.items() if grid}
    )
    return {one.name: _exclusion(times, one, curves.get(_variant(times, one))) for one in slow}


def _variant(times: LayerTimes, slow: SlowCut) -> Variant:
    cut, block = slow.cut, times.block(slow.name)
    return Variant(
        name=slow.name,
        scheme=cut.scheme,
        num_slices=cut.num_slices,
        aligned=cut.rank % block == 0 and cut.rank_out % block == 0,
    )


def _smaller_ranks(times: LayerTimes, slow: SlowCut) -> Grid | None:
    """The ranks of the curve below that of the cut, and its own; all of a cut with two ranks."""
    cut, name = slow.cut, slow.name
    grid = grid_of(times.shape(name), _variant(times, slow), times.block(name), FREE)
    if grid is None or cut.rank_out:
        return grid
    return replace(grid, ranks=(*(rank for rank in grid.ranks if rank < cut.rank), cut.rank))


def _exclusion(
    times: LayerTimes, slow: SlowCut, curve: TimeCurve | None
) -> tuple[ExcludedRanks, ...]:
    """Exclude the cut and all ranks above the largest that is faster, by the curve."""
    cut, block = slow.cut, times.block(slow.name)
    fastest = min(cut.rank - 1, curve.largest_rank(cut) if curve else 0)
    excluded = ExcludedRanks(scheme=cut.scheme, num_slices=cut.num_slices, above=fastest)
    if cut.rank_out:
        return (excluded,)
    excluded = replace(excluded, block=block, aligned=cut.rank % block == 0)
    if excluded.aligned or excluded.above or excluded.num_slices == 1:
        return (excluded,)
    # Unaligned slices that are slow at any rank: onnxruntime takes its slow path, which is slow
    # whatever their number.
    several = (k for k in excluded.scheme.structure.slice_counts(times.shape(slow.name)) if k > 1)
    return tuple(replace(excluded, num_slices=k) for k in several)


def _all_but_plain(shape: LayerShape) -> tuple[ExcludedRanks, ...]:
    """Exclude everything but one slice of the paper's scheme."""
    return tuple(
        ExcludedRanks(scheme=scheme, num_slices=k, above=0)
        for scheme in distinct(shape, Scheme)
        for k in scheme.structure.slice_counts(shape)
        if k > 1 or scheme is not Scheme.ENCODE
    )
