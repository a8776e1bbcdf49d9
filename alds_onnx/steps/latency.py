"""Budgets of time: what cuts save by measured tables, and the whole model until it fits.

A layer on its own is timed at a few ranks for every number of slices that the runtime is fast at;
between them, time is a straight line. The search then counts what every cut takes. What it finds is
built with zeros for weights, since time does not depend on them, and timed against the original:
what that differs from the tables corrects what they are asked for, a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alds_onnx.cuts import Cut, Cuts, FloatArray, IntArray, LayerShape, Scheme
from alds_onnx.errors import BudgetError, UsageError
from alds_onnx.search.alignment import Alignment
from alds_onnx.steps.budgets import Limit
from alds_onnx.steps.pace import Pace, block_of
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Budget, BudgetKind

# Ranks of the table, as parts of the largest that saves parameters.
_PARTS = (1.0, 0.7, 0.45, 0.25, 0.12)
# Whole models that are built and timed.
_ROUNDS = 4
# What is aimed at, as a part of the ratio that was asked for, and what is near enough: a little
# below, since the round that is kept is one that chance has favoured.
_AIM, _LOW, _HIGH = 0.955, 0.92, 0.985
# A ratio that is missed by more than this is out of reach.
_MISSED = 1.05
# Most that the tables are asked to save, and how much of what they can: whole numbers and the
# steps between ranks leave a little.
_MOST, _NEARLY = 0.98, 0.995


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Line:
    """Nanoseconds by rank: straight between the ranks that were measured, both ascending.

    Smaller ranks take as long as the smallest; of larger ones nothing is known.
    """

    ranks: FloatArray
    times: FloatArray

    def at(self, ranks: IntArray, unknown: int) -> FloatArray:
        return np.interp(ranks, self.ranks, self.times, right=unknown)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nanoseconds:
    """Time of one run, by tables of cuts of the paper's scheme.

    Attributes
    ----------
    whole
        Of the dense layers, by name; 0 where it is not known.
    lines
        By layer, number of slices, and whether the rank is a multiple of the runtime's block. A cut
        without a line takes longer than the layer.
    """

    whole: Mapping[str, int]
    lines: Mapping[tuple[str, int, bool], _Line]

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""
        return self.whole.get(name, 0)

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut."""
        ranks, unknown = cuts.rank, self.dense(name, shape) + 1
        costs = np.full(len(ranks), unknown, np.int64)
        for aligned in (False, True) if cuts.scheme is Scheme.ENCODE else ():
            line = self.lines.get((name, cuts.num_slices, aligned))
            own = np.equal(ranks % block_of(shape) == 0, aligned)
            if line is not None:
                costs[own] = np.maximum(0, line.at(ranks[own], unknown)).astype(np.int64)
        return costs


def make_table(
    survey: Survey, alignment: Alignment, names: Sequence[str], pace: Pace
) -> Nanoseconds:
    """Time the layers at a few ranks for each number of slices that the rule allows."""
    layers = {weight.name: weight.layers[0] for weight in survey.weights()}
    groups = {
        (name, k): _ranks(layers[name].shape, k, alignment)
        for name in names
        for k in alignment.counts(layers[name].shape, layers[name].slice_counts)
    }
    pace.measure(
        (name, Cut(num_slices=k, rank=rank))
        for (name, k), ranks in groups.items()
        for rank in ranks
    )
    whole: dict[str, int] = {}
    lines: dict[tuple[str, int, bool], _Line] = {}
    for (name, k), ranks in groups.items():
        block = block_of(layers[name].shape)
        timed = [(rank, pace.timing(name, Cut(num_slices=k, rank=rank))) for rank in ranks]
        known = [(rank, timing) for rank, timing in timed if timing is not None]
        if not known:
            continue
        # Layers are only compared with what was timed in turns with them.
        own = whole.setdefault(name, int(np.median([t.dense for _, t in known])))
        for aligned in (False, True):
            points = [(r, own - t.saved) for r, t in known if (r % block == 0) is aligned]
            if points:
                lines[name, k, aligned] = _rising(points)
    return Nanoseconds(whole=whole, lines=lines)


def _ranks(shape: LayerShape, num_slices: int, alignment: Alignment) -> list[int]:
    """A few of the ranks that are allowed, aligned ones and others apart, ascending."""
    if num_slices == 1:
        alignment = alignment.tiers()[:2][-1]  # one slice may have any rank before all else fails
    allowed = alignment.ranks(shape, num_slices, shape.max_rank(num_slices))
    aligned = allowed % block_of(shape) == 0
    return sorted({*_spread(allowed[aligned]), *_spread(allowed[~aligned])})


def _spread(ranks: IntArray) -> set[int]:
    if not len(ranks):
        return set()
    wanted = [part * ranks[-1] for part in _PARTS]
    return {int(ranks[np.abs(ranks - rank).argmin()]) for rank in wanted}


def _rising(points: Sequence[tuple[int, float]]) -> _Line:
    """A line that never falls with the rank, as times do but for noise."""
    ranks, times = np.array(points, np.float64).T
    return _Line(ranks=ranks, times=np.maximum.accumulate(times))


def most_saved(table: Nanoseconds) -> int:
    """Nanoseconds that are saved with every layer at its fastest."""
    fastest: dict[str, float] = {name: float(own) for name, own in table.whole.items()}
    for (name, _, _), line in table.lines.items():
        fastest[name] = min(fastest[name], float(line.times[0]))
    return int(_NEARLY * sum(own - max(0.0, fastest[name]) for name, own in table.whole.items()))


def latency_limit(ratio: float, before: float, table: Nanoseconds) -> Limit:
    """A budget of time: `before` nanoseconds of a run, of which `ratio` may be left."""
    budget = Budget(kind=BudgetKind.LATENCY, before=max(1, round(before)), removed=1 - ratio)
    return Limit(budget=budget, cost=table)


def corrected(
    limits: Sequence[Limit],
    choose: Callable[[Sequence[Limit]], Mapping[str, Cut]],
    ratio_of: Callable[[Mapping[str, Cut]], float],
    most: float = _MOST,
) -> tuple[Limit, ...]:
    """Ask the tables for more or less until the whole model takes the time that it may.

    Parameters
    ----------
    limits
        All budgets; one is of time.
    choose
        Searches within them.
    ratio_of
        Builds a model with these cuts and times it against the original.
    most
        Part of the time that the tables can save.

    Returns
    -------
    The budgets, that of time with what the tables are to save so that the ratio is kept.

    Raises
    ------
    BudgetError
        If the ratio is out of reach.
    """
    asked = next(x.budget.removed for x in limits if x.budget.kind is BudgetKind.LATENCY)
    wanted, aimed = 1 - asked, min(asked, most)
    if most <= 0:
        raise BudgetError(
            f"a latency ratio of {wanted:g} is out of reach: no cut of any layer is faster on this "
            "machine; give --cr or --cr-macs instead"
        )
    best: tuple[float, tuple[Limit, ...]] | None = None
    for _ in range(_ROUNDS):
        tried = tuple(_aimed(limit, aimed) for limit in limits)
        try:
            found = ratio_of(choose(tried))
        except BudgetError:
            if best is None:
                raise
            break
        if best is None or abs(found - _AIM * wanted) < abs(best[0] - _AIM * wanted):
            best = found, tried
        if _LOW * wanted <= found <= _HIGH * wanted:
            break
        saved = max(1 - found, 0.1 * aimed)  # tables that promise ten times too much are wrong
        aimed = float(min(_MOST, most, aimed * (1 - _AIM * wanted) / saved))
    assert best is not None
    if best[0] > _MISSED * wanted:
        raise BudgetError(
            f"a latency ratio of {wanted:g} is out of reach: the fastest model that was found has "
            f"{best[0]:.2f}; raise --latency-ratio"
        )
    return best[1]


def _aimed(limit: Limit, removed: float) -> Limit:
    return replace(limit, aimed=removed) if limit.budget.kind is BudgetKind.LATENCY else limit


def need_pace(pace: Pace | None) -> Pace:
    """Refuse a budget of time where nothing can be timed.

    Raises
    ------
    UsageError
        Says what else to do.
    """
    if pace is None:
        raise UsageError(
            "--latency-ratio: so large a model is not timed; give --cr or --cr-macs instead"
        )
    return pace
