"""Several compressions of one model: as a table, as CSV, as JSON values."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from alds_onnx.report import numbers
from alds_onnx.report.console import new_table
from alds_onnx.report.json import report_to_json
from alds_onnx.sweeps import Sweep, SweepPoint

_CSV = (
    *("cr", "removed", "parameters", "macs", "bytes", "max_relative_error", "output_error"),
    *("latency_ratio", "score_before", "score_after", "pareto", "suggested"),
)


def print_sweep(console: Console, sweep: Sweep, unreachable: Sequence[float]) -> None:
    """Print a row for each point, which ones are worth having, and which one to take."""
    scores = sweep.points[0].report.scores
    table = new_table(
        "Sweep",
        ("--cr", True),
        ("removed", True),
        ("parameters", True),
        ("MACs", True),
        ("largest layer error", True),
        ("output error", True),
        *(((scores[0].name, True),) if scores else ()),
        ("latency", True),
        ("", False),
    )
    for point in sweep.points:
        table.add_row(*(Text(cell) for cell in _cells(point, sweep)))
    table.caption = f"* smaller than all that lose less ({sweep.loss}): the Pareto front"
    table.caption_justify = "left"
    console.print(table)
    if unreachable:
        shown = ", ".join(f"{cr:g}" for cr in unreachable)
        console.print(Text.assemble(("warning: ", "yellow"), f"out of reach: --cr {shown}"))
    if sweep.suggested is not None:
        console.print(
            f"suggested: --cr {sweep.suggested.cr:g}, the knee of the front", markup=False
        )


def _cells(point: SweepPoint, sweep: Sweep) -> tuple[str, ...]:
    report = point.report
    plan, checks = report.plan, report.verification
    ratio = checks.latency_ratio if checks else None
    mark = ("*" if point.on_front else " ") + (" knee" if point is sweep.suggested else "")
    return (
        f"{point.cr:g}",
        numbers.percent(plan.removed),
        numbers.count(plan.parameters_after),
        _kept(report.macs_after, report.macs_before),
        numbers.error(plan.max_relative_error),
        "-" if math.isnan(point.output_error) else numbers.error(point.output_error),
        *(_score(point) for _ in report.scores[:1]),
        "" if ratio is None else f"x {ratio:.2f}",
        mark,
    )


def _kept(after: int | None, before: int | None) -> str:
    return f"x {after / before:.2f}" if before and after is not None else "-"


def _score(point: SweepPoint) -> str:
    score = point.report.scores[0]
    return f"{score.after:.6g}" if score.samples is None else numbers.percent(score.after)


def sweep_to_csv(sweep: Sweep) -> bytes:
    """A row for each point; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for point in sweep.points:
        writer.writerow(_values(point, sweep))
    return text.getvalue().encode()


def _values(point: SweepPoint, sweep: Sweep) -> tuple[object, ...]:
    report = point.report
    plan, checks = report.plan, report.verification
    score = report.scores[0] if report.scores else None
    return (
        point.cr,
        plan.removed,
        plan.parameters_after,
        report.macs_after,
        report.bytes_after,
        plan.max_relative_error,
        None if math.isnan(point.output_error) else point.output_error,
        checks.latency_ratio if checks else None,
        score.before if score else None,
        score.after if score else None,
        int(point.on_front),
        int(point is sweep.suggested),
    )


def sweep_to_json(sweep: Sweep, unreachable: Sequence[float]) -> dict[str, Any]:
    """All reports, and what the comparison says."""
    return {
        "schema": 1,
        "loss": sweep.loss,
        "suggested": sweep.suggested.cr if sweep.suggested else None,
        "unreachable": list(unreachable),
        "points": [
            {"cr": point.cr, "pareto": point.on_front, **report_to_json(point.report)}
            for point in sweep.points
        ],
    }
