"""The rows of the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from alds_onnx.cuts import CutError, Factors, FloatArray, Work
from alds_onnx.graph.constants.holders import Holding, holdings
from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.rewrite import Replacement
from alds_onnx.graph.scopes import Site
from alds_onnx.steps.survey import Survey, Weight
from alds_onnx.values import Decision, LayerPlan

# Reasons that are named; the rest is added up.
_MOST_REASONS = 5
_NCHWC = "com.microsoft.nchwc"
_QUANTIZED = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear"),
        *("DynamicQuantizeLinear", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """The factors of a weight as the model stores them, and their errors.

    `bias` is the new one, of shape (f,); None leaves the old one. The last two errors are those of
    `LayerPlan`; None without calibration data. `half` are the factors
    fitted to half of the data, `kept` those fitted without some kinds of inputs.
    """

    weight: Weight
    factors: Factors
    error: CutError
    bias: FloatArray | None = None
    local_error: float | None = None
    output_error: float | None = None
    half: Replacement | None = None
    kept: Replacement | None = None

    @property
    def replacement(self) -> Replacement:
        """The factors that the model gets."""
        return Replacement(layers=self.weight.layers, factors=self.factors, bias=self.bias)


def plan_rows(
    survey: Survey, decompositions: Sequence[Decomposition], work: Mapping[Site, Work]
) -> tuple[LayerPlan, ...]:
    """Make a row for every layer and everything else that holds parameters, in graph order."""
    held = holdings(survey.index, survey.found)
    done = {
        layer.name: decomposition
        for decomposition in decompositions
        for layer in decomposition.weight.layers
    }
    return tuple(
        _row(
            layer,
            held[layer.site],
            done.get(layer.name),
            work.get(layer.site),
            _kept(survey, layer.name),
        )
        for layer in survey.found
    )


def _kept(survey: Survey, name: str) -> str:
    """Say why a layer stays whole although it can be decomposed."""
    if name in survey.excluded:
        return "excluded by the user"
    if name in survey.attention:
        return "runtimes fuse it with the attention downstream; --include NAME cuts it"
    return "whole at this budget"


def _row(
    layer: Layer | Skipped,
    held: Holding,
    done: Decomposition | None,
    work: Work | None,
    kept: str,
) -> LayerPlan:
    macs = work.macs if work else None
    shape = layer.dims if isinstance(layer, Skipped) else layer.source.shape
    row = LayerPlan(
        name=layer.name,
        op=layer.op,
        weight=layer.weight_name,
        shape=shape,
        decision=Decision.SKIP if isinstance(layer, Skipped) else Decision.KEEP,
        reason=layer.reason if isinstance(layer, Skipped) else kept,
        parameters_before=held.parameters,
        parameters_after=held.parameters,
        counted_by=held.counted_by,
        macs_before=macs,
        macs_after=macs,
    )
    if done is None or isinstance(layer, Skipped):
        return row
    cut = done.factors.cut
    after = work.of_cut(layer.shape, cut) if work else None
    return replace(
        row,
        decision=Decision.DECOMPOSE,
        reason="",
        cut=cut,
        error=done.error,
        parameters_after=cut.num_parameters(layer.shape),
        macs_before=None if after is None else macs,
        macs_after=after,
        local_error=done.local_error,
        output_error=done.output_error,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Add up the known counts; None if none is known."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def what_stays(survey: Survey, parameters: int) -> str:
    """Say what the parameters that stay are in, by share, and what to do about it if that helps."""
    rows = plan_rows(survey, [], {})
    whole = [row for row in rows if not row.counted_by and _stays(survey, row)]
    groups: dict[tuple[str, str], list[LayerPlan]] = {}
    for row in whole:
        groups.setdefault((row.op, row.reason), []).append(row)
    held = sorted(groups.values(), key=lambda group: -_count(group))
    parts = [f"{_share(_count(g), parameters)} {_place(g)}" for g in held[:_MOST_REASONS]]
    rest = sum(_count(group) for group in held[_MOST_REASONS:])
    rest += max(0, parameters - _count([row for row in rows if not row.counted_by]))
    if rest:
        parts.append(f"{_share(rest, parameters)} in other constants (biases, recurrent weights)")
    text = f"what stays: {', '.join(parts)}" if parts else "nothing else holds any"
    return "; ".join([*_advice(survey), text])


def _stays(survey: Survey, row: LayerPlan) -> bool:
    is_kept = row.name in survey.excluded | survey.attention
    return bool(row.parameters_before) and (row.decision is Decision.SKIP or is_kept)


def _count(rows: Sequence[LayerPlan]) -> int:
    return sum(row.parameters_before for row in rows)


def _share(count: int, parameters: int) -> str:
    share = 100 * count / max(1, parameters)
    return f"{share:.0f} %" if share >= 1 else f"{share:.1g} %"


def _place(rows: Sequence[LayerPlan]) -> str:
    first = rows[0]
    what = f"{first.op} '{first.name}'" if len(rows) == 1 else f"{len(rows)} {first.op}"
    return f"in {what} ({first.reason})"


def _advice(survey: Survey) -> list[str]:
    """Say what is to be compressed instead of a model that another tool has already changed."""
    nodes = [node for _, node in survey.index.walk()]
    if any(node.domain == _NCHWC for node in nodes):
        return [
            f"the model is a build of onnxruntime for one machine (nodes of {_NCHWC}): "
            "compress the model that was exported, then optimize it"
        ]
    if any(node.op_type in _QUANTIZED for node in nodes):
        return ["the model is quantized: compress the float model first, then quantize it"]
    return []
