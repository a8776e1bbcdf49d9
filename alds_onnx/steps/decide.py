"""Choosing the cut of every weight: by a search within a budget, or from a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from alds_onnx.cuts import Cut, Scheme, Spectra, distinct
from alds_onnx.errors import PlanError
from alds_onnx.graph.layers import Layer
from alds_onnx.plans import match_plan
from alds_onnx.search.alignment import Alignment, affordable
from alds_onnx.search.costs import Ban, Cost, Terms, total_cost
from alds_onnx.search.exact import search_exact
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.limits import smallest_total
from alds_onnx.search.rest import spend_rest
from alds_onnx.search.several import Room
from alds_onnx.settings import Settings
from alds_onnx.steps.budgets import Limit, within
from alds_onnx.steps.rows import plan_rows
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Plan, SearchMethod

#: How much larger errors may be for ranks that the runtime is fast at.
PRICE = 1.5

Bans: TypeAlias = Mapping[str, Sequence[Ban]]
_Found: TypeAlias = tuple[float, Mapping[str, "Cut | None"]]


def decide(
    curves: Mapping[str, Spectra],
    settings: Settings,
    limits: Sequence[Limit],
    bans: Bans = MappingProxyType({}),
) -> dict[str, Cut]:
    """The cut of each weight that is decomposed, by the weight's name.

    Parameters
    ----------
    curves
        Error curves by the names of the weights.
    settings
        How to search.
    limits
        Budgets, all of which are kept; none: nothing is cut.
    bans
        Cuts that there are not, by weight.

    Raises
    ------
    BudgetError
        If a budget is out of reach.
    """
    if not limits or not curves:
        return {}
    shapes = {name: spectra.shape for name, spectra in curves.items()}
    tiers = settings.alignment.tiers()

    def smallest(cost: Cost) -> int:
        return smallest_total(curves, tiers[-1], Terms(cost=cost, bans=bans))

    def solve(room: Room) -> _Found:
        return _search_tiers(curves, settings, room, bans)

    _, chosen = within(limits, shapes, smallest, solve, lambda found: found)
    return {name: cut for name, cut in chosen.items() if cut is not None}


def _search_tiers(
    curves: Mapping[str, Spectra], settings: Settings, room: Room, bans: Bans
) -> _Found:
    """The largest error of a layer, and the cuts, by the first rule that is not too dear."""
    tiers, terms = settings.alignment.tiers(), Terms(cost=room.cost, bans=bans)
    found = [_search(curves, settings, room.allowed, rule, terms) for rule in tiers]
    at = affordable([error for error, _ in found], PRICE)
    chosen = spend_rest(found[at][1], curves, room.allowed, room.slack, tiers[at], terms=terms)
    return _largest_error(chosen, curves), chosen


def _search(
    curves: Mapping[str, Spectra], settings: Settings, allowed: int, rule: Alignment, terms: Terms
) -> _Found:
    """By one rule; an infinite error where bans leave nothing that fits."""
    if settings.search is SearchMethod.ITERATIVE:
        generator = np.random.default_rng(settings.seed)
        cuts = search_iterative(curves, allowed, generator, rule)
    else:
        cuts = search_exact(curves, allowed, rule, terms)
    shapes = {name: spectra.shape for name, spectra in curves.items()}
    fits = total_cost(terms.cost, shapes, cuts) <= allowed
    return _largest_error(cuts, curves) if fits else math.inf, cuts


def _largest_error(cuts: Mapping[str, Cut | None], curves: Mapping[str, Spectra]) -> float:
    return max(curves[name].relative_error(cut) if cut else 0.0 for name, cut in cuts.items())


def planned_cuts(survey: Survey, plan: Plan) -> dict[str, Cut]:
    """Take the cuts of a plan, by the names of the weights.

    Raises
    ------
    PlanError
        If the plan does not fit the model.
    """
    rows = {row.name: row for row in plan_rows(survey, [], {})}
    cuts = match_plan(plan, rows, survey.loaded.sha256)
    chosen: dict[str, Cut] = {}
    for weight in survey.weights():
        wanted = {cuts.get(layer.name) for layer in weight.layers}
        if len(wanted) > 1:
            names = ", ".join(f"'{layer.name}'" for layer in weight.layers)
            raise PlanError(f"the rows {names} share a weight: their cuts must be the same")
        cut = wanted.pop()
        if cut is not None:
            _check_cut(weight.layers, cut)
            chosen[weight.name] = cut
    return chosen


def _check_cut(layers: Sequence[Layer], cut: Cut) -> None:
    for layer in layers:
        shape, where = layer.shape, f"the plan's row '{layer.name}'"
        if cut.scheme not in distinct(shape, Scheme):
            raise PlanError(
                f"{where}: on this weight the scheme '{cut.scheme.value}' is the same as "
                f"'{distinct(shape, [cut.scheme])[0].value}': write that"
            )
        misfit = cut.scheme.structure.misfit(shape, cut, cut.scheme.value)
        if misfit:
            raise PlanError(f"{where}: {misfit}")
        if cut.num_slices > 1 and layer.slice_counts == (1,):
            raise PlanError(f"{where}: only 1 slice can be built, the activation has unknown rank")
