"""Measuring the quantity that a limit bounds: the error of the outputs, or the drop of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from onnx import ModelProto, TensorProto

from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.runner import Runner
from alds_onnx.errors import DataError, LimitError, UsageError
from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.sessions import Outputs, RunError
from alds_onnx.evaluate.verify import TOLERANCES, incomparable
from alds_onnx.results import LimitData, LimitKind, LimitResult, Trial
from alds_onnx.search.bisection import Found
from alds_onnx.steps.data import count_samples, make_runner
from alds_onnx.steps.evaluation import Judge, ModelScores, Scoring
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.survey import Advance

# Outputs that differ by more than this between two runs of the original are random.
_RANDOM_OUTPUT = TOLERANCES[TensorProto.FLOAT16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The value of a limited quantity for one model.

    `stderr` is its standard error, where that is known; `scores` are the model's, if they were
    taken.
    """

    value: float
    stderr: float | None = None
    scores: ModelScores | None = None


class LimitedQuantity(Protocol):
    """A quantity that must not exceed `limit`; `kind` and `data` are as in `LimitResult`.

    `samples` counts those by which an attempt is chosen, None for a function; `check_samples` those
    on which it is confirmed, None if there are no others.
    """

    kind: LimitKind
    limit: float
    data: LimitData
    samples: int | None
    check_samples: int | None

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        """Measure a compressed model, to choose by."""

    def confirm(self, model: ModelProto, advance: Advance) -> Measurement:
        """Measure a compressed model on the samples that nothing is chosen by."""


def limited_quantity(prepared: Prepared) -> LimitedQuantity | None:
    """Give the quantity that the settings limit; None if they limit none.

    Without calibration data, errors are measured on the inputs of the checks. If the error of the
    outputs cannot be measured, that is a DataError or UsageError.
    """
    settings, samples, data = prepared.settings, prepared.samples, prepared.data
    if settings.max_drop is not None:
        assert prepared.scoring is not None
        return _ScoreDrop(settings.max_drop, prepared.scoring)
    if settings.max_error is None:
        return None
    if isinstance(samples, str):
        raise DataError(f"--max-error cannot be measured: {samples}")
    feeds: Sequence[Feed] = samples.feeds
    kind, others = LimitData.RANDOM, None
    if data is not None and data.choose and data.check:
        feeds, others, kind = data.choose, data.check, LimitData.HELD_OUT
    elif data is not None:
        feeds, kind = data.fit, LimitData.FITTED
    parts = [_part(prepared, part) for part in (feeds, others) if part is not None]
    return _OutputError(settings.max_error, kind, *parts)


def _part(prepared: Prepared, feeds: Sequence[Feed]) -> _Part:
    survey = prepared.survey
    return _Part(survey.loaded.model, make_runner(feeds, survey, prepared.settings))


class _ScoreDrop:
    kind = LimitKind.MAX_DROP

    def __init__(self, limit: float, scoring: Scoring) -> None:
        self.limit, self._check = limit, scoring.check
        self._choose = scoring.choose or scoring.check
        self.samples = self._choose.before.samples
        self.check_samples = self._check.before.samples if scoring.choose else None
        self.data = LimitData.FUNCTION if self.samples is None else LimitData.LABELLED

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        return _drop(self._choose, model, advance)

    def confirm(self, model: ModelProto, advance: Advance) -> Measurement:
        return _drop(self._check, model, advance)


def _drop(judge: Judge, model: ModelProto, advance: Advance) -> Measurement:
    after = judge.evaluator(model, advance)
    score = judge.scores(after)[0]
    return Measurement(value=score.drop, stderr=score.drop_stderr, scores=after)


class _OutputError:
    """The relative L2 error of the worst output, on samples to choose by and, maybe, on others."""

    kind = LimitKind.MAX_ERROR

    def __init__(
        self, limit: float, data: LimitData, choose: _Part, check: _Part | None = None
    ) -> None:
        self.limit, self.data = limit, data
        self._choose, self._check = choose, check or choose
        self.samples: int | None = choose.samples
        self.check_samples = check.samples if check else None

    def measure(self, model: ModelProto, advance: Advance) -> Measurement:
        return self._choose.error(model, advance)

    def confirm(self, model: ModelProto, advance: Advance) -> Measurement:
        return self._check.error(model, advance)


class _Part:
    """Samples, and the outputs of the original on them.

    Each run uses one thread, so that its sums, and the choice that rests on them, do not depend on
    the number of threads.
    """

    def __init__(self, model: ModelProto, runner: Runner) -> None:
        self.samples = count_samples(runner.batches)
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

    def error(self, model: ModelProto, advance: Advance) -> Measurement:
        """Measure the error of the worst output that can be compared; a UsageError if none can."""
        try:
            names, outputs = self._run(model, advance)
        except RunError as e:
            raise DataError(f"--max-error cannot be measured: {e}") from e
        comparison = Comparison(names, self._ignore)
        for expected, actual in zip(self._outputs, outputs, strict=True):
            comparison.add(expected, actual)
        found = comparison.outputs()
        compared = [output for output in found if not output.note]
        if not compared:
            reasons = ", ".join(f"'{output.name}' ({output.note})" for output in found)
            raise UsageError(f"--max-error: no output can be compared: {reasons}; use --max-drop")
        worst = max(compared, key=lambda output: output.relative_l2)
        return Measurement(value=worst.relative_l2, stderr=worst.relative_l2_stderr)


def limit_result(
    quantity: LimitedQuantity, found: Found[Any], best: Measurement | None
) -> LimitResult:
    """Summarise a search; `best` is the last measurement of what it found.

    If it found nothing although something could be removed, that is a LimitError.
    """
    trials, checked = found.trials, found.checked
    if trials and best is None:
        raise _out_of_reach(quantity, checked or trials)
    chosen = {trial.removed: trial.value for trial in trials}
    return LimitResult(
        kind=quantity.kind,
        limit=quantity.limit,
        reached=best.value if best else 0.0,
        data=quantity.data,
        samples=quantity.check_samples if checked else quantity.samples,
        trials=trials,
        stderr=best.stderr if best else None,
        chosen=chosen[checked[-1].removed] if checked else None,
        chosen_samples=quantity.samples if checked else None,
        checked=checked,
    )


def _out_of_reach(quantity: LimitedQuantity, trials: tuple[Trial, ...]) -> LimitError:
    least = min(trials, key=lambda t: (math.inf if math.isnan(t.value) else t.value, t.removed))
    what = "output error" if quantity.kind is LimitKind.MAX_ERROR else "drop"
    return LimitError(
        f"--{quantity.kind.value} {quantity.limit:g} is out of reach, nothing was written: the "
        f"smallest {what} was {least.value:.4g}, with {least.removed:.1%} of the parameters removed"
    )
