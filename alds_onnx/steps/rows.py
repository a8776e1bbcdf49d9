"""The rows of the plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.scopes import Site
from alds_onnx.steps.survey import Survey, Weight
from alds_onnx.values import CutError, Decision, Factors, FloatArray, LayerPlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """A weight's factors as the model will hold them, and their errors.

    Attributes
    ----------
    weight, factors, error
        What was cut, to what, and the error of the weight.
    bias
        A new bias, shape (f,); None leaves the old one.
    local_error, output_error
        As in `LayerPlan`; None without calibration data.
    """

    weight: Weight
    factors: Factors
    error: CutError
    bias: FloatArray | None = None
    local_error: float | None = None
    output_error: float | None = None


def plan_rows(
    survey: Survey, decompositions: Sequence[Decomposition], macs: dict[Site, int | None]
) -> tuple[LayerPlan, ...]:
    """Make a row for every layer, in graph order."""
    done = {
        layer.name: decomposition
        for decomposition in decompositions
        for layer in decomposition.weight.layers
    }
    return tuple(
        _row(layer, done.get(layer.name), macs.get(layer.site), layer.name in survey.excluded)
        for layer in survey.found
    )


def _row(
    layer: Layer | Skipped, done: Decomposition | None, macs: int | None, excluded: bool
) -> LayerPlan:
    if isinstance(layer, Skipped):
        count = int(np.prod(layer.dims, dtype=np.int64)) if layer.dims else 0
        return LayerPlan(
            name=layer.name,
            op=layer.op,
            weight=layer.weight_name,
            shape=layer.dims,
            decision=Decision.SKIP,
            reason=layer.reason,
            parameters_before=count,
            parameters_after=count,
            macs_before=macs,
            macs_after=macs,
        )
    dense = layer.shape.num_parameters
    after = done.factors.cut.num_parameters(layer.shape) if done else dense
    kept = "excluded by the user" if excluded else "whole at this budget"
    return LayerPlan(
        name=layer.name,
        op=layer.op,
        weight=layer.weight_name,
        shape=layer.source.shape,
        decision=Decision.DECOMPOSE if done else Decision.KEEP,
        reason="" if done else kept,
        cut=done.factors.cut if done else None,
        error=done.error if done else None,
        parameters_before=dense,
        parameters_after=after,
        macs_before=macs,
        macs_after=None if macs is None else macs // dense * after,
        local_error=done.local_error if done else None,
        output_error=done.output_error if done else None,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Sum of what is known; None if nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
