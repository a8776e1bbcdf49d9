"""A search within several budgets at once, made of searches within one.

What all budgets allow, a mixture of their costs allows too, each as a share of its budget and with
any weights. So the optimum within a mixture that keeps all budgets is the optimum within all of
them; that of one budget alone is the simplest case. Where none keeps all, weights move to what is
overspent, and the mixture's own limit shrinks: the result then keeps all, but may not be optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from alds_onnx.cuts import Cut, FloatArray, LayerShape
from alds_onnx.search.costs import Cost, Mixture, total_cost


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Room:
    """What the layers may take of a budget.

    Attributes
    ----------
    cost
        What is counted.
    allowed, slack
        How much the layers may take together, and how much of that may stay unspent.
    """

    cost: Cost
    allowed: int
    slack: int


_T = TypeVar("_T")

# Mixtures that are tried; each is a search.
_ROUNDS = 12


def search_within(
    rooms: Sequence[Room],
    shapes: Mapping[str, LayerShape],
    solve: Callable[[Room], _T],
    read: Callable[[_T], tuple[float, Mapping[str, Cut | None]]],
) -> _T | None:
    """Search within all budgets.

    Parameters
    ----------
    rooms
        The budgets, one or more.
    shapes
        Sizes of the layers by name.
    solve
        Searches within one budget.
    read
        The objective of a solution, and its cuts.

    Returns
    -------
    The solution with the smallest objective of those that keep all budgets; None if none does. With
    one budget, what `solve` returns.
    """
    if len(rooms) == 1:
        return solve(rooms[0])

    def used(solution: _T) -> FloatArray:
        _, cuts = read(solution)
        totals = [total_cost(room.cost, shapes, cuts) / max(1, room.allowed) for room in rooms]
        return np.array(totals)

    for room in rooms:
        alone = solve(room)
        if (used(alone) <= 1).all():
            return alone
    best: _T | None = None
    weights, shrunk = np.full(len(rooms), 1 / len(rooms)), 1.0
    for _ in range(_ROUNDS):
        found = solve(_mixed(rooms, weights, shrunk))
        shares = used(found)
        if (shares <= 1).all():
            best = found if best is None else min(best, found, key=lambda s: read(s)[0])
        else:
            shrunk /= np.sqrt(shares.max())
        weights = weights * shares**2
        weights /= weights.sum()
    return best


def _mixed(rooms: Sequence[Room], weights: FloatArray, shrunk: float) -> Room:
    """A mixture of all budgets, with `shrunk` of its limit."""
    mixture = Mixture(
        parts=tuple(room.cost for room in rooms),
        allowed=tuple(room.allowed for room in rooms),
        weights=tuple(weights),
    )
    slack = min(room.slack / max(1, room.allowed) for room in rooms)
    return Room(cost=mixture, allowed=int(shrunk * mixture.limit), slack=int(slack * mixture.limit))
