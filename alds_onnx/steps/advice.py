"""The warnings of the report."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.graph.layers import Layer
from alds_onnx.limits import LimitData, LimitResult, Score
from alds_onnx.search.alignment import Alignment
from alds_onnx.steps.data import HOLD_OUT, Data
from alds_onnx.steps.evaluation import ModelScores
from alds_onnx.steps.survey import Survey
from alds_onnx.timing.slow_cuts import SlowCut
from alds_onnx.values import Plan, Status, Verification

# A ratio of times above which a model is slower beyond the noise of the measurement.
_SLOWER = 1.05
# Relative error of an output above which accuracy is likely to suffer.
_LARGE_ERROR = 0.1
# Relative loss of a score that counts as large.
_LARGE_LOSS = 0.01
# Ratio of errors above which a warning says that speed costs accuracy.
_HIGH_PRICE = 1.2
# With fewer calibration samples than this, a warning says that there are too few.
_FEW_SAMPLES = 32

_WHAT_DATA_DOES = (
    "--calibration with a few hundred real inputs, without labels, often keeps the accuracy at the "
    "same size, because ranks are then chosen by measured output errors and factors fitted to the "
    "data"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """The findings of a run, on which the warnings rest.

    Attributes
    ----------
    survey, plan, data
        The model, the decisions, and the calibration data.
    verification, scores, limit_result
        See `values.Report`.
    alignment
        The rule by which slices and ranks were chosen; None if a plan was applied.
    attention_cut
        Whether projections of attention are cut because the budget is out of reach without.
    slow
        Chosen cuts that are slower than their layers.
    original_scores
        Scores of the original; None without an evaluation.
    price
        See `evidence.Evidence`.
    """

    survey: Survey
    plan: Plan
    data: Data | None
    verification: Verification | None
    scores: tuple[Score, ...]
    limit_result: LimitResult | None
    alignment: Alignment | None
    attention_cut: bool
    slow: tuple[SlowCut, ...]
    original_scores: ModelScores | None
    price: float | None


def unaligned(found: Findings) -> tuple[str, ...]:
    """Name the layers whose slices and ranks the runtime is not fast at."""
    rule = found.alignment
    if rule is None:
        return ()
    cuts = {row.name: row.cut for row in found.plan.layers if row.cut}
    return tuple(
        layer.name
        for layer in found.survey.found
        if isinstance(layer, Layer)
        and layer.name in cuts
        and not rule.allows(layer.shape, cuts[layer.name])
    )


def make_warnings(found: Findings) -> tuple[str, ...]:
    """Write all warnings that apply."""
    return (
        *_about_the_model(found),
        *_about_the_checks(found),
        *_about_the_data(found),
        *_about_accuracy(found),
        *_about_speed(found),
    )


def _about_the_model(found: Findings) -> list[str]:
    rows, warnings = found.plan.layers, []
    if not any(row.cut for row in rows):
        warnings.append("no layer was decomposed: the model is unchanged")
    overridable = [
        layer.source.base.name
        for layer in found.survey.found
        if isinstance(layer, Layer)
        and layer.source.overridable
        and any(row.cut for row in rows if row.name == layer.name)
    ]
    if overridable:
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(overridable))
        warnings.append(f"no longer graph inputs, because these weights were decomposed: {names}")
    scored = found.original_scores
    if scored is not None and scored.others:
        others = ", ".join(f"'{name}'" for name in scored.others)
        warnings.append(
            f"the scores are those of the output '{scored.output}'; these look like scores too: "
            f"{others}"
        )
    slow, cut = unaligned(found), [row for row in rows if row.cut]
    if found.alignment is not None and 2 * len(slow) > len(cut):
        warnings.append(
            f"{len(slow)} of {len(cut)} decomposed layers have slices or ranks that "
            f"'{found.alignment.preset.runtime.value}' is not fast at, because the fast ones miss "
            "the budget or lose too much accuracy; a lower compression ratio may be faster"
        )
    if found.attention_cut:
        warnings.append(
            "the projections of attention are cut too, because the budget is out of reach without "
            "them; runtimes may no longer fuse them with the attention downstream"
        )
    if found.slow:
        names = ", ".join(f"'{one.name}'" for one in found.slow)
        lost = -sum(one.timing.saved for one in found.slow) / 1e6
        warnings.append(
            f"slower in onnxruntime on this machine than before, by {lost:.3g} ms in total: {names}"
        )
    return warnings


def _about_the_checks(found: Findings) -> list[str]:
    verification = found.verification
    if verification is None:
        return []
    warnings = []
    if verification.status is Status.NOT_VALIDATED:
        warnings.append(f"not validated: {verification.reason}")
    ratio = verification.latency_ratio
    if ratio is not None and ratio > _SLOWER:
        free = found.alignment is not None and found.alignment.is_free
        warnings.append(
            f"the compressed model takes {ratio:.2f} times as long in onnxruntime on this machine: "
            "grouped convolutions with fewer multiply-accumulates are not always faster"
            + ("; --target ort chooses only those that are" if free else "")
        )
    if verification.fidelity and ratio is None:
        warnings.append("latency was not measured: two such large models may not fit in memory")
    return warnings


def _about_the_data(found: Findings) -> list[str]:
    data, warnings = found.data, []
    if data is None:
        return []
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
    if found.limit_result is not None and found.limit_result.data is LimitData.FITTED:
        warnings.append(
            f"--max-error was measured on the {count} samples that the factors were fitted to: "
            f"{len(data.fit)} runs are too few to set some aside; give {HOLD_OUT} or more"
        )
    return warnings


def _about_accuracy(found: Findings) -> list[str]:
    """Warn about the accuracy of a run without calibration data."""
    verification = found.verification
    if found.data is not None:
        return []
    warnings = []
    if verification is not None and verification.fidelity and verification.random_inputs:
        warnings.append(
            "the output errors were measured on random inputs, which say little about accuracy: "
            "give real inputs with --calibration"
        )
    if _is_lossy(found):
        if found.scores:
            lost = f"much of '{found.scores[0].name}' is lost"
        else:
            lost = (
                f"the error of the outputs is {_worst(found):.0%}: expect a large loss of accuracy"
            )
        warnings.append(f"{lost}; {_WHAT_DATA_DOES}")
    return warnings


def _about_speed(found: Findings) -> list[str]:
    """Say how to keep more accuracy, if it is lost although there is calibration data."""
    price = found.price or 0.0
    if found.data is None or price < _HIGH_PRICE or not _is_lossy(found):
        return []
    return [
        "fast shapes cost accuracy here: with all slices and ranks (--target none) the error that "
        f"the search minimises would be {price:.1f} times smaller, but the model may be slower"
    ]


def _is_lossy(found: Findings) -> bool:
    """Whether much of the score is lost or, without a score, the outputs have a large error."""
    if found.scores:
        score = found.scores[0]
        return score.before - score.after > _LARGE_LOSS * abs(score.before)
    return _worst(found) > _LARGE_ERROR


def _worst(found: Findings) -> float:
    """Give the relative error of the worst output; 0 if nothing was measured."""
    fidelity = found.verification.fidelity if found.verification else ()
    return max((output.relative_l2 for output in fidelity), default=0.0)
