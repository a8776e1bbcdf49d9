"""Budgets, and a search within one or several of them.

What all budgets allow, a mixture of their costs allows too, each as a share of its budget and with
any weights. So the optimum within a mixture that keeps all budgets is the optimum within all of
them; that of one budget alone is the simplest case. Where no mixture keeps all of them, weights
move to what is overspent, and the mixture's own limit shrinks: the result then keeps all budgets,
but may not be optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from alds_onnx.cuts import Cut, FloatArray, LayerShape
from alds_onnx.errors import BudgetError
from alds_onnx.search.costs import PARAMETERS, Cost, Mixture, total_cost
from alds_onnx.values import Budget, BudgetKind

# Fraction of the original cost that may stay unspent: what is removed should be within a point of
# what was asked for.
_SLACK = 0.01
# Mixtures of costs that are tried; each is a search.
_MIXTURES = 12

_NOUNS = {
    BudgetKind.PARAMETERS: "parameters",
    BudgetKind.MACS: "multiply-accumulates",
    BudgetKind.LATENCY: "nanoseconds of a run",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Allowance:
    """What the layers may cost together.

    Attributes
    ----------
    cost
        What is counted.
    allowed, slack
        How much the layers may cost, and how much of that may stay unspent.
    """

    cost: Cost
    allowed: int
    slack: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """A budget, and what each layer costs of it.

    Attributes
    ----------
    budget, cost
        What was asked for, and what is counted.
    aimed
        The fraction that the search removes, where its counting is known to be off; None: the same.
    """

    budget: Budget
    cost: Cost
    aimed: float | None = None

    def dense(self, shapes: Mapping[str, LayerShape]) -> int:
        """Cost of the layers as they are."""
        return sum(self.cost.dense(name, shape) for name, shape in shapes.items())

    def allowance(self, shapes: Mapping[str, LayerShape]) -> Allowance:
        """What is left for the layers after everything else; negative if that is too much."""
        budget = self.budget if self.aimed is None else replace(self.budget, removed=self.aimed)
        return Allowance(
            cost=self.cost,
            allowed=budget.limit - (budget.before - self.dense(shapes)),
            slack=int(_SLACK * budget.before),
        )

    def out_of_reach(self, shapes: Mapping[str, LayerShape], smallest: int) -> BudgetError:
        """Say how far the model can be compressed; `smallest` is the least possible cost."""
        budget = self.budget
        largest = (self.dense(shapes) - smallest) / budget.before
        digits = max(4, 3 - int(np.floor(np.log10(largest)))) if largest > 0 else 4
        most = f"{np.floor(largest * 10**digits) / 10**digits:.{digits}f}"
        if budget.kind is BudgetKind.LATENCY:
            return BudgetError(
                f"a latency ratio of {1 - budget.removed:g} is out of reach: with every layer at "
                f"its fastest at most {most} of the time is saved; raise --latency-ratio"
            )
        option = "--cr" if budget.kind is BudgetKind.PARAMETERS else "--cr-macs"
        return BudgetError(
            f"a compression ratio of {budget.removed:g} is out of reach: with every layer at "
            f"rank 1 at most {most} of the {budget.before:,} {_NOUNS[budget.kind]} can be removed; "
            f"lower {option}"
        )


def parameter_limit(before: int, removed: float) -> Limit:
    """Limit the parameters of a model that has `before` of them."""
    return Limit(budget=Budget(before=before, removed=removed), cost=PARAMETERS)


class Solution(Protocol):
    """What a search finds: the value of its objective, and the cut of each layer that is cut."""

    @property
    def objective(self) -> float:
        """The smaller, the better."""

    @property
    def cuts(self) -> Mapping[str, Cut]:
        """By layer name."""


_S = TypeVar("_S", bound=Solution)


def search_within(
    limits: Sequence[Limit],
    shapes: Mapping[str, LayerShape],
    smallest: Callable[[Cost], int],
    solve: Callable[[Allowance], _S],
) -> _S:
    """Search within all budgets.

    Parameters
    ----------
    limits
        The budgets, one or more.
    shapes
        Sizes of the layers by name.
    smallest
        The least that all layers can cost together.
    solve
        Searches within one budget.

    Returns
    -------
    The solution with the smallest objective of those that keep all budgets. With one budget, what
    `solve` returns.

    Raises
    ------
    BudgetError
        If one budget is out of reach, or all together are.
    """
    allowances = [limit.allowance(shapes) for limit in limits]
    for limit, allowance in zip(limits, allowances, strict=True):
        least = smallest(limit.cost)
        if allowance.allowed < least:
            raise limit.out_of_reach(shapes, least)
    found = search_allowances(allowances, shapes, solve)
    if found is None:
        kinds = " and ".join(_NOUNS[limit.budget.kind] for limit in limits)
        raise BudgetError(f"the budgets of {kinds} are out of reach together: lower one of them")
    return found


def search_allowances(
    allowances: Sequence[Allowance],
    shapes: Mapping[str, LayerShape],
    solve: Callable[[Allowance], _S],
) -> _S | None:
    """The best solution that keeps all of one or more allowances; None if none was found.

    With one allowance, what `solve` returns.
    """
    if len(allowances) == 1:
        return solve(allowances[0])

    def shares(solution: _S) -> FloatArray:
        """Cost of a solution as a fraction of each allowance."""
        totals = (total_cost(one.cost, shapes, solution.cuts) for one in allowances)
        return np.array(
            [t / max(1, one.allowed) for t, one in zip(totals, allowances, strict=True)]
        )

    for allowance in allowances:
        single = solve(allowance)
        if (shares(single) <= 1).all():
            return single
    best: _S | None = None
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
    """A mixture of all budgets, with the fraction `shrunk` of its limit."""
    mixture = Mixture(
        parts=tuple(one.cost for one in allowances),
        allowed=tuple(one.allowed for one in allowances),
        weights=tuple(weights),
    )
    slack = min(one.slack / max(1, one.allowed) for one in allowances)
    return Allowance(
        cost=mixture, allowed=int(shrunk * mixture.limit), slack=int(slack * mixture.limit)
    )
