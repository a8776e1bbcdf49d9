"""The rows of the plan, and the warnings of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alds_onnx.evaluate.samples import Samples
from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.scopes import Site
from alds_onnx.steps.survey import Survey, Weight
from alds_onnx.values import (
    CutError,
    Decision,
    Factors,
    FloatArray,
    LayerPlan,
    Plan,
    Status,
    Verification,
)

# A compressed model that takes this much longer is slower beyond the noise of the measurement.
_SLOWER = 1.05
# Relative error of an output above which accuracy is likely to suffer.
_LARGE_ERROR = 0.1
# Fewer calibration samples than this say too little about the directions that matter.
_FEW_SAMPLES = 32


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


def make_warnings(
    survey: Survey, plan: Plan, verification: Verification | None, samples: Samples | str
) -> tuple[str, ...]:
    """Say what the user should know."""
    warnings = []
    if not any(row.cut for row in plan.layers):
        warnings.append("no layer was decomposed: the model is unchanged")
    overridable = [
        layer.source.base.name
        for layer in survey.found
        if isinstance(layer, Layer)
        and layer.source.overridable
        and any(row.cut for row in plan.layers if row.name == layer.name)
    ]
    if overridable:
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(overridable))
        warnings.append(f"no longer graph inputs, because their weights were decomposed: {names}")
    if verification is not None and verification.status is Status.NOT_VALIDATED:
        warnings.append(f"not validated: {verification.reason}")
    ratio = verification.latency_ratio if verification else None
    if ratio is not None and ratio > _SLOWER:
        warnings.append(
            f"the compressed model takes {ratio:.2f} times as long in onnxruntime on this machine: "
            "fewer multiply-accumulates in grouped convolutions are not always faster"
        )
    if verification is not None and verification.fidelity and ratio is None:
        warnings.append("latency was not measured: two such large models do not fit side by side")
    if verification is not None and verification.fidelity:
        warnings += _warnings_of_data(verification)
    return tuple(warnings)


def _warnings_of_data(verification: Verification) -> list[str]:
    """What the inputs of the checks, and the errors on them, mean."""
    if not verification.random_inputs:
        if verification.samples >= _FEW_SAMPLES:
            return []
        return [
            f"only {verification.samples} calibration samples: the factors may fit them and "
            f"little else; {_FEW_SAMPLES} or more are better"
        ]
    warnings = [
        "measured on random inputs, which say little about accuracy: "
        "give real ones with --calibration"
    ]
    worst = max((output.relative_l2 for output in verification.fidelity), default=0.0)
    if worst > _LARGE_ERROR:
        warnings.append(
            f"the outputs are off by {worst:.0%}: expect a large loss of accuracy; with "
            "--calibration, ranks are chosen by measured output errors and the factors fitted to "
            "the data, which often keeps the accuracy at the same size"
        )
    return warnings
