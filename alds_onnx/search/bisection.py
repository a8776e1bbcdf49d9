"""The largest compression at which something that is measured stays within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from alds_onnx.limits import Trial

_T = TypeVar("_T")

#: Distance of the fractions that are tried. 199 of them take at most 8 trials.
STEP = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[_T]):
    """How a search ended.

    Attributes
    ----------
    best
        What was made for the largest fraction that was seen to hold; None if none was.
    trials
        All that was tried, in order.
    """

    best: _T | None
    trials: tuple[Trial, ...]


def fractions(reach: float) -> tuple[float, ...]:
    """What may be removed: multiples of `STEP` up to `reach`; `reach` itself where there are none.

    Nothing if `reach` is not above 0.
    """
    # Divided, not multiplied: 147 / 200 is the number that reads 0.735.
    per_one = round(1 / STEP)
    steps = tuple(i / per_one for i in range(1, per_one) if i / per_one <= reach)
    return steps or ((reach,) if reach > 0 else ())


def most_trials(candidates: Sequence[float]) -> int:
    """How many of the candidates `largest_that_holds` tries at most."""
    return len(candidates).bit_length()


def largest_that_holds(
    attempt: Callable[[float], _T],
    measure: Callable[[_T], float],
    limit: float,
    candidates: Sequence[float],
) -> Found[_T]:
    """Bisect over the fractions to remove; below the smallest, nothing is removed and all holds.

    Parameters
    ----------
    attempt
        Makes what is measured, from the fraction to remove.
    measure
        A value that should not exceed `limit`. It may fall where more is removed: then the result
        is one that holds, but perhaps not the largest of all that would. NaN does not hold.
    limit
        The largest value that holds.
    candidates
        Fractions, ascending.

    Returns
    -------
    The largest that was seen to hold, and at most `most_trials` trials.
    """
    best: _T | None = None
    trials: list[Trial] = []
    low, high = -1, len(candidates)  # the first holds, the second does not or is out of reach
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
