"""Bisection for the largest compression at which a measured value stays within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from alds_onnx.results import Trial

_T = TypeVar("_T")

#: Distance between the fractions to try. 199 of them take at most 8 trials.
STEP = 0.005


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found(Generic[_T]):
    """The result of a search for the largest compression within a limit.

    Attributes
    ----------
    best
        The attempt that was found; None if there is none.
    trials
        All that was measured to choose, in order; no fraction twice.
    checked
        What was measured after that, on other samples, in order. The limit is broken in all but the
        last one, and there too if `best` is None.
    """

    best: _T | None
    trials: tuple[Trial, ...]
    checked: tuple[Trial, ...] = ()


def fractions(reach: float) -> tuple[float, ...]:
    """List the fractions to try: the multiples of `STEP` up to `reach`.

    Gives `reach` itself if there are none, and nothing if `reach` is not above 0.
    """
    # Divide instead of multiplying: 147 / 200 is the float that prints as 0.735.
    per_one = round(1 / STEP)
    steps = tuple(i / per_one for i in range(1, per_one) if i / per_one <= reach)
    return steps or ((reach,) if reach > 0 else ())


def most_trials(candidates: Sequence[float]) -> int:
    """Give the largest number of trials that `largest_that_holds` needs."""
    return len(candidates).bit_length()


def largest_that_holds(
    attempt: Callable[[float], _T],
    measure: Callable[[_T], float],
    limit: float,
    candidates: Sequence[float],
) -> Found[_T]:
    """Bisect over the fractions to remove.

    Parameters
    ----------
    attempt
        Compresses the model by a fraction.
    measure
        Gives the value that must not exceed `limit`; NaN counts as exceeding it. The value need not
        grow with the fraction. If it does not, the result stays within the limit, but a larger
        fraction might too.
    limit
        The largest allowed value.
    candidates
        Fractions, ascending.

    Returns
    -------
    The attempt with the largest fraction that was measured to stay within the limit, and all
    trials, at most `most_trials`.
    """
    best: _T | None = None
    trials: list[Trial] = []
    low, high = -1, len(candidates)  # low stays within the limit, high does not
    while high - low > 1:
        middle = (low + high) // 2
        made = attempt(candidates[middle])
        value = measure(made)
        trials.append(Trial(removed=candidates[middle], value=value))
        if value <= limit:
            low, best = middle, made
        else:
            high = middle
    return Found(best=best, trials=tuple(trials))


def places_below(place: int) -> tuple[int, ...]:
    """List the places to step back to: each is twice as far from the last one as that was.

    The last is 0. There are at most 8 below 200.
    """
    places, step = [], 1
    while place > 0:
        place = max(0, place - step)
        places.append(place)
        step *= 2
    return tuple(places)


def confirmed(
    first: Found[_T],
    candidates: Sequence[float],
    *,
    attempt: Callable[[float], _T],
    measure: Callable[[_T], float],
    confirm: Callable[[_T], _T],
    limit: float,
) -> Found[_T]:
    """Step back from what a search found until the limit holds on other samples too.

    Nothing is chosen by the other samples but where to stop, and there are few stops: the steps
    double, because a bisection by the same samples would end just within the limit by chance.

    Parameters
    ----------
    first
        What the search found.
    candidates, attempt, measure, limit
        Those of the search; see `largest_that_holds`.
    confirm
        Gives an attempt with its value on the other samples.
    """
    made, trials, checked = first.best, list(first.trials), list(first.checked)
    if made is None:
        return first
    removed = max(trial.removed for trial in trials if trial.value <= limit)
    places = iter(places_below(candidates.index(removed)))
    while True:
        value = measure(made)
        if all(trial.removed != removed for trial in trials):
            trials.append(Trial(removed=removed, value=value))
        if value <= limit:
            made = confirm(made)
            checked.append(Trial(removed=removed, value=measure(made)))
            if checked[-1].value <= limit:
                break
        place = next(places, None)
        if place is None:
            made = None
            break
        removed = candidates[place]
        made = attempt(removed)
    return Found(best=made, trials=tuple(trials), checked=tuple(checked))
