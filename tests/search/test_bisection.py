"""Bisection over the fraction to remove: the result was measured to stay within the limit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alds_onnx.results import Trial
from alds_onnx.search.bisection import (
    STEP,
    Found,
    confirmed,
    fractions,
    largest_that_holds,
    most_trials,
    places_below,
)

law = settings(deadline=None)
reaches = st.floats(0, 1, exclude_max=True)


def search(values: dict[float, float], limit: float) -> tuple[float | None, tuple[Trial, ...]]:
    """Search over measured values; an attempt is the fraction itself."""
    found = largest_that_holds(lambda removed: removed, values.__getitem__, limit, tuple(values))
    assert found.checked == ()
    return found.best, found.trials


@law
@given(reaches, st.floats(0, 1))
def test_the_threshold_of_a_step_function_is_found(reach: float, threshold: float) -> None:
    candidates = fractions(reach)
    best, _ = search({c: float(c > threshold) for c in candidates}, limit=0.5)
    assert best == max((c for c in candidates if c <= threshold), default=None)
    if STEP <= threshold <= reach:
        assert best is not None
        assert 0 <= threshold - best < STEP * (1 + 1e-9)


@law
@given(st.lists(st.floats(allow_infinity=True, allow_nan=True), max_size=250), st.floats(0, 10))
def test_what_is_returned_was_seen_to_hold_and_is_the_largest_such(
    values: list[float], limit: float
) -> None:
    best, trials = search({i / 300: v for i, v in enumerate(values)}, limit)
    held = [trial.removed for trial in trials if trial.value <= limit]
    assert best == max(held, default=None)


@law
@given(st.lists(st.floats(0, 1), max_size=250))
def test_few_trials_and_none_twice(values: list[float]) -> None:
    candidates = tuple(i / 300 for i in range(len(values)))
    _, trials = search(dict(zip(candidates, values, strict=True)), 0.5)
    assert len(trials) <= most_trials(candidates) <= 8
    assert len({trial.removed for trial in trials}) == len(trials)


def test_if_nothing_holds_the_smallest_was_tried() -> None:
    best, trials = search(dict.fromkeys(fractions(0.9), 1.0), 0.5)
    assert best is None
    assert trials[-1].removed == STEP


def test_not_a_number_does_not_hold() -> None:
    assert search(dict.fromkeys(fractions(0.9), math.nan), 0.5)[0] is None


@law
@given(reaches)
def test_fractions_are_within_reach_and_short_to_write(reach: float) -> None:
    found = fractions(reach)
    assert list(found) == sorted(set(found))
    assert all(0 < fraction <= reach for fraction in found)
    assert bool(found) == (reach > 0)
    if reach >= STEP:
        assert all(len(str(fraction)) <= 5 for fraction in found)
        assert reach - found[-1] < STEP * (1 + 1e-9)
        assert most_trials(found) <= 8


@pytest.mark.parametrize("reach", [0.0, -0.5])
def test_where_nothing_can_be_removed_nothing_is_tried(reach: float) -> None:
    assert fractions(reach) == ()
    assert search({}, 0.5) == (None, ())


def confirm(
    chosen: dict[float, float], checked: dict[float, float], limit: float
) -> Found[tuple[float, float]]:
    """Search by the chosen values, then step back until the checked ones hold too.

    An attempt is the fraction and its value.
    """
    candidates = tuple(chosen)

    def attempt(removed: float) -> tuple[float, float]:
        return removed, chosen[removed]

    def value(made: tuple[float, float]) -> float:
        return made[1]

    return confirmed(
        largest_that_holds(attempt, value, limit, candidates),
        candidates,
        attempt=attempt,
        measure=value,
        confirm=lambda made: (made[0], checked[made[0]]),
        limit=limit,
    )


@law
@given(st.data(), st.integers(0, 250))
def test_what_is_confirmed_holds_in_both_measurements(data: st.DataObject, size: int) -> None:
    values = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=size, max_size=size)
    candidates = tuple((i + 1) / 300 for i in range(size))
    chosen, checked = (dict(zip(candidates, data.draw(values), strict=True)) for _ in range(2))
    found = confirm(chosen, checked, 0.5)
    assert len({trial.removed for trial in found.trials}) == len(found.trials)
    assert not any(trial.value <= 0.5 for trial in found.checked[:-1])
    if found.best is not None:
        removed, value = found.best
        assert chosen[removed] <= 0.5
        assert value == checked[removed] <= 0.5
        assert found.checked[-1] == Trial(removed=removed, value=value)
    else:
        assert not any(trial.value <= 0.5 for trial in found.checked)


def test_what_holds_at_once_is_not_tried_again() -> None:
    values = {c: c for c in fractions(0.9)}
    found = confirm(values, values, 0.5)
    assert found.best == (0.5, 0.5)
    assert found.checked == (Trial(removed=0.5, value=0.5),)


def test_a_limit_that_breaks_on_other_samples_takes_steps_back_that_double() -> None:
    chosen = {c: c for c in fractions(0.9)}
    found = confirm(chosen, {c: c + 0.04 for c in chosen}, 0.5)
    assert [trial.removed for trial in found.checked] == [0.5, 0.495, 0.485, 0.465, 0.425]
    assert found.best is not None
    assert found.best[0] == 0.425


@law
@given(st.integers(0, 300))
def test_few_steps_back_and_the_last_is_the_smallest(place: int) -> None:
    places = places_below(place)
    assert list(places) == sorted(set(places), reverse=True)
    assert not places if place == 0 else places[-1] == 0
    assert all(0 <= below < place for below in places)
    assert len(places) <= 9


def test_if_the_smallest_breaks_too_there_is_none() -> None:
    chosen = {c: c for c in fractions(0.9)}
    found = confirm(chosen, dict.fromkeys(chosen, 0.6), 0.5)
    assert found.best is None
    assert found.checked[-1].removed == STEP
