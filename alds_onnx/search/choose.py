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
from typing import TypeAlias

import numpy as np

from alds_onnx.cuts import FloatArray, LayerShape, Spectra, read_only
from alds_onnx.search.alignment import Alignment
from alds_onnx.search.budgets import Allowance, CostedBudget, search_within
from alds_onnx.search.costs import PARAMETERS_ONLY, Cost, CostModel, Excluded
from alds_onnx.search.frontier import Choice, Frontier, Point, frontier
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.leftovers import finer_points
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost
from alds_onnx.search.ties import break_ties

#: Converts the local errors of a layer, given by name, to the errors that the search counts.
Damage: TypeAlias = Callable[[str, FloatArray], FloatArray]


def local_error(name: str, error: FloatArray) -> FloatArray:
    """Count the local errors unchanged."""
    return error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The candidate cuts of all layers, and the errors that the search counts.

    `scale` has factors for the errors of single layers, by name; it is 1 for the others.
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
        found = (frontier(n, spectra, rule, cost_model) for n, spectra in self.spectra.items())
        return {f.name: replace(f, error=self._errors(f.name, f.error)) for f in found}

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

    def _errors(self, name: str, error: FloatArray) -> FloatArray:
        return self.damage(name, error) * self.scale.get(name, 1.0)


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

    `seed` is that of the random starts.
    """

    seed: int

    def search(
        self, candidates: Candidates, rule: Alignment, cost_model: CostModel, allowed: int
    ) -> dict[str, Point]:
        """Choose a point for every layer."""
        generator = np.random.default_rng(self.seed)
        return search_iterative(candidates.counted_spectra(), allowed, generator, rule)

    def value(self, errors: Sequence[float]) -> float:
        """Give the largest error."""
        return max(errors, default=0.0)


#: The quantity that a search minimises, and how it is made small.
Objective: TypeAlias = LargestError | SumOfErrors | Iterative


def choose(
    candidates: Candidates,
    budgets: Sequence[CostedBudget],
    objective: Objective,
    alignment: Alignment,
    *,
    tolerance: float,
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> Choice:
    """Choose the cut of every layer.

    The choice does not depend on the order of the layers, nor on chance except for the seed of
    `Iterative`. BudgetError if a budget is out of reach.

    Parameters
    ----------
    candidates, objective
        The cuts to choose from, and the quantity to minimise.
    budgets
        All of them are kept. Without any, nothing is cut.
    alignment
        The rule of the target. A finer rule replaces it if the objective would otherwise be more
        than `tolerance` times as large.
    tolerance
        At least 1.
    scale
        Factors for the errors of single layers, by name. The choice of the rule ignores them.
    excluded
        Cuts that must not be chosen.
    """
    if not budgets:
        return Choice(cuts={})
    rules = alignment.tiers()

    def smallest(cost: Cost) -> int:
        frontiers = candidates.frontiers(rules[-1], CostModel(cost=cost, excluded=excluded or {}))
        return smallest_cost(list(frontiers.values()))

    def solve(allowance: Allowance) -> Choice:
        cost_model = CostModel(cost=allowance.cost, excluded=excluded or {})
        allowed = allowance.allowed
        found = [_solved(candidates, objective, rule, cost_model, allowed) for rule in rules]
        at = affordable([choice.objective for choice in found], tolerance)
        first, judged = found[at], candidates
        if scale:
            judged = replace(candidates, scale=scale)
            first = _solved(judged, objective, rules[at], cost_model, allowed)
        finer = [judged.frontiers(rule, cost_model) for rule in rules[at + 1 :]]
        return _with_leftovers(first, finer, allowance, objective)

    return search_within(budgets, candidates.shapes, smallest, solve)


def affordable(objectives: Sequence[float], price: float) -> int:
    """Index of the first of some rules whose optimum is at most `price` times the last one's."""
    return next(i for i, reached in enumerate(objectives) if reached <= price * objectives[-1])


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
        points |= finer_points(points, frontiers, left, allowance.slack)
    return _choice(points, objective)
