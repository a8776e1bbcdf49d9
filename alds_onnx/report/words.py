"""The texts and single numbers of the HTML report. Its template only lays them out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from alds_onnx.evidence import TradeOff
from alds_onnx.limits import LimitData, LimitKind, LimitResult, Score
from alds_onnx.report import numbers
from alds_onnx.runtimes import Runtime
from alds_onnx.values import Decision, Latency, Objective, Report, Status, Verification

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One quantity, before and after.

    Attributes
    ----------
    label, after
        Name and new value of the quantity.
    before, note
        Old value and explanation; "" if there is none.
    kept
        New value divided by the old one, if a small ratio is good; None for other quantities.
    """

    label: str
    after: str
    before: str = ""
    note: str = ""
    kept: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The formatted numbers of one output; only a name and a note if it was not compared."""

    name: str
    note: str = ""
    relative: str = ""
    level: float = 0.0
    largest: str = ""
    cosine: str = ""
    sqnr: str = ""
    agreement: str = ""


def cards(report: Report) -> list[Card]:
    """Make the cards at the top of the page."""
    plan, checks = report.plan, report.verification
    found = [
        _count("Parameters", plan.parameters, plan.parameters_after, numbers.count),
        _count("Multiply-accumulates", report.macs_before, report.macs_after, numbers.macs),
        _count("File size", report.bytes_before, report.bytes_after, numbers.size),
    ]
    if checks is not None and checks.latency_before and checks.latency_after:
        found.append(_time(checks.latency_before, checks.latency_after, checks))
    error = worst_output(checks)
    if checks is not None and error is not None:
        found.append(
            Card(
                label="Error of the outputs",
                after=numbers.error(error),
                note=f"relative L2, worst output, on {samples(report)}",
            )
        )
    found.append(
        Card(
            label="Largest error of a layer",
            after=numbers.error(plan.max_relative_error),
            note="of its weight, relative to the largest singular value",
        )
    )
    return found + [_score(score) for score in report.scores]


def _count(label: str, before: int | None, after: int | None, show: object) -> Card:
    assert callable(show)
    if before is None or after is None:
        return Card(label=label, after="unknown", note="the shapes are not known")
    kept = after / before if before else 1.0
    return Card(
        label=label,
        after=show(after),
        before=show(before),
        note=f"{numbers.percent(1 - kept)} removed, {numbers.percent(kept)} kept",
        kept=kept,
    )


def _time(before: Latency, after: Latency, checks: Verification) -> Card:
    return Card(
        label="Latency",
        after=f"{after.median_ms:.3g} ms",
        before=f"{before.median_ms:.3g} ms",
        note=f"× {checks.latency_ratio:.2f}, median of {after.runs} runs, {threads(checks)}",
    )


def _score(score: Score) -> Card:
    name = numbers.printable(score.name, _LONGEST_NAME)
    if score.samples is None:
        change = f"{0 - score.drop:+.4g}"
        return Card(
            label=name, after=f"{score.after:.6g}", before=f"{score.before:.6g}", note=change
        )
    return Card(
        label=name.capitalize(),
        after=numbers.percent(score.after),
        before=numbers.percent(score.before),
        note=f"{0 - score.drop:+.2f} points on {score.samples:,} samples",
    )


def threads(checks: Verification) -> str:
    """Describe the number of threads of onnxruntime."""
    return f"{checks.threads} thread" + ("" if checks.threads == 1 else "s")


def samples(report: Report) -> str:
    """Describe the samples on which the outputs were compared."""
    checks = report.verification
    if checks is None:
        return ""
    kind = "random" if checks.random_inputs else "calibration"
    if report.limit_result is not None and report.limit_result.data is LimitData.HELD_OUT:
        kind = "held-out calibration"
    return f"{checks.samples:,} {kind} sample" + ("" if checks.samples == 1 else "s")


def worst_output(checks: Verification | None) -> float | None:
    """Give the largest relative L2 error of an output that can be compared; None if none can."""
    fidelity = checks.fidelity if checks is not None else ()
    return max((output.relative_l2 for output in fidelity if not output.note), default=None)


def status(report: Report) -> tuple[bool, str]:
    """Say whether the result passed the check, and describe its outcome."""
    checks = report.verification
    if checks is None:
        return False, "dry run: nothing was checked, no model was written"
    if checks.status is not Status.PASSED or checks.difference is None:
        return checks.status is Status.PASSED, f"{checks.status.value}: {checks.reason}".rstrip(
            ": "
        )
    return True, (
        "verified with onnxruntime: the rewrite is exact "
        f"(difference {checks.difference:.1e}, allowed {checks.tolerance:.0e})"
    )


def how(report: Report) -> str:
    """Describe how the ranks were chosen."""
    plan, evidence = report.plan, report.evidence
    if evidence is not None and not evidence.trade_offs and plan.budget is None:
        return "The cuts were read from a plan, or there was nothing to choose."
    goal = {
        Objective.MAX_RELATIVE_ERROR: "the largest error of a layer",
        Objective.SUM_OUTPUT_ERROR: "the sum of the squared output errors that the cuts cause",
        Objective.MAX_OUTPUT_ERROR: "the largest output error that a cut causes",
    }[plan.objective]
    runtime = report.preset.runtime.value if report.preset else "none"
    fast = "" if runtime == "none" else f", among those that {runtime} is fast at"
    search = f"search: {plan.search.value}{fast}"
    text = f"Slices and ranks were chosen to minimise {goal} ({search})."
    if report.timed:
        text += " The choice also rests on times measured on this machine."
    if evidence is not None and evidence.price is not None:
        ratio = f"{1 / evidence.price:.2f} times as large"
        text += f" With all slices and ranks the error would be {ratio}."
    return text


def layers(report: Report) -> str:
    """Count the layers by decision."""
    kinds = Counter(row.decision for row in report.plan.layers)
    words = {
        Decision.DECOMPOSE: "decomposed",
        Decision.KEEP: "kept whole",
        Decision.SKIP: "skipped because they cannot be decomposed",
    }
    parts = [f"{kinds[kind]} {what}" for kind, what in words.items() if kinds[kind]]
    return f"{len(report.plan.layers)} layers: {', '.join(parts) or 'nothing to do'}."


def outputs(checks: Verification | None) -> list[Output]:
    """Compare the compressed model with the original, output by output."""
    found = []
    for output in checks.fidelity if checks else ():
        name = numbers.printable(output.name, _LONGEST_NAME)
        if output.note:
            found.append(Output(name=name, note=f"not compared: {output.note}"))
            continue
        agreement = output.top1_agreement
        found.append(
            Output(
                name=name,
                relative=numbers.error(output.relative_l2),
                level=min(1.0, output.relative_l2) if math.isfinite(output.relative_l2) else 1.0,
                largest=numbers.error(output.max_abs),
                cosine=f"{output.cosine:.6f}",
                sqnr=f"{output.sqnr_db:.1f} dB",
                agreement="" if agreement is None else numbers.percent(agreement),
            )
        )
    return found


def trade_error(report: Report) -> str:
    """Name the error of the trade-off."""
    return {
        Objective.MAX_RELATIVE_ERROR: "largest error of a layer",
        Objective.SUM_OUTPUT_ERROR: "error of the outputs",
        Objective.MAX_OUTPUT_ERROR: "largest output error that one cut causes",
    }[report.plan.objective]


def point_error(report: Report) -> float | None:
    """Give the error of the compressed model in the unit of its objective; None if unknown.

    The error of the outputs is the measured one. Without checks it is the root of the sum of
    squares of the errors that single cuts cause, as in the search.
    """
    plan = report.plan
    caused = [row.output_error for row in plan.layers if row.output_error is not None]
    if plan.objective is Objective.MAX_RELATIVE_ERROR:
        return plan.max_relative_error
    if plan.objective is Objective.MAX_OUTPUT_ERROR:
        return max(caused, default=None)
    measured = worst_output(report.verification)
    if measured is not None:
        return measured
    return math.sqrt(math.fsum(e * e for e in caused)) if caused else None


def point_origin(report: Report) -> str:
    """Describe the source of `point_error`."""
    if report.plan.objective is Objective.MAX_RELATIVE_ERROR:
        return "the error of its stored factors"
    if report.plan.objective is Objective.SUM_OUTPUT_ERROR and report.verification is not None:
        return f"the error of its outputs on {samples(report)}"
    return "an estimate from the errors that its single cuts cause"


def limit(result: LimitResult) -> str:
    """Describe the limit and the value that was reached."""
    unit = " points" if result.data is LimitData.LABELLED else ""
    what = "error of the worst output" if result.kind is LimitKind.MAX_ERROR else "drop"
    on = result.data.value if result.samples is None else f"{result.samples:,} {result.data.value}"
    return (
        f"--{result.kind.value} {result.limit:g}: the {what} is "
        f"{numbers.error(result.reached)}{unit}, measured on {on}."
    )


def rule(line: TradeOff) -> str:
    """Describe the slices and ranks that a trade-off allows."""
    if line.runtime is Runtime.NONE:
        return "all slices and ranks"
    return f"slices and ranks that {line.runtime.value} is fast at"


def trade_rows(line: TradeOff) -> list[tuple[str, ...]]:
    """Format the points of a trade-off: removed fraction and error."""
    return [(numbers.percent(p.removed), numbers.error(p.error)) for p in line.points]


def trial_rows(result: LimitResult) -> list[tuple[str, ...]]:
    """Format all attempts: fraction to remove, measured value, whether it is within the limit."""
    return [
        (
            numbers.percent(trial.removed),
            numbers.error(trial.value),
            "yes" if trial.value <= result.limit else "no",
        )
        for trial in result.trials
    ]


def latency_rows(checks: Verification) -> list[tuple[str, ...]]:
    """Format the quartiles of the latencies of both models."""
    both = {"original": checks.latency_before, "compressed": checks.latency_after}
    return [
        (name, *(f"{ms:.4g}" for ms in (latency.low_ms, latency.median_ms, latency.high_ms)))
        for name, latency in both.items()
        if latency is not None
    ]


def step_rows(report: Report) -> list[tuple[str, ...]]:
    """Format the wall time of each step."""
    return [(step, f"{seconds:.2f}") for step, seconds in report.seconds]
