"""The texts and single numbers of the reports. The template of the HTML one only lays them out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from alds_onnx.evidence import TradeOff
from alds_onnx.report import accuracy, numbers
from alds_onnx.results import (
    LimitData,
    LimitKind,
    LimitResult,
    OutputFidelity,
    Score,
    Status,
    Trial,
    Verification,
)
from alds_onnx.runtimes import Runtime
from alds_onnx.values import Decision, Objective, Report

LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One quantity, before and after, with an explanation.

    `kept` is the new value divided by the old one if a small ratio is good, else None.
    """

    label: str
    after: str
    before: str = ""
    note: str = ""
    kept: float | None = None


def cards(report: Report) -> list[Card]:
    """Make the cards at the top of the page."""
    plan, checks = report.plan, report.verification
    found = [
        _count("Parameters", plan.parameters, plan.parameters_after, numbers.count),
        _count("Multiply-accumulates", report.macs_before, report.macs_after, numbers.macs),
        _count("File size", report.bytes_before, report.bytes_after, numbers.size),
    ]
    if checks is not None and checks.latency_before and checks.latency_after:
        before, after = checks.latency_before, checks.latency_after
        times = f"median of {after.runs} runs, {threads(checks)}"
        found.append(
            Card(
                label="Latency",
                after=f"{after.median_ms:.3g} ms",
                before=f"{before.median_ms:.3g} ms",
                note=f"× {checks.latency_ratio:.2f}, {times}",
            )
        )
    found += _accuracy_cards(checks) if checks else []
    error, note = plan.max_relative_error, "of its weight, relative to the largest singular value"
    found.append(Card(label="Largest error of a layer", after=numbers.error(error), note=note))
    return found + [_score_card(score) for score in report.scores]


def _accuracy_cards(checks: Verification) -> list[Card]:
    """Show the error of the worst output and, with data, how often top-1 is the same."""
    outputs, on = accuracy.outputs(checks), f"on {accuracy.samples(checks)}"
    others = checks.left_out.fidelity if checks.left_out else ()
    error, other = accuracy.worst(outputs), accuracy.worst(others)
    cards = []
    if error is not None:
        note = f"relative L2, worst output, {on}"
        note += f"; {accuracy.error(other)} on kinds left out" if other else ""
        cards.append(Card(label="Error of the outputs", after=accuracy.error(error), note=note))
    same, other = accuracy.least_agreeing(outputs), accuracy.least_agreeing(others)
    if same is not None and not checks.random_inputs:
        note = on + (f"; {accuracy.agreement(other)} on kinds left out" if other else "")
        cards.append(Card(label="Same top-1", after=accuracy.agreement(same), note=note))
    return cards


def _count(label: str, before: int | None, after: int | None, show: Callable[[int], str]) -> Card:
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


def score_cells(score: Score) -> tuple[str, str, str]:
    """Format a score before and after, and its change, in percentages if there are samples."""
    if score.samples is None:
        return f"{score.before:.6g}", f"{score.after:.6g}", f"{0 - score.drop:+.4g}"
    before, after = numbers.percent(score.before), numbers.percent(score.after)
    noise = "" if score.drop_stderr is None else f" ± {score.drop_stderr:.2f}"
    return before, after, f"{0 - score.drop:+.2f}{noise} points"


def _score_card(score: Score) -> Card:
    name = numbers.printable(score.name, LONGEST_NAME)
    before, after, note = score_cells(score)
    if score.samples is not None:
        name, note = name.capitalize(), f"{note} on {score.samples:,} samples"
    return Card(label=name, after=after, before=before, note=note)


def threads(checks: Verification) -> str:
    """Describe the number of threads of onnxruntime."""
    return numbers.counted(checks.threads, "thread")


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


def level(output: OutputFidelity) -> float:
    """Give the length of the bar of an output's error; 1 is full."""
    return min(1.0, output.relative_l2) if math.isfinite(output.relative_l2) else 1.0


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
    measured = report.verification.output_error if report.verification else None
    if measured is not None:
        return measured
    return math.sqrt(math.fsum(e * e for e in caused)) if caused else None


def point_origin(report: Report) -> str:
    """Describe the source of `point_error`."""
    if report.plan.objective is Objective.MAX_RELATIVE_ERROR:
        return "the error of its stored factors"
    if report.plan.objective is Objective.SUM_OUTPUT_ERROR and report.verification is not None:
        return f"the error of its outputs on {accuracy.samples(report.verification)}"
    return "an estimate from the errors that its single cuts cause"


def limit(result: LimitResult) -> str:
    """Describe the limit and the value that was reached."""
    what = "error of the worst output" if result.kind is LimitKind.MAX_ERROR else "drop"
    value, on = reached(result)
    return f"--{result.kind.value} {result.limit:g}: the {what} is {value}, {on}."


def reached(result: LimitResult) -> tuple[str, str]:
    """Format the value that was reached with its unit, and say what it was measured on."""
    unit = " points" if result.data is LimitData.LABELLED else ""
    noise = "" if result.stderr is None else f" ± {result.stderr:.2g}"
    value = f"{numbers.error(result.reached)}{noise}{unit}"
    count = "" if result.samples is None else f"{result.samples:,} "
    if result.chosen is None or result.chosen_samples is None:
        return value, f"on {count}{result.data.value}"
    others = f"chosen on {result.chosen_samples:,} others: {numbers.error(result.chosen)}{unit}"
    return value, f"kept on {count}held-out samples; {others}"


def attempts(result: LimitResult) -> str:
    """Count the attempts, and those that broke the limit on the held-out samples."""
    text = f"the best of {numbers.counted(len(result.trials), 'attempt')}"
    return f"{text}, {len(result.refused)} refused there" if result.refused else text


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
    refused = {trial.removed: numbers.error(trial.value) for trial in result.refused}

    def verdict(trial: Trial) -> str:
        if trial.removed in refused:
            return f"no: {refused[trial.removed]} on held-out samples"
        return "yes" if trial.value <= result.limit else "no"

    return [
        (numbers.percent(trial.removed), numbers.error(trial.value), verdict(trial))
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
