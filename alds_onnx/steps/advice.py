"""The warnings of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alds_onnx.graph.layers import Layer
from alds_onnx.limits import LimitData
from alds_onnx.runtimes import Runtime
from alds_onnx.steps.data import Data
from alds_onnx.steps.prepare import Prepared
from alds_onnx.timing.slow_cuts import SlowCut
from alds_onnx.values import OutputFidelity, Report, Status

# A ratio of times above which a model is slower beyond the noise of the measurement.
_SLOWER = 1.05
# Relative error of an output above which accuracy is likely to suffer.
_LARGE_ERROR = 0.1
# Relative loss of a score that counts as large.
_LARGE_LOSS = 0.01
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
    scored = prepared.scoring[1] if prepared.scoring else None
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
            "the budget or lose too much accuracy; a lower compression ratio may be faster"
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
            "grouped convolutions with fewer multiply-accumulates are not always faster"
            + ("; --target ort chooses only those that are" if free else "")
        )
    if verification.fidelity and ratio is None:
        warnings.append("latency was not measured: two such large models may not fit in memory")
    return warnings


def _about_kinds_left_out(report: Report) -> list[str]:
    """Say that other kinds of inputs do worse, if that is beyond chance and large enough to care.

    Of several outputs, the one that does worst on these kinds is named.
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
    worse = "kinds of inputs that were left out of the fit do worse: "
    return [f"{worse}{' and '.join(facts)}; give more varied samples"] if facts else []


def _has_larger_error(given: OutputFidelity, other: OutputFidelity) -> bool:
    spread = _spread(given.relative_l2_stderr, other.relative_l2_stderr)
    larger = other.relative_l2 - given.relative_l2
    comparable = not (given.note or other.note)
    return comparable and larger > spread and other.relative_l2 > _WORSE * given.relative_l2


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
        verb = "contains" if data.num_spoilt == 1 else "contain"
        warnings.append(
            f"{data.num_spoilt} of {count} calibration samples {verb} NaN or infinity: the "
            "activations that these affect are left out; check how the data was made"
        )
    if report.limit_result is not None and report.limit_result.data is LimitData.FITTED:
        warnings.append(
            f"--max-error was measured on the {count} samples that the factors were fitted to: "
            "there are too few to set some aside; give more"
        )
    return warnings


def _about_accuracy(prepared: Prepared, report: Report) -> list[str]:
    """Say what may keep more accuracy: data or, if there is calibration data, other shapes."""
    warnings, verification = [], report.verification
    if prepared.data is not None:
        price = (report.evidence.price if report.evidence else None) or 0.0
        if price >= _HIGH_PRICE and _is_lossy(report):
            warnings.append(
                "fast shapes cost accuracy here: with all slices and ranks (--target none) the "
                f"error that the search minimises would be {price:.1f} times smaller, but the "
                "model may be slower"
            )
        return warnings
    if verification is not None and verification.fidelity and verification.random_inputs:
        warnings.append(
            "the output errors were measured on random inputs, which say little about accuracy: "
            "give real inputs with --calibration"
        )
    if _is_lossy(report):
        worst = f"the error of the outputs is {_worst(report):.0%}: expect a large loss of accuracy"
        lost = f"much of '{report.scores[0].name}' is lost" if report.scores else worst
        warnings.append(f"{lost}; {_WHAT_DATA_DOES}")
    return warnings


def _is_lossy(report: Report) -> bool:
    """Whether much of the score is lost or, without a score, the outputs have a large error."""
    if report.scores:
        score = report.scores[0]
        return score.before - score.after > _LARGE_LOSS * abs(score.before)
    return _worst(report) > _LARGE_ERROR


def _worst(report: Report) -> float:
    """Give the relative error of the worst output; 0 if nothing was measured."""
    fidelity = report.verification.fidelity if report.verification else ()
    return max((output.relative_l2 for output in fidelity), default=0.0)
