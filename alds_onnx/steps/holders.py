"""What holds the parameters that cannot be removed, in words."""

from __future__ import annotations

from collections.abc import Sequence

from alds_onnx.steps.rows import plan_rows
from alds_onnx.steps.survey import Survey
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
        parts.append(f"{_share(rest, parameters)} in smaller constants")
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
