"""What the user should know about a run: the warnings of the report."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.graph.layers import Layer
from alds_onnx.search.alignment import Alignment
from alds_onnx.steps.data import HOLD_OUT, Data
from alds_onnx.steps.evaluation import Measured
from alds_onnx.steps.survey import Survey
from alds_onnx.targets import Score, Target, TargetData
from alds_onnx.timing.slow_cuts import SlowCut
from alds_onnx.values import Plan, Status, Verification

# A compressed model that takes this much longer is slower beyond the noise of the measurement.
_SLOWER = 1.05
# Relative error of an output above which accuracy is likely to suffer.
_LARGE_ERROR = 0.1
# Part of a score that is a large loss.
_LARGE_LOSS = 0.01
# How much larger errors are where it is worth a word that speed costs accuracy.
_HIGH_PRICE = 1.2
# Fewer calibration samples than this say too little about the directions that matter.
_FEW_SAMPLES = 32

_WHAT_DATA_DOES = (
    "a few hundred real inputs, without labels, change that: with --calibration, ranks are chosen "
    "by measured output errors and the factors fitted to the data, which often keeps the accuracy "
    "at the same size"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """What a run found out.

    Attributes
    ----------
    survey, plan, data
        The model, what was decided, and the calibration data.
    verification, scores, target
        As in `values.Report`.
    alignment
        The rule by which slices and ranks were chosen; None where a plan was applied.
    attention_cut
        Whether the budget needs layers that would be kept whole for attention.
    slow
        Cuts that are slower than their layers.
    measured
        The original's scores, if there are any.
    price
        As in `evidence.Evidence`.
    """

    survey: Survey
    plan: Plan
    data: Data | None
    verification: Verification | None
    scores: tuple[Score, ...]
    target: Target | None
    alignment: Alignment | None
    attention_cut: bool
    slow: tuple[SlowCut, ...]
    measured: Measured | None
    price: float | None


def unaligned(found: Findings) -> tuple[str, ...]:
    """Names of the layers whose slices and ranks are not those that the runtime is fast at."""
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
    """Say what the user should know."""
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
        warnings.append(f"no longer graph inputs, because their weights were decomposed: {names}")
    if found.measured is not None and found.measured.others:
        others = ", ".join(f"'{name}'" for name in found.measured.others)
        warnings.append(
            f"scored by the output '{found.measured.output}'; {others} would have fitted too"
        )
    slow, cut = unaligned(found), [row for row in rows if row.cut]
    if found.alignment is not None and 2 * len(slow) > len(cut):
        warnings.append(
            f"{len(slow)} of {len(cut)} decomposed layers have slices or ranks that "
            f"'{found.alignment.preset.runtime.value}' is not fast at: those that it is fast at "
            "lose too much at this ratio, or miss it; a smaller one may be faster"
        )
    if found.attention_cut:
        warnings.append(
            "the budget is out of reach without the projections of attention: they are cut too, "
            "and runtimes may no longer fuse them with what is behind them"
        )
    if found.slow:
        names = ", ".join(f"'{one.name}'" for one in found.slow)
        lost = -sum(one.timing.saved for one in found.slow) / 1e6
        warnings.append(
            f"slower in onnxruntime on this machine than before, by {lost:.3g} ms together: {names}"
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
            "fewer multiply-accumulates in grouped convolutions are not always faster"
            + ("; --target ort chooses those that are" if free else "")
        )
    if verification.fidelity and ratio is None:
        warnings.append("latency was not measured: two such large models do not fit side by side")
    return warnings


def _about_the_data(found: Findings) -> list[str]:
    data, warnings = found.data, []
    if data is None:
        return []
    count = data.num_samples
    if count < _FEW_SAMPLES:
        warnings.append(
            f"only {count} calibration samples: the factors may fit them and little else; give at "
            f"least {_FEW_SAMPLES}, better a few hundred"
        )
    if data.num_spoilt:
        verb = "holds" if data.num_spoilt == 1 else "hold"
        warnings.append(
            f"{data.num_spoilt} of {count} calibration samples {verb} NaN or infinity: what these "
            "spoil in the layers is left out there; check how the data was made"
        )
    if found.target is not None and found.target.data is TargetData.FITTED:
        warnings.append(
            f"--max-error was measured on the {count} samples that the factors were fitted to: "
            f"{len(data.fit)} runs are too few to set some aside, give {HOLD_OUT} or more"
        )
    return warnings


def _about_accuracy(found: Findings) -> list[str]:
    """What the errors without calibration data mean."""
    verification = found.verification
    if found.data is not None:
        return []
    warnings = []
    if verification is not None and verification.fidelity and verification.random_inputs:
        warnings.append(
            "measured on random inputs, which say little about accuracy: "
            "give real ones with --calibration"
        )
    if _is_lossy(found):
        if found.scores:
            lost = f"much of '{found.scores[0].name}' is lost"
        else:
            lost = f"the outputs are off by {_worst(found):.0%}: expect a large loss of accuracy"
        warnings.append(f"{lost}; {_WHAT_DATA_DOES}")
    return warnings


def _about_speed(found: Findings) -> list[str]:
    """Where data was given and accuracy is lost all the same: what keeps more of it."""
    price = found.price or 0.0
    if found.data is None or price < _HIGH_PRICE or not _is_lossy(found):
        return []
    return [
        "speed costs accuracy here: with all slices and ranks (--target none) the error that "
        f"decides would be {price:.1f} times as small, and the model perhaps slower"
    ]


def _is_lossy(found: Findings) -> bool:
    """Whether much of the score is lost or, where there is none, the outputs are far off."""
    if found.scores:
        score = found.scores[0]
        return score.before - score.after > _LARGE_LOSS * abs(score.before)
    return _worst(found) > _LARGE_ERROR


def _worst(found: Findings) -> float:
    """Relative error of the worst output; 0 where nothing was measured."""
    fidelity = found.verification.fidelity if found.verification else ()
    return max((output.relative_l2 for output in fidelity), default=0.0)
