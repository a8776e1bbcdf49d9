"""The texts about accuracy: how far the outputs are off, on which samples, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alds_onnx.report import numbers
from alds_onnx.results import (
    LearningCurve,
    LearningPoint,
    LeftOut,
    OutputFidelity,
    Verification,
)

# Relative fall of the error below which more samples are not worth it.
_WORTHWHILE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the summary: its label, the value of the original, the new one, and a note."""

    label: str
    before: str
    after: str
    note: str


def lines(checks: Verification) -> list[Line]:
    """Say how accurate the outputs are; with data, on which samples, and what more would do."""
    if checks.random_inputs:
        return _lines(outputs(checks), "", "")[:1]
    part = ", held out" if checks.held_out else " that the factors were fitted to"
    made = _lines(checks.fidelity, numbers.counted(checks.samples, "sample") + part, "")
    if checks.left_out is not None:
        made += _lines(checks.left_out.fidelity, kinds(checks.left_out), ", kinds left out")
    if checks.learning is not None:
        made.append(Line(label="more samples", before="", after="", note=more(checks.learning)))
    return made


def _lines(compared: Sequence[OutputFidelity], on: str, part: str) -> list[Line]:
    made, largest, lowest = [], worst(compared), least_agreeing(compared)
    if largest is not None:
        note = "relative L2, worst output" + (f"; {on}" if on else "")
        line = Line(label=f"output error{part}", before="0", after=error(largest), note=note)
        made.append(line)
    if lowest is not None:
        after = agreement(lowest)
        made.append(Line(label=f"same top-1{part}", before="100 %", after=after, note=on))
    return made


def outputs(checks: Verification) -> tuple[OutputFidelity, ...]:
    """Give the compared outputs; random inputs have no standard errors.

    There would be numbers, but they say nothing about other inputs.
    """
    if not checks.random_inputs:
        return checks.fidelity
    return tuple(
        replace(output, relative_l2_stderr=None, top1_agreement_stderr=None)
        for output in checks.fidelity
    )


def worst(compared: Sequence[OutputFidelity]) -> OutputFidelity | None:
    """Find the output with the largest error among those that can be compared."""
    found = (output for output in compared if not output.note)
    return max(found, key=lambda output: output.relative_l2, default=None)


def least_agreeing(compared: Sequence[OutputFidelity]) -> OutputFidelity | None:
    """Find the scores that agree least; None if no output looks like scores."""
    scores = [o for o in compared if not o.note and o.top1_agreement is not None]
    return min(scores, key=lambda output: output.top1_agreement or 0.0, default=None)


def error(output: OutputFidelity) -> str:
    """Format the relative error with its standard error."""
    spread = output.relative_l2_stderr
    return numbers.error(output.relative_l2) + ("" if spread is None else f" ± {spread:.2g}")


def agreement(output: OutputFidelity) -> str:
    """Format how often top-1 is the same, with its standard error; "" if it is not known."""
    if output.top1_agreement is None:
        return ""
    if output.top1_agreement_stderr is None:
        return numbers.percent(output.top1_agreement)
    value, spread = 100 * output.top1_agreement, 100 * output.top1_agreement_stderr
    return f"{value:.2f} ± {spread:.2f} %"


def samples(checks: Verification) -> str:
    """Count and describe the samples on which the outputs were compared."""
    if checks.random_inputs:
        return numbers.counted(checks.samples, "random sample")
    if checks.held_out:
        return numbers.counted(checks.samples, "held-out calibration sample")
    text = numbers.counted(checks.samples, "calibration sample")
    return f"{text} that the factors were fitted to"


def kinds(left_out: LeftOut) -> str:
    """Count the samples of the kinds that were left out."""
    kinds = numbers.counted(left_out.kinds, "kind")
    return f"{numbers.counted(left_out.samples, 'sample')} of {kinds} left out"


def parts(checks: Verification) -> list[tuple[str, tuple[OutputFidelity, ...]]]:
    """List the outputs once for each part of the data; the part has a name if there are two."""
    if checks.left_out is None:
        return [("", outputs(checks))]
    return [("like those given", checks.fidelity), ("kinds left out", checks.left_out.fidelity)]


def cells(output: OutputFidelity) -> tuple[str, str, str, str, str]:
    """Format the numbers of one output: errors, cosine, SQNR, and how often top-1 is the same."""
    return (
        error(output),
        numbers.error(output.max_abs),
        f"{output.cosine:.6f}",
        f"{output.sqnr_db:.1f} dB",
        agreement(output),
    )


def more(curve: LearningCurve) -> str:
    """Say what more calibration data would do."""
    now, then = curve.measured[-1].output_error, curve.expected.output_error
    if not then < (1 - _WORTHWHILE) * now:
        return "more samples would not help at these ranks"
    return f"with twice as many samples expect an output error of {then:.3g} instead of {now:.3g}"


def learning_rows(curve: LearningCurve) -> list[tuple[str, ...]]:
    """Format the points of the learning curve."""

    def row(point: LearningPoint, how: str) -> tuple[str, ...]:
        return f"{point.samples:,}", numbers.error(point.output_error), how

    measured = [row(point, "measured") for point in curve.measured]
    return [*measured, row(curve.expected, "expected")]
