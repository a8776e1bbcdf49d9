"""The data of the plots of the HTML report, as plain values for its script."""

from __future__ import annotations

import json
import math
from typing import Any

from alds_onnx.evidence import Evidence, WeightEvidence
from alds_onnx.report import numbers, swept
from alds_onnx.report.words import LONGEST_NAME, point_error
from alds_onnx.results import LimitResult, Verification
from alds_onnx.runtimes import Runtime
from alds_onnx.sweeps import Sweep, SweepPoint
from alds_onnx.values import LayerPlan, Report

_DIGITS = 4
# With thousands of layers, each curve has fewer points, so that the file stays small.
_MOST_POINTS, _FEWEST_POINTS = 120_000, 16
# The axis of latencies ends at this multiple of the 95th percentile, because single runs may take
# much longer than all others.
_TAIL = 1.5


def tables(report: Report, sweep: Sweep | None = None) -> dict[str, Any]:
    """Collect the data of all plots; numbers that are not finite become None."""
    evidence, result = report.evidence, report.limit_result
    weights = evidence.weights if evidence else ()
    most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, sum(len(w.curves) for w in weights)))
    return {
        "layers": _layers(report.plan.layers, weights),
        "weights": [_weight(weight, most) for weight in weights],
        "onData": evidence is not None and evidence.on_data,
        "trade": _trade(evidence) if evidence else [],
        "point": _point(report),
        "limit": rounded(result.limit) if result else None,
        "trials": _trials(result) if result else [],
        "sweep": _sweep(sweep) if sweep else [],
        "learning": _learning(report.verification),
        **_latency(report.verification),
    }


def embedded(values: object) -> str:
    """Write JSON that cannot end a script element or start a comment, whatever a name contains."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def rounded(value: float | None) -> float | None:
    """Round a number as it is shown; None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _layers(
    rows: tuple[LayerPlan, ...], weights: tuple[WeightEvidence, ...]
) -> list[dict[str, Any]]:
    places = {name: place for place, weight in enumerate(weights) for name in weight.layers}
    return [
        {
            "number": number,
            "name": numbers.printable(row.name, LONGEST_NAME),
            "op": row.op,
            "shape": " × ".join(map(str, row.shape)),
            "decision": row.decision.value,
            "reason": numbers.printable(row.reason, LONGEST_NAME),
            "scheme": row.cut.scheme.value if row.cut else "",
            "slices": row.cut.num_slices if row.cut else None,
            "rank": row.cut.rank if row.cut else None,
            "relative": rounded(row.error.relative) if row.error else None,
            "local": rounded(row.local_error),
            "output": rounded(row.output_error),
            "before": row.parameters_before,
            "after": row.parameters_after,
            "macsBefore": row.macs_before,
            "macsAfter": row.macs_after,
            "weight": places.get(row.name),
        }
        for number, row in enumerate(rows, 1)
    ]


def _weight(weight: WeightEvidence, most: int) -> dict[str, Any]:
    curves = []
    for curve in weight.curves:
        step = max(1, -(-len(curve.ranks) // most))
        kept = sorted({*range(0, len(curve.ranks), step), len(curve.ranks) - 1})
        curves.append(
            {
                "slices": curve.num_slices,
                "perRank": curve.parameters_per_rank,
                "ranks": [curve.ranks[i] for i in kept],
                "errors": [rounded(curve.errors[i]) for i in kept],
            }
        )
    probes = [[rounded(probe.local), rounded(probe.output)] for probe in weight.probes]
    return {"curves": curves, "probes": probes}


def _trade(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {
            "runtime": "" if line.runtime is Runtime.NONE else line.runtime.value,
            "removed": [round(point.removed, 5) for point in line.points],
            "error": [rounded(point.error) for point in line.points],
        }
        for line in evidence.trade_offs
    ]


def _point(report: Report) -> dict[str, Any] | None:
    """Give the position of the compressed model in the trade-off."""
    error = rounded(point_error(report))
    if error is None:
        return None
    return {"removed": round(report.plan.removed, 5), "error": error}


def _trials(result: LimitResult) -> list[dict[str, Any]]:
    refused = {trial.removed for trial in result.refused}
    return [
        {
            "removed": round(trial.removed, 5),
            "value": rounded(trial.value),
            "held": trial.value <= result.limit and trial.removed not in refused,
        }
        for trial in result.trials
    ]


def _sweep(sweep: Sweep) -> list[dict[str, Any]]:
    """Give the points of a sweep, with the text that appears beside the pointer."""
    return [
        {
            "cr": point.cr,
            "removed": round(point.report.plan.removed, 5),
            "loss": rounded(point.loss),
            "front": point.on_front,
            "shown": point is sweep.shown,
            "text": _tooltip(point, sweep),
        }
        for point in sweep.points
    ]


def _tooltip(point: SweepPoint, sweep: Sweep) -> str:
    facts = [*zip(swept.columns(sweep), swept.cells(point, sweep), strict=True)]
    facts.append(("lost", numbers.error(point.loss)))
    return "\n".join(f"{name}: {cell}" for name, cell in facts if cell)


def _learning(checks: Verification | None) -> list[dict[str, Any]]:
    """Give the points of the learning curve; the last one is only expected."""
    curve = checks.learning if checks else None
    points = (*curve.measured, curve.expected) if curve else ()
    return [{"samples": p.samples, "error": rounded(p.output_error)} for p in points]


def _latency(checks: Verification | None) -> dict[str, Any]:
    if checks is None or checks.latency_before is None or checks.latency_after is None:
        return {"times": [], "boxes": [], "beyond": 0}
    both = {"original": checks.latency_before, "compressed": checks.latency_after}
    end = _TAIL * max(_percentile(latency.times_ms) for latency in both.values())
    drawn = {name: [t for t in latency.times_ms if t <= end] for name, latency in both.items()}
    return {
        "times": [[name, rounded(t)] for name, times in drawn.items() for t in times],
        "boxes": [
            {
                "model": name,
                "low": rounded(latency.low_ms),
                "median": rounded(latency.median_ms),
                "high": rounded(latency.high_ms),
            }
            for name, latency in both.items()
        ],
        "beyond": sum(len(latency.times_ms) - len(drawn[name]) for name, latency in both.items()),
    }


def _percentile(times: tuple[float, ...]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))] if times else 0.0
