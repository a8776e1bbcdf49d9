"""Compression: prepare, attempt, finish; a limit on errors or scores takes several attempts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from alds_onnx.errors import BudgetError
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.search.budgets import parameter_limit
from alds_onnx.search.target import fractions, largest_that_holds, most_trials
from alds_onnx.settings import Progress, Settings, Source, Step
from alds_onnx.steps.attempt import Attempt, asked_limits, make_attempt
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.finish import Compressed, finish
from alds_onnx.steps.prepare import Prepared, prepare, reach
from alds_onnx.steps.target import Gauge, make_gauge, make_target
from alds_onnx.targets import Target


def run(source: Source, settings: Settings, progress: Progress) -> Compressed:
    """Compress a model; see `alds_onnx.compress`.

    Projections of attention stay whole; a budget that is out of reach so gets them too.
    """
    check_provider(settings.provider)
    clock = Clock(progress)
    prepared = prepare(source, settings, clock)
    try:
        return _compressed(prepared, clock)
    except BudgetError:
        if not prepared.survey.attention:
            raise
    return _compressed(prepare(source, settings, clock, first=prepared), clock)


def _compressed(prepared: Prepared, clock: Clock) -> Compressed:
    settings = prepared.settings
    gauge = make_gauge(prepared.survey, settings, prepared.data, prepared.samples, prepared.scoring)
    if gauge is None:
        attempt, target = make_attempt(prepared, asked_limits(prepared, clock), clock), None
    else:
        attempt, target = _limited(prepared, gauge, clock)
    return finish(prepared, attempt, target, clock)


def run_sweep(source: Source, settings: Settings, progress: Progress) -> Iterator[Compressed]:
    """Compress a model by several ratios; see `alds_onnx.sweep`.

    Projections of attention are cut for those ratios that are out of reach without.
    """
    clock = Clock(progress)
    check_provider(settings.provider)
    usual = furthest = prepare(source, settings, clock)
    usual_reach = reach(usual)
    if usual.survey.attention and max(settings.sweep) > usual_reach:
        furthest = prepare(source, settings, clock, first=usual)
    within = [cr for cr in settings.sweep if cr <= reach(furthest)]
    for number, cr in enumerate(within or settings.sweep[:1], start=1):
        clock.attempt(number, len(within))
        prepared = usual if cr <= usual_reach else furthest
        limits = (parameter_limit(prepared.before, cr),)
        yield finish(prepared, make_attempt(prepared, limits, clock), None, clock)


def _limited(prepared: Prepared, gauge: Gauge, clock: Clock) -> tuple[Attempt, Target]:
    """The largest compression that stays within the limit.

    Raises
    ------
    TargetError
        If none does.
    """
    candidates = fractions(reach(prepared))
    numbers = count(1)

    def attempt(removed: float) -> Attempt:
        clock.attempt(next(numbers), most_trials(candidates))
        made = make_attempt(prepared, (parameter_limit(prepared.before, removed),), clock)
        clock.start(Step.MEASURE)
        return replace(made, reading=gauge.read(made.model, clock.advance))

    found = largest_that_holds(attempt, _value, gauge.limit, candidates)
    target = make_target(gauge, found.trials)
    return found.best or make_attempt(prepared, (), clock), target


def _value(attempt: Attempt) -> float:
    assert attempt.reading is not None
    return attempt.reading.value
