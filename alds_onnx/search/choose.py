"""The search: from error curves and budgets to the cut of every layer.

The objective says what the search minimises. `LargestError` and `SumOfErrors` find the optimum over
all allowed numbers of slices and ranks; `Iterative` is the heuristic of the ALDS paper. The rest is
the same for every objective and every metric:

    rules      cuts that are fast on the target first, finer rules where these lose too much
    budgets    one, or more at once (`search.budgets`)
    leftovers  the part of a budget that aligned ranks leave goes to single layers
               (`search.leftovers`)
    excluded   cuts that must not be chosen, such as slow ones
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np

from alds_onnx.cuts import Cut, FloatArray, LayerShape, Spectra, read_only
from alds_onnx.search.alignment import Alignment, affordable
from alds_onnx.search.budgets import Allowance, CostedBudget, search_within
from alds_onnx.search.costs import PARAMETERS_ONLY, Cost, CostModel, ExcludedRanks
from alds_onnx.search.frontier import Frontier, Point, frontier, frontier_of_curves
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.leftovers import finer_points
from alds_onnx.search.minmax import minimize_maximum_error
from alds_onnx.search.smallest import smallest_total
from alds_onnx.search.ties import break_ties

#: Cuts excluded from the search, by layer name.
Excluded: TypeAlias = Mapping[str, Sequence[ExcludedRanks]]
#: Converts the local errors of a layer, given by name, to the errors that the search counts.
Damage: TypeAlias = Callable[[str, FloatArray], FloatArray]

_NOTHING: Excluded = MappingProxyType({})


def local_error(name: str, error: FloatArray) -> FloatArray:
    """Count the local errors unchanged."""
    return error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The candidate cuts of all layers, and their errors.

    Attributes
    ----------
    spectra
        Error curves by layer name.
    damage
        Converts local errors to the errors that the search counts.
    scale
        Factors for the errors of single layers, by name; 1 for the other layers.
    """

    spectra: Mapping[str, Spectra]
    damage: Damage = local_error
    scale: Mapping[str, float] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """Sizes of the layers."""
        return {name: spectra.shape for name, spectra in self.spectra.items()}

    def frontiers(
        self, rule: Alignment, cost_model: CostModel = PARAMETERS_ONLY
    ) -> dict[str, Frontier]:
        """Build the frontier of each layer over the cuts that a rule allows."""
        return {
            name: self._counted(frontier(name, spectra, rule, cost_model))
            for name, spectra in self.spectra.items()
        }

    def frontier_of(self, name: str, num_slices: int, rule: Alignment) -> Frontier:
        """Build the frontier of one layer over the ranks at k slices of the paper's scheme."""
        spectra = self.spectra[name]
        curves = (spectra.curve(num_slices),)
        return self._counted(frontier_of_curves(name, spectra.shape, curves, rule))

    def counted_spectra(self) -> dict[str, Spectra]:
        """Give the error curves in the errors that the search counts."""
        return {
            name: replace(
                spectra,
                curves=tuple(
                    replace(c, relative_error=read_only(self._errors(name, c.relative_error)))
                    for c in spectra.curves
                ),
            )
            for name, spectra in self.spectra.items()
        }

    def _counted(self, local: Frontier) -> Frontier:
        return replace(local, error=self._errors(local.name, local.error))

    def _errors(self, name: str, error: FloatArray) -> FloatArray:
        return self.damage(name, error) * self.scale.get(name, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The chosen cuts.

    Attributes
    ----------
    cuts
        Cuts by layer name; layers that stay dense have none.
    points
        The choice of each layer on its frontier; empty if there was no search.
    objective
        Value of the objective; infinite if nothing fits the budget.
    """

    cuts: Mapping[str, Cut]
    points: Mapping[str, Point] = field(default_factory=dict)
    objective: float = 0.0


class Objective(Protocol):
    """The quantity that a search minimises."""

    def search(
        self, candidates: Candidates, rule: Alignment, cost_model: CostModel, allowed: int
    ) -> dict[str, Point]:
        """Choose a point for every layer, with a total cost of at most `allowed` if possible."""

    def value(self, errors: Sequence[float]) -> float:
        """Compute the objective from the errors of all layers."""


@dataclass(frozen=True, slots=True)
class LargestError:
    """The largest error of a layer; the search finds its global minimum."""

    def search(
        self, candidates: Candidates, rule: Alignment, cost_model: CostModel, allowed: int
    ) -> dict[str, Point]:
        """Choose a point for every layer."""
        frontiers = candidates.frontiers(rule, cost_model)
        points = _points(frontiers, minimize_maximum_error(list(frontiers.values()), allowed))
        return break_ties(points, candidates.spectra, rule, cost_model, allowed)

    def value(self, errors: Sequence[float]) -> float:
        """Give the largest error."""
        return max(errors, default=0.0)


@dataclass(frozen=True, slots=True)
class SumOfErrors:
    """The sum of the errors of the layers."""

    def search(
        self, candidates: Candidates, rule: Alignment, cost_model: CostModel, allowed: int
    ) -> dict[str, Point]:
        """Choose a point for every layer."""
        frontiers = candidates.frontiers(rule, cost_model)
        return _points(frontiers, minimize_sum_of_errors(list(frontiers.values()), allowed))

    def value(self, errors: Sequence[float]) -> float:
        """Give the sum of the errors."""
        return sum(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterative:
    """The largest error of a layer, by Algorithm 1 of the ALDS paper. Counts parameters only.

    Attributes
    ----------
    seed
        Seed of the random starts.
    """

    seed: int

    def search(
        self, candidates: Candidates, rule: Alignment, cost_model: CostModel, allowed: int
    ) -> dict[str, Point]:
        """Choose a point for every layer."""
        generator = np.random.default_rng(self.seed)
        cuts = search_iterative(candidates.counted_spectra(), allowed, generator, rule)
        return {
            name: self._point(candidates, rule, name, cuts[name]) for name in candidates.spectra
        }

    def value(self, errors: Sequence[float]) -> float:
        """Give the largest error."""
        return max(errors, default=0.0)

    @staticmethod
    def _point(candidates: Candidates, rule: Alignment, name: str, cut: Cut | None) -> Point:
        found = candidates.frontier_of(name, cut.num_slices if cut else 1, rule)
        rank = cut.rank if cut else 0
        return Point(found, int(np.flatnonzero(found.rank == rank)[0]))


def choose(
    candidates: Candidates,
    budgets: Sequence[CostedBudget],
    objective: Objective,
    alignment: Alignment,
    *,
    tolerance: float,
    scale: Mapping[str, float] | None = None,
    excluded: Excluded = _NOTHING,
) -> Choice:
    """Choose the cut of every layer.

    Parameters
    ----------
    candidates
        The candidate cuts.
    budgets
        All of them are kept. Without any, nothing is cut.
    objective
        The quantity to minimise.
    alignment
        The rule of the target. A finer rule replaces it if the objective would otherwise be more
        than `tolerance` times as large.
    tolerance
        At least 1.
    scale
        Factors for the errors of single layers, by name. The choice of the rule ignores them.
    excluded
        Cuts that must not be chosen.

    Returns
    -------
    The choice. It does not depend on the order of the layers, nor on chance except for the seed of
    `Iterative`.

    Raises
    ------
    BudgetError
        If a budget is out of reach.
    """
    if not budgets or not candidates.spectra:
        return Choice(cuts={})
    rules = alignment.tiers()

    def smallest(cost: Cost) -> int:
        cost_model = CostModel(cost=cost, excluded=excluded)
        return smallest_total(candidates.spectra, rules[-1], cost_model)

    def solve(allowance: Allowance) -> Choice:
        cost_model, allowed = CostModel(cost=allowance.cost, excluded=excluded), allowance.allowed
        found = [_solved(candidates, objective, rule, cost_model, allowed) for rule in rules]
        at = affordable([choice.objective for choice in found], tolerance)
        first, judged = found[at], candidates
        if scale:
            judged = replace(candidates, scale=scale)
            first = _solved(judged, objective, rules[at], cost_model, allowed)
        finer = [judged.frontiers(rule, cost_model) for rule in rules[at + 1 :]]
        return _with_leftovers(first, finer, allowance, objective)

    return search_within(budgets, candidates.shapes, smallest, solve)


def _points(frontiers: Mapping[str, Frontier], chosen: Sequence[int]) -> dict[str, Point]:
    return {f.name: Point(f, i) for f, i in zip(frontiers.values(), chosen, strict=True)}


def _solved(
    candidates: Candidates,
    objective: Objective,
    rule: Alignment,
    cost_model: CostModel,
    allowed: int,
) -> Choice:
    """Search by one rule. The objective is infinite if no cut that it allows fits."""
    points = objective.search(candidates, rule, cost_model, allowed)
    fits = sum(point.cost for point in points.values()) <= allowed
    return _choice(points, objective if fits else None)


def _choice(points: Mapping[str, Point], objective: Objective | None) -> Choice:
    cuts = {name: point.cut for name, point in points.items()}
    errors = [point.error for point in points.values()]
    return Choice(
        cuts={name: cut for name, cut in cuts.items() if cut is not None},
        points=points,
        objective=math.inf if objective is None else objective.value(errors),
    )


def _with_leftovers(
    choice: Choice,
    finer: Sequence[Mapping[str, Frontier]],
    allowance: Allowance,
    objective: Objective,
) -> Choice:
    """Give single layers finer ranks while more than the slack is left."""
    points = dict(choice.points)
    for frontiers in finer:
        left = allowance.allowed - sum(point.cost for point in points.values())
        names = list(points)
        new = finer_points(
            list(points.values()), [frontiers[name] for name in names], left, allowance.slack
        )
        points |= {names[position]: point for position, point in new.items()}
    return _choice(points, objective)
