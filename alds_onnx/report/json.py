"""The report as JSON values, for other programs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from enum import Enum
from typing import Any

from alds_onnx.plans import plan_to_json
from alds_onnx.report.origin import versions
from alds_onnx.steps.merge import MergeReport
from alds_onnx.values import Report

# A list of numbers over several lines. Within strings, line breaks are escaped.
_NUMBERS = re.compile(r"\[\n([-+.\deE,\s]*)\]")


def report_to_json(report: Report) -> dict[str, Any]:
    """Convert a report to JSON values; numbers that are not finite become null."""
    return {
        "schema": 1,
        "plan": plan_to_json(report.plan),
        "verification": _plain(report.verification),
        "target": _plain(report.limit_result),
        "runtime": {**_plain(report.preset), "unaligned": list(report.unaligned)}
        if report.preset
        else None,
        "timed": report.timed,
        "scores": [{**_plain(score), "drop": _plain(score.drop)} for score in report.scores],
        "macs": {"before": report.macs_before, "after": report.macs_after},
        "bytes": {"before": report.bytes_before, "after": report.bytes_after},
        "seconds": dict(report.seconds),
        "warnings": list(report.warnings),
        "versions": versions(),
    }


def merge_to_json(report: MergeReport) -> dict[str, Any]:
    """Convert the report of a merge to JSON values; numbers that are not finite become null."""
    return {
        "schema": 1,
        "model": {"file": report.file, "sha256": report.sha256},
        "merged": _plain(report.merged),
        "left": _plain(report.left),
        "verification": _plain(report.verification),
        "parameters": {"before": report.parameters_before, "after": report.parameters_after},
        "bytes": {"before": report.bytes_before, "after": report.bytes_after},
        "seconds": dict(report.seconds),
        "warnings": list(report.warnings),
        "versions": versions(),
    }


def dump(values: object) -> bytes:
    """JSON text, indented, lists of numbers on one line; all but ASCII is escaped."""
    text = json.dumps(values, indent=1, ensure_ascii=True, allow_nan=False)
    return (_NUMBERS.sub(_on_one_line, text) + "\n").encode()


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers.group(1).split())}]"


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        # Fields without `repr`, such as the times of all runs, are for plots only.
        fields = [field for field in dataclasses.fields(value) if field.repr]
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
