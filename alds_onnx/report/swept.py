"""A sweep as a table, as text, as CSV, and as JSON values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from alds_onnx.report import accuracy, numbers, words
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
        table.add_row(*(Text(cell) for cell in (*cells(point, sweep), mark)))
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
    return (*sizes, "largest layer error", "output error", *_with_data(sweep), *score, "latency")


def cells(point: SweepPoint, sweep: Sweep) -> tuple[str, ...]:
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
        _output_error(point),
        *(show(point) for show in _with_data(sweep).values()),
        *(words.score_cells(score)[1] for score in report.scores[:1]),
        "" if ratio is None else f"x {ratio:.2f}",
    )


def _output_error(point: SweepPoint) -> str:
    checks = point.report.verification
    output = accuracy.worst(accuracy.outputs(checks)) if checks else None
    return accuracy.error(output) if output else "-"


def _agreement(point: SweepPoint) -> str:
    checks = point.report.verification
    if checks is None or checks.random_inputs:
        return ""
    output = accuracy.least_agreeing(checks.fidelity)
    return accuracy.agreement(output) if output else ""


def _left_out(point: SweepPoint) -> str:
    checks = point.report.verification
    output = accuracy.worst(checks.left_out.fidelity) if checks and checks.left_out else None
    return accuracy.error(output) if output else ""


def _with_data(sweep: Sweep) -> dict[str, Callable[[SweepPoint], str]]:
    """Give the columns that only data fills, by their headings."""
    columns = {"output error, kinds left out": _left_out, "same top-1": _agreement}
    return {name: show for name, show in columns.items() if any(map(show, sweep.points))}


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
        checks = sweep.points[0].report.verification
        on_data = checks is not None and not checks.random_inputs
        on = f", on {accuracy.samples(checks)}" if checks and on_data else ""
        return _LOSSES.get(sweep.loss, sweep.loss) + (on if sweep.loss == "output error" else "")
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
    outputs = checks.fidelity if checks else ()
    error, same = accuracy.worst(outputs), accuracy.least_agreeing(outputs)
    left_out = checks.left_out if checks else None
    return {
        "cr": point.cr,
        "removed": plan.removed,
        "parameters": plan.parameters_after,
        "macs": report.macs_after,
        "bytes": report.bytes_after,
        "max_relative_error": plan.max_relative_error,
        "output_error": error.relative_l2 if error else None,
        "output_error_stderr": error.relative_l2_stderr if error else None,
        "top1_agreement": same.top1_agreement if same else None,
        "top1_agreement_stderr": same.top1_agreement_stderr if same else None,
        "left_out_error": left_out.output_error if left_out else None,
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
