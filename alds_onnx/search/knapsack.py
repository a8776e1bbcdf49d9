"""The smallest sum of errors within a budget, over given frontiers.

A multiple-choice knapsack. The Lagrangian relaxation decouples the layers: at a price per unit of
cost each takes the choice with the smallest error plus price times cost, which is a vertex of its
lower convex hull. Bisection over the price gives the cheapest price at which the budget holds; what
is left then goes to the step with the largest gain per cost that still fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alds_onnx.search.frontier import Frontier

# Halvings of the logarithm of the price; far below the gap between neighbouring vertices.
_BISECTIONS = 100


def minimize_sum_of_errors(frontiers: Sequence[Frontier], budget: int) -> list[int]:
    """Choose for each layer so that the sum of the errors is small.

    Parameters
    ----------
    frontiers
        One for each layer.
    budget
        What the layers may cost together; at least `smallest_cost`.

    Returns
    -------
    The index of the choice on each frontier: optimal on the convex hulls, and at most one layer's
    step away from the optimum.
    """
    chosen = _at_price(frontiers, np.inf)
    low, high = -60.0, 60.0  # natural logarithm of the price
    if frontiers and _cost(frontiers, _at_price(frontiers, 0.0)) <= budget:
        return _at_price(frontiers, 0.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        candidate = _at_price(frontiers, float(np.exp(middle)))
        if _cost(frontiers, candidate) <= budget:
            chosen, high = candidate, middle
        else:
            low = middle
    return _spend_rest(frontiers, chosen, budget)


def _at_price(frontiers: Sequence[Frontier], price: float) -> list[int]:
    if np.isinf(price):
        return [0 for _ in frontiers]
    return [int(np.argmin(f.error + price * f.cost)) for f in frontiers]


def _cost(frontiers: Sequence[Frontier], chosen: Sequence[int]) -> int:
    return sum(int(f.cost[i]) for f, i in zip(frontiers, chosen, strict=True))


def _spend_rest(frontiers: Sequence[Frontier], chosen: list[int], budget: int) -> list[int]:
    """Take the step (of any length on one frontier) with the best gain while one fits."""
    chosen = list(chosen)
    rest = budget - _cost(frontiers, chosen)
    while True:
        steps = [
            step
            for layer, f in enumerate(frontiers)
            if (step := _best_step(f, chosen[layer], rest, layer)) is not None
        ]
        if not steps:
            return chosen
        _, _, layer, index = max(steps, key=lambda step: step[:2])
        rest -= int(frontiers[layer].cost[index] - frontiers[layer].cost[chosen[layer]])
        chosen[layer] = index


def _best_step(
    f: Frontier, current: int, rest: int, layer: int
) -> tuple[float, str, int, int] | None:
    """Gain per cost, name, layer, and index of the best affordable step of one layer."""
    costs = f.cost[current + 1 :] - f.cost[current]
    affordable = int(np.searchsorted(costs, rest, side="right"))
    if not affordable:
        return None
    gains = (f.error[current] - f.error[current + 1 : current + 1 + affordable]) / costs[
        :affordable
    ]
    best = int(np.argmax(gains))
    return float(gains[best]), f.name, layer, current + 1 + best
