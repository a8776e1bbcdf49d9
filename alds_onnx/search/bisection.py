"""Bisection for the largest compression at which a measured value stays within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from alds_onnx.limits import Trial

_T = TypeVar("_T")

#: Distance between the fractions to try. 199 of them take at most 8 trials.
STEP = 0.005


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
) -> tuple[_T | None, tuple[Trial, ...]]:
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
    The attempt with the largest fraction that was measured to stay within the limit, None if there
    is none; and all trials in order, at most `most_trials`.
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
    return best, tuple(trials)
