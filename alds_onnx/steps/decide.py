"""Choosing the cut of every weight: by a search within a budget, or from a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alds_onnx.errors import BudgetError, PlanError
from alds_onnx.graph.layers import Layer
from alds_onnx.plans import match_plan
from alds_onnx.search.alignment import Alignment, affordable
from alds_onnx.search.exact import search_exact
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.limits import smallest_parameters
from alds_onnx.search.rest import spend_rest
from alds_onnx.settings import Settings
from alds_onnx.steps.rows import plan_rows
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Budget, Cut, LayerShape, Plan, Scheme, SearchMethod, Spectra

# Part of the model's parameters: what is removed should be within a point of what was asked for.
_SLACK = 0.01
#: How much larger errors may be for ranks that the runtime is fast at.
PRICE = 1.5


def decide(
    survey: Survey, curves: dict[str, Spectra], settings: Settings, budget: Budget | None
) -> dict[str, Cut]:
    """The cut of each weight that is decomposed, by the weight's name."""
    if settings.plan is not None:
        return planned_cuts(survey, settings.plan)
    if budget is None or not curves:
        return {}
    layers_before = sum(s.shape.num_parameters for s in curves.values())
    allowed = allowance(budget, layers_before, smallest_parameters(curves))
    tiers = settings.alignment.tiers()
    found = [_search(curves, settings, allowed, rule) for rule in tiers]
    at = affordable([_largest_error(cuts, curves) for cuts in found], PRICE)
    chosen = spend_rest(found[at], curves, allowed, slack(budget), tiers[at])
    return {name: cut for name, cut in chosen.items() if cut is not None}


def _search(
    curves: dict[str, Spectra], settings: Settings, allowed: int, rule: Alignment
) -> dict[str, Cut | None]:
    if settings.search is SearchMethod.EXACT:
        return search_exact(curves, allowed, rule)
    return search_iterative(curves, allowed, np.random.default_rng(settings.seed), rule)


def _largest_error(cuts: dict[str, Cut | None], curves: dict[str, Spectra]) -> float:
    return max(curves[name].relative_error(cut) if cut else 0.0 for name, cut in cuts.items())


def slack(budget: Budget) -> int:
    """How many parameters of a budget may stay unspent where aligned ranks come in large steps."""
    return int(_SLACK * budget.before)


def allowance(budget: Budget, layers_before: int, smallest: int) -> int:
    """How many parameters the layers may have, of `layers_before` now and at least `smallest`.

    Raises
    ------
    BudgetError
        If that is fewer than they can have; names the largest possible ratio.
    """
    allowed = budget.limit - (budget.before - layers_before)
    if allowed < smallest:
        raise _out_of_reach(budget, smallest - layers_before)
    return allowed


def _out_of_reach(budget: Budget, change: int) -> BudgetError:
    """Say how far the model can be compressed at most.

    `change` is what the smallest cuts of all layers add to the parameters (negative).
    """
    largest = -change / budget.before
    digits = max(4, 3 - int(np.floor(np.log10(largest)))) if largest > 0 else 4
    shown = np.floor(largest * 10**digits) / 10**digits
    return BudgetError(
        f"a compression ratio of {budget.removed:g} is out of reach: with every layer at rank 1 at "
        f"most {shown:.{digits}f} of the {budget.before:,} parameters can be removed; lower --cr"
    )


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
        if cut.scheme not in shape.distinct(Scheme):
            raise PlanError(
                f"{where}: on this weight the scheme '{cut.scheme.value}' is the same as "
                f"'{shape.distinct([cut.scheme])[0].value}': write that"
            )
        if cut.scheme is Scheme.TUCKER2:
            _check_tucker2(shape, cut, where)
            continue
        if shape.in_channels % cut.num_slices:
            raise PlanError(
                f"{where}: {cut.num_slices} slices do not divide {shape.in_channels} channels"
            )
        if cut.num_slices > 1 and layer.slice_counts == (1,):
            raise PlanError(f"{where}: only 1 slice can be built, the activation has unknown rank")
        folded = shape.folded(cut.scheme)
        highest = min(folded.out_features, folded.num_columns // cut.num_slices)
        if cut.rank > highest:
            raise PlanError(f"{where}: rank {cut.rank} is above the full rank, {highest}")


def _check_tucker2(shape: LayerShape, cut: Cut, where: str) -> None:
    if cut.num_slices != 1:
        raise PlanError(f"{where}: 'tucker2' has 1 slice, not {cut.num_slices}")
    decode = shape.folded(Scheme.DECODE)
    for name, rank, highest in (
        ("rank", cut.rank, min(decode.out_features, decode.num_columns)),
        ("rank_out", cut.rank_out, min(shape.out_features, shape.num_columns)),
    ):
        if rank > highest:
            raise PlanError(f"{where}: `{name}` {rank} is above the full rank, {highest}")
