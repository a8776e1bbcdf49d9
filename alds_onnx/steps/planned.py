"""Applying the cuts of a plan instead of searching for them."""

from __future__ import annotations

from collections.abc import Sequence

from alds_onnx.cuts import Cut, Scheme, distinct
from alds_onnx.errors import PlanError
from alds_onnx.graph.layers import Layer
from alds_onnx.plans import match_plan
from alds_onnx.steps.rows import plan_rows
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Plan


def planned_cuts(survey: Survey, plan: Plan) -> dict[str, Cut]:
    """Give the cuts of a plan, by the names of the weights.

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
