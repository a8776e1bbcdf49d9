"""Applying the cuts of a plan instead of searching for them."""

from __future__ import annotations

from collections.abc import Sequence

from alds_onnx.cuts import Cut, LayerShape, Scheme
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
