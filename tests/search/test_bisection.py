"""Bisection over the fraction to remove: the result was measured to stay within the limit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alds_onnx.limits import Trial
from alds_onnx.search.bisection import STEP, fractions, largest_that_holds, most_trials

law = settings(deadline=None)
reaches = st.floats(0, 1, exclude_max=True)


def search(values: dict[float, float], limit: float) -> tuple[float | None, tuple[Trial, ...]]:
    """Search over measured values; an attempt is the fraction itself."""
    return largest_that_holds(lambda removed: removed, values.__getitem__, limit, tuple(values))


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
