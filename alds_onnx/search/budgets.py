"""Budgets, and a search within one or several of them.

A solution that keeps all budgets also keeps every mixture of them: a weighted sum of the costs,
each divided by its budget. So if the optimum within a mixture keeps all budgets, it is the optimum
within all of them. A single budget is the simplest mixture. Where the optimum of no mixture keeps
all budgets, the weights move to the overspent ones and the mixture shrinks: the result then keeps
all budgets, but may not be optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alds_onnx.cuts import FloatArray, LayerShape
from alds_onnx.errors import BudgetError
from alds_onnx.search.costs import PARAMETERS, Cost, Mixture, total_cost
from alds_onnx.search.frontier import Choice
from alds_onnx.values import Budget, BudgetKind

# Fraction of the original cost that may stay unspent: the removed fraction should be within one
# percentage point of the requested one.
_SLACK = 0.01
# Number of mixtures of costs to try; each takes one search.
_MIXTURES = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Allowance:
    """The largest total cost of the layers, and how much of it may stay unspent."""

    cost: Cost
    allowed: int
    slack: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostedBudget:
    """A budget, and how the cost of a layer is counted.

    Attributes
    ----------
    budget, cost
        The requested budget, and the cost that it bounds.
    aimed
        The fraction that the search removes instead of the requested one, to correct a cost that is
        only an estimate; None for no correction.
    """

    budget: Budget
    cost: Cost
    aimed: float | None = None

    def dense(self, shapes: Mapping[str, LayerShape]) -> int:
        """Cost of the layers as they are."""
        return sum(self.cost.dense(name, shape) for name, shape in shapes.items())

    def allowance(self, shapes: Mapping[str, LayerShape]) -> Allowance:
        """Subtract everything but the layers from the budget; the result may be negative."""
        budget = self.budget if self.aimed is None else replace(self.budget, removed=self.aimed)
        return Allowance(
            cost=self.cost,
            allowed=budget.allowed - (budget.before - self.dense(shapes)),
            slack=int(_SLACK * budget.before),
        )

    def out_of_reach(self, shapes: Mapping[str, LayerShape], smallest: int) -> BudgetError:
        """Make the error that says how far the model can be compressed.

        `smallest` is the least possible cost of the layers.
        """
        budget = self.budget
        largest = (self.dense(shapes) - smallest) / max(1, budget.before)
        if largest <= 0 and budget.kind is not BudgetKind.LATENCY:
            return BudgetError(
                f"a compression ratio of {budget.removed:g} is out of reach: "
                f"none of the {budget.before:,} {budget.kind.unit} can be removed"
            )
        digits = max(4, 3 - int(np.floor(np.log10(largest)))) if largest > 0 else 4
        most = f"{np.floor(largest * 10**digits) / 10**digits:.{digits}f}"
        if budget.kind is BudgetKind.LATENCY:
            return BudgetError(
                f"a latency ratio of {1 - budget.removed:g} is out of reach: with every layer at "
                f"its fastest at most {most} of the time is saved; raise --latency-ratio"
            )
        return BudgetError(
            f"a compression ratio of {budget.removed:g} is out of reach: with every layer at "
            f"rank 1 at most {most} of the {budget.before:,} {budget.kind.unit} can be removed; "
            f"lower {budget.kind.option}"
        )


def parameter_budget(before: int, removed: float) -> CostedBudget:
    """Make a budget for the parameters of a model that has `before` of them."""
    return CostedBudget(budget=Budget(before=before, removed=removed), cost=PARAMETERS)


def search_within(
    budgets: Sequence[CostedBudget],
    shapes: Mapping[str, LayerShape],
    smallest: Callable[[Cost], int],
    solve: Callable[[Allowance], Choice],
) -> Choice:
    """Search within all budgets; `smallest` gives the least that all layers together can cost.

    Raises
    ------
    BudgetError
        If one budget is out of reach, or all together are.
    """
    allowances = [budget.allowance(shapes) for budget in budgets]
    for budget, allowance in zip(budgets, allowances, strict=True):
        least = smallest(budget.cost)
        if allowance.allowed < least:
            raise budget.out_of_reach(shapes, least)
    found = search_allowances(allowances, shapes, solve)
    if found is None:
        kinds = " and ".join(one.budget.kind.unit for one in budgets)
        raise BudgetError(f"the budgets of {kinds} are out of reach together: lower one of them")
    return found


def search_allowances(
    allowances: Sequence[Allowance],
    shapes: Mapping[str, LayerShape],
    solve: Callable[[Allowance], Choice],
) -> Choice | None:
    """Find the choice with the smallest objective that keeps all allowances; None if none does.

    With one allowance, this is the result of `solve`.
    """
    if len(allowances) == 1:
        return solve(allowances[0])

    def shares(choice: Choice) -> FloatArray:
        """Divide the cost of a choice by each allowance."""
        return np.array(
            [total_cost(one.cost, shapes, choice.cuts) / max(1, one.allowed) for one in allowances]
        )

    for allowance in allowances:
        single = solve(allowance)
        if (shares(single) <= 1).all():
            return single
    best: Choice | None = None
    weights, shrunk = np.full(len(allowances), 1 / len(allowances)), 1.0
    for _ in range(_MIXTURES):
        found = solve(_mixed(allowances, weights, shrunk))
        used = shares(found)
        if (used <= 1).all():
            best = found if best is None else min(best, found, key=lambda s: s.objective)
        else:
            shrunk /= np.sqrt(used.max())
        weights = weights * used**2
        weights /= weights.sum()
    return best


def _mixed(allowances: Sequence[Allowance], weights: FloatArray, shrunk: float) -> Allowance:
    """Mix all allowances, and shrink the mixture by the factor `shrunk`."""
    mixture = Mixture(
        parts=tuple(one.cost for one in allowances),
        allowed=tuple(one.allowed for one in allowances),
        weights=tuple(weights),
    )
    slack = min(one.slack / max(1, one.allowed) for one in allowances)
    return Allowance(
        cost=mixture, allowed=int(shrunk * mixture.limit), slack=int(slack * mixture.limit)
    )
