"""What a limit on the result is measured by, attempt for attempt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnx import ModelProto, TensorProto

from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.runner import Runner
from alds_onnx.errors import DataError, TargetError, UsageError
from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.samples import Samples
from alds_onnx.evaluate.sessions import Outputs, RunError
from alds_onnx.evaluate.verify import TOLERANCES, overflowing, unsteady
from alds_onnx.settings import Settings
from alds_onnx.steps.data import Data, count_samples
from alds_onnx.steps.evaluation import Evaluator, Measured, make_scores
from alds_onnx.steps.survey import Advance, Survey
from alds_onnx.targets import Target, TargetData, TargetKind, Trial

# An output that differs this much between two runs of the original depends on chance.
_CHANCE = TOLERANCES[TensorProto.FLOAT16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a gauge says about one model: the value, and its scores if it took them."""

    value: float
    measured: Measured | None = None


class Gauge(Protocol):
    """Measures what has a limit."""

    kind: TargetKind
    limit: float
    data: TargetData
    samples: int | None

    def read(self, model: ModelProto, advance: Advance) -> Reading:
        """Measure a compressed model."""


def make_gauge(
    survey: Survey,
    settings: Settings,
    data: Data | None,
    samples: Samples | str,
    scoring: tuple[Evaluator, Measured] | None,
) -> Gauge | None:
    """The gauge for the limit that was asked for; None if a ratio or a plan was.

    Parameters
    ----------
    survey, settings, data
        The model, and what was asked for.
    samples
        The inputs of the checks: without calibration data, errors are measured on them.
    scoring
        What models are scored by, and the scores of the original.

    Raises
    ------
    DataError, UsageError
        If the error of the outputs cannot be measured.
    """
    if settings.max_drop is not None:
        assert scoring is not None
        return _Drop(settings.max_drop, *scoring)
    if settings.max_error is None:
        return None
    if isinstance(samples, str):
        raise DataError(f"--max-error cannot be measured: {samples}")
    feeds: Sequence[Feed] = samples.feeds
    kind = TargetData.RANDOM
    if data is not None:
        feeds, kind = data.held_out or data.fit, TargetData.HELD_OUT
        if not data.held_out:
            kind = TargetData.FITTED
    runner = Runner(
        batches=tuple(feeds),
        folder=survey.loaded.folder,
        threads=settings.threads,
        provider=settings.provider,
    )
    return _Error(settings.max_error, survey.loaded.model, runner, kind)


class _Drop:
    """By how much the first score falls."""

    kind = TargetKind.MAX_DROP

    def __init__(self, limit: float, evaluator: Evaluator, before: Measured) -> None:
        self.limit, self._evaluator, self._before = limit, evaluator, before
        self.samples = before.samples
        self.data = TargetData.FUNCTION if before.samples is None else TargetData.LABELLED

    def read(self, model: ModelProto, advance: Advance) -> Reading:
        after = self._evaluator(model, advance)
        return Reading(value=make_scores(self._before, after)[0].drop, measured=after)


class _Error:
    """Relative L2 error of the worst output, each run on one thread.

    The sums of a run then come in the same order on any number of threads, and so does the choice
    that rests on them.
    """

    kind = TargetKind.MAX_ERROR

    def __init__(self, limit: float, model: ModelProto, runner: Runner, data: TargetData) -> None:
        self.limit, self.data = limit, data
        self.samples: int | None = count_samples(runner.batches)
        self._runner = runner
        try:
            self._names, self._outputs = self._run(model, lambda done, total: None)
            session = runner.session(model)
            again = session.run(runner.batches[0])
        except RunError as e:
            raise DataError(f"--max-error cannot be measured: {e}") from e
        self._ignore = unsteady(self._names, self._outputs[0], again, _CHANCE)
        self._ignore |= overflowing(self._names, self._outputs)

    def _run(self, model: ModelProto, advance: Advance) -> tuple[tuple[str, ...], list[Outputs]]:
        session, batches = self._runner.session(model), self._runner.batches
        outputs = []
        for run in self._runner.map(lambda b: session.run(batches[b]), range(len(batches))):
            outputs.append(run)
            advance(len(outputs), len(batches))
        return session.output_names, outputs

    def read(self, model: ModelProto, advance: Advance) -> Reading:
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
        return Reading(value=max(errors))


def make_target(gauge: Gauge, trials: tuple[Trial, ...]) -> Target:
    """What was found: the value at the largest ratio that holds.

    Raises
    ------
    TargetError
        If none holds.
    """
    held = [trial for trial in trials if trial.value <= gauge.limit]
    if trials and not held:
        raise _out_of_reach(gauge, trials)
    best = max(held, key=lambda trial: trial.removed, default=None)
    return Target(
        kind=gauge.kind,
        limit=gauge.limit,
        reached=best.value if best else 0.0,
        data=gauge.data,
        samples=gauge.samples,
        trials=trials,
    )


def _out_of_reach(gauge: Gauge, trials: tuple[Trial, ...]) -> TargetError:
    least = min(trials, key=lambda t: (math.inf if math.isnan(t.value) else t.value, t.removed))
    what = "output error" if gauge.kind is TargetKind.MAX_ERROR else "drop"
    return TargetError(
        f"--{gauge.kind.value} {gauge.limit:g} is out of reach, nothing was written: the smallest "
        f"{what} was {least.value:.4g}, with {least.removed:.1%} of the parameters removed"
    )
