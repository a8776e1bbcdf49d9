"""Budgets and what is counted in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from alds_onnx.cuts import Cut, LayerShape, Work
from alds_onnx.errors import BudgetError, UsageError
from alds_onnx.graph.scopes import Site
from alds_onnx.search.costs import PARAMETERS, Cost, Macs
from alds_onnx.search.several import Room, search_within
from alds_onnx.settings import Settings
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Budget, BudgetKind

_T = TypeVar("_T")

# Part of what there was before: what is removed should be within a point of what was asked for.
_SLACK = 0.01

_NOUNS = {
    BudgetKind.PARAMETERS: "parameters",
    BudgetKind.MACS: "multiply-accumulates",
    BudgetKind.LATENCY: "nanoseconds of a run",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """A budget, and what each layer takes of it.

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
        """What the layers take as they are."""
        return sum(self.cost.dense(name, shape) for name, shape in shapes.items())

    def room(self, shapes: Mapping[str, LayerShape]) -> Room:
        """What the layers may take, beside what stays; negative if that is too much."""
        budget = self.budget if self.aimed is None else replace(self.budget, removed=self.aimed)
        return Room(
            cost=self.cost,
            allowed=budget.limit - (budget.before - self.dense(shapes)),
            slack=int(_SLACK * budget.before),
        )

    def out_of_reach(self, shapes: Mapping[str, LayerShape], smallest: int) -> BudgetError:
        """Say how far the model can be compressed at most: `smallest` is all layers' least."""
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
    """A budget of parameters."""
    return Limit(budget=Budget(before=before, removed=removed), cost=PARAMETERS)


def make_limits(
    survey: Survey, settings: Settings, parameters: int, work: Mapping[Site, Work]
) -> tuple[Limit, ...]:
    """The budgets that were asked for, but those of time.

    Parameters
    ----------
    survey, settings
        The model, and what was asked for.
    parameters
        Of the whole model.
    work
        What its layers compute in one run, where known.

    Raises
    ------
    UsageError
        If multiply-accumulates are to be removed, and none are known.
    """
    limits = []
    if settings.cr is not None:
        limits.append(parameter_limit(parameters, settings.cr))
    if settings.cr_macs is not None:
        before = sum(own.macs for own in work.values())
        if not before:
            raise UsageError(
                "--cr-macs: the shapes of the model are not known, and so its multiply-accumulates "
                "are not: give --input-shape or --calibration"
            )
        budget = Budget(kind=BudgetKind.MACS, before=before, removed=settings.cr_macs)
        limits.append(Limit(budget=budget, cost=Macs(work=_work_of_weights(survey, work))))
    return tuple(limits)


def _work_of_weights(survey: Survey, work: Mapping[Site, Work]) -> dict[str, tuple[Work, ...]]:
    """What the layers that read each weight compute, by the weight's name."""
    return {
        weight.name: tuple(work[layer.site] for layer in weight.layers if layer.site in work)
        for weight in survey.weights()
    }


def within(
    limits: Sequence[Limit],
    shapes: Mapping[str, LayerShape],
    smallest: Callable[[Cost], int],
    solve: Callable[[Room], _T],
    read: Callable[[_T], tuple[float, Mapping[str, Cut | None]]],
) -> _T:
    """Search within all budgets; see `alds_onnx.search.several.search_within`.

    Parameters
    ----------
    limits
        One or more.
    shapes
        Of the layers, by name.
    smallest
        The least that all layers can take together.
    solve, read
        Searches within one budget; tells the objective and the cuts of what that found.

    Raises
    ------
    BudgetError
        If one is out of reach, or all together are.
    """
    rooms = [limit.room(shapes) for limit in limits]
    for limit, room in zip(limits, rooms, strict=True):
        least = smallest(limit.cost)
        if room.allowed < least:
            raise limit.out_of_reach(shapes, least)
    found = search_within(rooms, shapes, solve, read)
    if found is None:
        kinds = " and ".join(_NOUNS[limit.budget.kind] for limit in limits)
        raise BudgetError(f"the budgets of {kinds} are out of reach together: lower one of them")
    return found
