"""The warnings of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alds_onnx.graph.layers import Layer
from alds_onnx.results import LimitData, LimitKind, OutputFidelity, Score, Status
from alds_onnx.runtimes import Runtime
from alds_onnx.steps.data import Data
from alds_onnx.steps.prepare import Prepared
from alds_onnx.timing.slow_cuts import SlowCut
from alds_onnx.values import Report

# A ratio of times above which a model is slower beyond the noise of the measurement.
_SLOWER = 1.05
# Relative error of an output on real inputs, or of a layer, that is worth a warning.
_LARGE_ERROR = 0.1
# Relative loss of a score, or share of other answers, that is worth a warning; and a large one.
_LARGE_LOSS = 0.01
_MUCH = 0.1
# Ratio of errors above which a warning says that speed costs accuracy.
_HIGH_PRICE = 1.2
# Kinds that were left out do worse if, beyond two standard errors, their error is larger by this
# factor, or if they agree less by this fraction.
_WORSE, _FEWER = 1.5, 0.03
# With fewer calibration samples than this, a warning says that there are too few.
_FEW_SAMPLES = 32

_WHAT_DATA_DOES = (
    "--calibration with a few hundred real inputs, without labels, often keeps the accuracy at the "
    "same size, because ranks are then chosen by measured output errors and factors fitted to the "
    "data"
)


def make_warnings(prepared: Prepared, report: Report, slow: Sequence[SlowCut]) -> tuple[str, ...]:
    """Write all warnings that apply; `slow` are the chosen cuts that are slower than their layers.

    The report has everything but its warnings.
    """
    return (
        *_about_the_model(prepared, report),
        *_about_fusion_and_times(prepared, slow),
        *_about_the_checks(report),
        *_about_kinds_left_out(report),
        *_about_the_data(prepared.data, report),
        *_about_the_scores(prepared),
        *_about_accuracy(prepared, report),
    )


def _about_the_model(prepared: Prepared, report: Report) -> list[str]:
    rows, warnings = report.plan.layers, []
    if not any(row.cut for row in rows):
        warnings.append("no layer was decomposed: the model is unchanged")
    overridable = [
        layer.source.base.name
        for layer in prepared.survey.found
        if isinstance(layer, Layer)
        and layer.source.overridable
        and any(row.cut for row in rows if row.name == layer.name)
    ]
    if overridable:
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(overridable))
        warnings.append(f"no longer graph inputs, because these weights were decomposed: {names}")
    scored = prepared.scoring.check.before if prepared.scoring else None
    if scored is not None and scored.others:
        others = ", ".join(f"'{name}'" for name in scored.others)
        warnings.append(
            f"the scores are those of the output '{scored.output}'; these look like scores too: "
            f"{others}"
        )
    slow, cut = report.unaligned, [row for row in rows if row.cut]
    if report.preset is not None and 2 * len(slow) > len(cut):
        warnings.append(
            f"{len(slow)} of {len(cut)} decomposed layers have slices or ranks that "
            f"'{report.preset.runtime.value}' is not fast at, because the fast ones miss "
            "the budget or have much larger errors; a lower compression ratio may be faster"
        )
    return warnings


def _about_fusion_and_times(prepared: Prepared, slow: Sequence[SlowCut]) -> list[str]:
    warnings = []
    if prepared.attention_cut:
        warnings.append(
            "the projections of attention are cut too, because the budget is out of reach without "
            "them; runtimes may no longer fuse them with the attention downstream"
        )
    if slow:
        names = ", ".join(f"'{one.name}'" for one in slow)
        lost = -sum(one.timing.saved for one in slow) / 1e6
        warnings.append(
            f"slower in onnxruntime on this machine than before, by {lost:.3g} ms in total: {names}"
        )
    return warnings


def _about_the_checks(report: Report) -> list[str]:
    verification = report.verification
    if verification is None:
        return []
    warnings = []
    if verification.status is Status.NOT_VALIDATED:
        warnings.append(f"not validated: {verification.reason}")
    ratio = verification.latency_ratio
    if ratio is not None and ratio > _SLOWER:
        free = report.preset is not None and report.preset.runtime is Runtime.NONE
        warnings.append(
            f"the compressed model takes {ratio:.2f} times as long in onnxruntime on this machine: "
            "layers with fewer multiply-accumulates are not always faster"
            + ("; --target ort chooses only those that are" if free else "")
        )
    if verification.fidelity and ratio is None:
        warnings.append("latency was not measured: two such large models may not fit in memory")
    return warnings


def _about_kinds_left_out(report: Report) -> list[str]:
    """Say that other kinds of inputs do worse, if that is beyond chance and large enough to care.

    Outputs that look like scores are judged by their top-1, which may stay the same where their
    errors grow; others by their error. Of several, the numbers of the worst are given.
    """
    checks = report.verification
    if checks is None or checks.left_out is None:
        return []
    pairs = list(zip(checks.fidelity, checks.left_out.fidelity, strict=True))
    errors = [(b.relative_l2, a.relative_l2) for a, b in pairs if _has_larger_error(a, b)]
    same = [(b.top1_agreement or 0.0, a.top1_agreement) for a, b in pairs if _agrees_less(a, b)]
    facts = []
    if errors:
        other, given = max(errors)
        facts.append(f"an output error of {other:.2g} instead of {given:.2g}")
    if same:
        other, agreement = min(same)
        facts.append(f"the same top-1 for {other:.0%} instead of {agreement:.0%}")
    if not facts:
        return []
    worst = checks.left_out.worst
    if worst is not None:
        facts[-1] += (
            f", the worst of them like calibration sample {worst.example} (an output error of "
            f"{worst.output_error:.2g})"
        )
    return [
        f"kinds of inputs that a fit has not seen do worse: {' and '.join(facts)}; give samples of "
        "all kinds that the model will see"
    ]


def _has_larger_error(given: OutputFidelity, other: OutputFidelity) -> bool:
    spread = _spread(given.relative_l2_stderr, other.relative_l2_stderr)
    larger = other.relative_l2 - given.relative_l2
    if given.note or other.note or other.top1_agreement is not None:
        return False
    return larger > spread and other.relative_l2 > _WORSE * given.relative_l2


def _agrees_less(given: OutputFidelity, other: OutputFidelity) -> bool:
    if given.note or other.note or given.top1_agreement is None or other.top1_agreement is None:
        return False
    spread = _spread(given.top1_agreement_stderr, other.top1_agreement_stderr)
    return given.top1_agreement - other.top1_agreement > max(spread, _FEWER)


def _spread(first: float | None, second: float | None) -> float:
    """Give twice the standard error of a difference; infinite if it is not known."""
    return math.inf if first is None or second is None else 2 * math.hypot(first, second)


def _about_the_data(data: Data | None, report: Report) -> list[str]:
    warnings: list[str] = []
    if data is None:
        return warnings
    count = data.num_samples
    if count < _FEW_SAMPLES:
        warnings.append(
            f"only {count} calibration samples: the factors may fit only these; give at least "
            f"{_FEW_SAMPLES}, better a few hundred"
        )
    if data.num_spoilt:
        has = "has" if data.num_spoilt == 1 else "have"
        warnings.append(
            f"{data.num_spoilt} of {count} calibration samples {has} NaN or infinity in the "
            "inputs or the original's outputs: the activations that these affect are left out; "
            "check how the data was made"
        )
    limit = report.limit_result
    if limit is not None and limit.data is LimitData.FITTED:
        warnings.append(
            f"--max-error was measured on the {limit.samples} samples that the factors were fitted "
            "to: there are too few to set some aside; give more"
        )
    return warnings


def _about_the_scores(prepared: Prepared) -> list[str]:
    """Say where the scores are better than they would be on other samples."""
    scoring, warnings = prepared.scoring, []
    if scoring is None or scoring.labelled is None:
        return []
    count, shared = scoring.labelled, scoring.shared
    if shared:
        verb = "is" if shared == 1 else "are"
        warnings.append(
            f"{shared} of the {count} labelled samples {verb} calibration data too: the score is "
            "too good by what was fitted to them; give others"
        )
    if prepared.settings.max_drop is not None and scoring.choose is None:
        warnings.append(
            f"all {count} labelled samples chose the model that they score, because they are too "
            "few to set half of them apart: the score is too good by what was chosen; give more"
        )
    return warnings


def _about_accuracy(prepared: Prepared, report: Report) -> list[str]:
    """Say what was lost, as far as it was measured, and what may keep more."""
    checks, lost = report.verification, _lost(report)
    if lost:
        return [f"{lost}; {_remedy(prepared, report)}"]
    if report.scores or checks is None or not (checks.fidelity and checks.random_inputs):
        return []
    error = checks.output_error
    of_size = "" if error is None else f" of {_percent(error)}"
    unknown = (
        "accuracy was not measured: the inputs of the checks are random numbers, on which an "
        f"output error{of_size} says little either way; give real inputs with --calibration, or "
        "labelled ones with --evaluate"
    )
    if report.plan.max_relative_error <= _LARGE_ERROR:
        return [unknown]
    largest = f"the largest error of a layer is {_percent(report.plan.max_relative_error)}"
    return [f"{unknown}; {largest}, and {_WHAT_DATA_DOES}"]


def _remedy(prepared: Prepared, report: Report) -> str:
    """Say what keeps more accuracy: data or, if there is calibration data, other shapes or less."""
    price = (report.evidence.price if report.evidence else None) or 0.0
    if prepared.data is None:
        return _WHAT_DATA_DOES
    if price >= _HIGH_PRICE:
        return (
            "fast shapes cost accuracy here: with all slices and ranks (--target none) the error "
            f"that the search minimises would be {price:.1f} times smaller, but the model may be "
            "slower"
        )
    if report.limit_result is not None:
        return f"a lower --{report.limit_result.kind.value} keeps more"
    return "remove less, or say what may be lost: --max-error, or --max-drop with labelled samples"


def _lost(report: Report) -> str:
    """Say how much of the score is lost or, without one, of the outputs on real inputs.

    "" if it is little, beyond its standard error, or not known, or within the limit that was given.
    """
    checks, limit = report.verification, report.limit_result
    kind = limit.kind if limit else None
    if report.scores:
        return "" if kind is LimitKind.MAX_DROP else _lost_score(report.scores[0])
    if checks is None or checks.random_inputs:
        return ""
    part = "held-out samples" if checks.held_out else "samples that were fitted to"
    where = f"on {checks.samples} {part}"
    compared = [output for output in checks.fidelity if not output.note]
    scored = [
        (output.top1_agreement, output.top1_agreement_stderr or 0.0)
        for output in compared
        if output.top1_agreement is not None
    ]
    if scored:
        same, noise = min(scored)
        text = f"{where} top-1 is that of the original in {100 * same:.1f} % of the cases"
        return text if 1 - same - noise > _LARGE_LOSS else ""
    error = checks.output_error or 0.0
    if kind is LimitKind.MAX_ERROR or error <= _LARGE_ERROR:
        return ""
    return f"{where} the error of the outputs is {_percent(error)}"


def _lost_score(score: Score) -> str:
    loss, before = score.before - score.after, abs(score.before)
    noise = (score.drop_stderr or 0.0) / 100
    if loss - noise <= _LARGE_LOSS * before:
        return ""
    if not loss <= _MUCH * before:
        return f"much of '{score.name}' is lost"
    if score.samples is None:
        return f"'{score.name}' fell from {score.before:.6g} to {score.after:.6g}"
    return f"'{score.name}' fell by {score.drop:.2f} points"


def _percent(share: float) -> str:
    """Format a share with two digits, or as a whole number from 10 % on."""
    number = 100 * share
    return f"{number:.2g} %" if number < 9.5 else f"{number:.0f} %"
