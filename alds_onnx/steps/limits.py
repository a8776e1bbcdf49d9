"""Measuring the quantity that a limit bounds: the error of the outputs, or the drop of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnx import ModelProto, TensorProto

from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.runner import Runner
from alds_onnx.errors import DataError, LimitError, UsageError
from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.sessions import Outputs, RunError
from alds_onnx.evaluate.verify import TOLERANCES, incomparable
from alds_onnx.limits import LimitData, LimitKind, LimitResult, Trial
from alds_onnx.steps.data import count_samples, make_runner
from alds_onnx.steps.evaluation import Evaluator, ModelScores, make_scores
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.survey import Advance

# Outputs that differ by more than this between two runs of the original are random.
_RANDOM_OUTPUT = TOLERANCES[TensorProto.FLOAT16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The value of a limited quantity for one model, and the model's scores if they were taken."""

    value: float
    scores: ModelScores | None = None


class LimitedQuantity(Protocol):
    """A quantity that must not exceed `limit`; the other attributes are those of `LimitResult`."""

    kind: LimitKind
    limit: float
    data: LimitData
    samples: int | None

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        """Measure a compressed model."""


def limited_quantity(prepared: Prepared) -> LimitedQuantity | None:
    """Give the quantity that the settings limit; None if they limit none.

    Without calibration data, errors are measured on the inputs of the checks. If the error of the
    outputs cannot be measured, that is a DataError or UsageError.
    """
    settings, samples, data = prepared.settings, prepared.samples, prepared.data
    if settings.max_drop is not None:
        assert prepared.scoring is not None
        return _ScoreDrop(settings.max_drop, *prepared.scoring)
    if settings.max_error is None:
        return None
    if isinstance(samples, str):
        raise DataError(f"--max-error cannot be measured: {samples}")
    feeds: Sequence[Feed] = samples.feeds
    kind = LimitData.RANDOM
    if data is not None:
        feeds, kind = data.choose or data.fit, LimitData.HELD_OUT
        if not data.choose:
            kind = LimitData.FITTED
    runner = make_runner(feeds, prepared.survey, settings)
    return _OutputError(settings.max_error, prepared.survey.loaded.model, runner, kind)


class _ScoreDrop:
    kind = LimitKind.MAX_DROP

    def __init__(self, limit: float, evaluator: Evaluator, before: ModelScores) -> None:
        self.limit, self._evaluator, self._before = limit, evaluator, before
        self.samples = before.samples
        self.data = LimitData.FUNCTION if before.samples is None else LimitData.LABELLED

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        after = self._evaluator(model, advance)
        return Measurement(value=make_scores(self._before, after)[0].drop, scores=after)


class _OutputError:
    """The relative L2 error of the worst output.

    Each run uses one thread, so that its sums, and the choice that rests on them, do not depend on
    the number of threads.
    """

    kind = LimitKind.MAX_ERROR

    def __init__(self, limit: float, model: ModelProto, runner: Runner, data: LimitData) -> None:
        self.limit, self.data = limit, data
        self.samples: int | None = count_samples(runner.batches)
        self._runner = runner
        try:
            self._names, self._outputs = self._run(model, lambda done, total: None)
            session = runner.session(model)
            again = session.run(runner.batches[0])
        except RunError as e:
            raise DataError(f"--max-error cannot be measured: {e}") from e
        self._ignore = incomparable(self._names, self._outputs, again, _RANDOM_OUTPUT)

    def _run(self, model: ModelProto, advance: Advance) -> tuple[tuple[str, ...], list[Outputs]]:
        session, batches = self._runner.session(model), self._runner.batches
        outputs = []
        for run in self._runner.map(lambda b: session.run(batches[b]), range(len(batches))):
            outputs.append(run)
            advance(len(outputs), len(batches))
        return session.output_names, outputs

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        try:
            names, outputs = self._run(model, advance)
        except RunError as e:
            raise DataError(f"--max-error cannot be measured: {e}") from e
        comparison = Comparison(names, self._ignore)
        for expected, actual in zip(self._outputs, outputs, strict=True):
            comparison.add(expected, actual)
        found = comparison.outputs()
        errors = [output.relative_l2 for output in found if not output.note]
        if not errors:
            reasons = ", ".join(f"'{output.name}' ({output.note})" for output in found)
            raise UsageError(f"--max-error: no output can be compared: {reasons}; use --max-drop")
        return Measurement(value=max(errors))


def limit_result(quantity: LimitedQuantity, trials: tuple[Trial, ...]) -> LimitResult:
    """Summarise the trials: the value at the largest ratio that stays within the limit.

    If no ratio does, that is a LimitError.
    """
    held = [trial for trial in trials if trial.value <= quantity.limit]
    if trials and not held:
        raise _out_of_reach(quantity, trials)
    best = max(held, key=lambda trial: trial.removed, default=None)
    return LimitResult(
        kind=quantity.kind,
        limit=quantity.limit,
        reached=best.value if best else 0.0,
        data=quantity.data,
        samples=quantity.samples,
        trials=trials,
    )


def _out_of_reach(quantity: LimitedQuantity, trials: tuple[Trial, ...]) -> LimitError:
    least = min(trials, key=lambda t: (math.inf if math.isnan(t.value) else t.value, t.removed))
    what = "output error" if quantity.kind is LimitKind.MAX_ERROR else "drop"
    return LimitError(
        f"--{quantity.kind.value} {quantity.limit:g} is out of reach, nothing was written: the "
        f"smallest {what} was {least.value:.4g}, with {least.removed:.1%} of the parameters removed"
    )
