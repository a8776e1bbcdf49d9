"""Compression: prepare, attempt, finish. A limit on errors or scores takes several attempts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from alds_onnx.errors import BudgetError
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.results import LimitResult
from alds_onnx.search.bisection import (
    confirmed,
    fractions,
    largest_that_holds,
    most_trials,
    places_below,
)
from alds_onnx.search.budgets import parameter_budget
from alds_onnx.settings import Progress, Settings, Source, Step
from alds_onnx.steps.attempt import Attempt, make_attempt, requested_budgets
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.finish import Compressed, finish
from alds_onnx.steps.limits import LimitedQuantity, limit_result, limited_quantity
from alds_onnx.steps.prepare import Prepared, prepare, reach


def run(source: Source, settings: Settings, progress: Progress) -> Compressed:
    """Compress a model; see `alds_onnx.compress`.

    The projections of attention stay whole, unless the budget is out of reach without them.
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
    quantity = limited_quantity(prepared)
    if quantity is None:
        attempt = make_attempt(prepared, requested_budgets(prepared, clock), clock)
        return finish(prepared, attempt, None, clock)
    return finish(prepared, *_within_limit(prepared, quantity, clock), clock)


def run_sweep(source: Source, settings: Settings, progress: Progress) -> Iterator[Compressed]:
    """Compress a model by several ratios; see `alds_onnx.sweep`.

    The projections of attention are cut only for the ratios that are out of reach without them.
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
        budgets = (parameter_budget(prepared.before, cr),)
        yield finish(prepared, make_attempt(prepared, budgets, clock), None, clock)


def _within_limit(
    prepared: Prepared, quantity: LimitedQuantity, clock: Clock
) -> tuple[Attempt, LimitResult]:
    """Find the largest compression that stays within the limit, on all samples that measure it."""
    candidates = fractions(reach(prepared))
    numbers, most = count(1), most_trials(candidates)
    if quantity.check_samples is not None:
        most += len(places_below(len(candidates) - 1))

    def attempt(removed: float) -> Attempt:
        clock.attempt(next(numbers), most)
        made = make_attempt(prepared, (parameter_budget(prepared.before, removed),), clock)
        clock.start(Step.MEASURE)
        return replace(made, measurement=quantity.measure(made.model, clock.advance))

    def confirm(made: Attempt) -> Attempt:
        return replace(made, measurement=quantity.confirm(made.model, clock.advance))

    limit, measure = quantity.limit, _value
    found = largest_that_holds(attempt, measure, limit, candidates)
    if quantity.check_samples is not None:
        found = confirmed(
            found, candidates, attempt=attempt, measure=measure, confirm=confirm, limit=limit
        )
    result = limit_result(quantity, found, found.best.measurement if found.best else None)
    return found.best or make_attempt(prepared, (), clock), result


def _value(attempt: Attempt) -> float:
    assert attempt.measurement is not None
    return attempt.measurement.value
