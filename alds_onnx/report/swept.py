"""A sweep as a table, as text, as CSV, and as JSON values."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from rich.console import Console
from rich.text import Text

from alds_onnx.report import numbers, words
from alds_onnx.report.console import new_table, print_warnings
from alds_onnx.report.json import report_to_json
from alds_onnx.sweeps import Sweep, SweepPoint

# Descriptions of the losses that are no scores, by the names in `Sweep.loss`.
_LOSSES = {
    "output error": "relative L2 error of the worst output",
    "largest layer error": "largest relative error of a layer",
}


def print_sweep(console: Console, sweep: Sweep) -> None:
    """Print a row for each point, mark the Pareto front, and suggest a point."""
    table = new_table("Sweep", *(f">{name}" for name in columns(sweep)), "")
    for point in sweep.points:
        mark = ("*" if point.on_front else " ") + (" knee" if point is sweep.suggested else "")
        table.add_row(*(Text(cell) for cell in (*cells(point), mark)))
    table.caption = (
        f"* on the Pareto front: smaller than every point that loses less ({sweep.loss})"
    )
    table.caption_justify = "left"
    console.print(table)
    print_warnings(console, [unreachable(sweep)] if sweep.unreachable else [])
    if sweep.suggested is not None:
        console.print(
            f"suggested: --cr {sweep.suggested.cr:g}, the knee of the front", markup=False
        )


def columns(sweep: Sweep) -> tuple[str, ...]:
    """Give the headings of `cells`."""
    scores = sweep.points[0].report.scores
    score = (numbers.printable(scores[0].name),) if scores else ()
    sizes = ("--cr", "removed", "parameters", "MACs")
    return (*sizes, "largest layer error", "output error", *score, "latency")


def cells(point: SweepPoint) -> tuple[str, ...]:
    """Format the numbers of a point; unknown ones are a dash, or empty."""
    report = point.report
    plan, checks = report.plan, report.verification
    ratio = checks.latency_ratio if checks else None
    return (
        f"{point.cr:g}",
        numbers.percent(plan.removed),
        numbers.count(plan.parameters_after),
        _kept(report.macs_after, report.macs_before),
        numbers.error(plan.max_relative_error),
        "-" if math.isnan(point.output_error) else numbers.error(point.output_error),
        *(words.score_cells(score)[1] for score in report.scores[:1]),
        "" if ratio is None else f"x {ratio:.2f}",
    )


def unreachable(sweep: Sweep) -> str:
    """List the ratios that are out of reach; "" if there are none."""
    shown = ", ".join(f"{cr:g}" for cr in sweep.unreachable)
    return f"out of reach: --cr {shown}" if shown else ""


def headline(sweep: Sweep) -> str:
    """Say which point the page shows, and why."""
    count = len(sweep.points)
    asked = "the only ratio" if count == 1 else f"one of {count} ratios"
    if sweep.suggested is not None:
        why = "suggested, because it is the knee of the front"
    elif sweep.shown.on_front:
        why = "no ratio stands out, and this one removes the most on the front"
    else:
        why = "the losses are not known, and this one removes the most"
    return f"This page shows --cr {sweep.shown.cr:g}, {asked}: {why}."


def loss(sweep: Sweep) -> str:
    """Describe the loss and its unit."""
    scores = sweep.points[0].report.scores
    if not scores or scores[0].name != sweep.loss:
        return _LOSSES.get(sweep.loss, sweep.loss)
    name, samples = numbers.printable(sweep.loss), scores[0].samples
    if samples is None:
        return f"{name} lost, in its own units"
    return f"{name} lost, in percentage points on {samples:,} samples"


def _kept(after: int | None, before: int | None) -> str:
    return f"x {after / before:.2f}" if before and after is not None else "-"


def sweep_to_csv(sweep: Sweep) -> bytes:
    """Convert a sweep to CSV with a row for each point; unknown values are empty."""
    rows = [_values(point, sweep) for point in sweep.points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _values(point: SweepPoint, sweep: Sweep) -> dict[str, object]:
    report = point.report
    plan, checks = report.plan, report.verification
    score = report.scores[0] if report.scores else None
    return {
        "cr": point.cr,
        "removed": plan.removed,
        "parameters": plan.parameters_after,
        "macs": report.macs_after,
        "bytes": report.bytes_after,
        "max_relative_error": plan.max_relative_error,
        "output_error": checks.output_error if checks else None,
        "latency_ratio": checks.latency_ratio if checks else None,
        "score_before": score.before if score else None,
        "score_after": score.after if score else None,
        "pareto": int(point.on_front),
        "suggested": int(point is sweep.suggested),
    }


def sweep_to_json(sweep: Sweep) -> dict[str, Any]:
    """Convert a sweep to JSON values: all reports, and their comparison."""
    return {
        "schema": 1,
        "loss": sweep.loss,
        "suggested": sweep.suggested.cr if sweep.suggested else None,
        "unreachable": list(sweep.unreachable),
        "points": [
            {"cr": point.cr, "pareto": point.on_front, **report_to_json(point.report)}
            for point in sweep.points
        ],
    }
