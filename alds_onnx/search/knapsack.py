"""The smallest sum of errors within a budget, over given frontiers.

This is a multiple-choice knapsack problem. Its Lagrangian relaxation decouples the layers: at a
given price per unit of cost, each layer takes the choice with the smallest error plus price times
cost, which is a vertex of its lower convex hull. A bisection finds the lowest price at which the
budget is kept. The rest of the budget goes to the step with the largest gain per cost that fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alds_onnx.search.frontier import Frontier
from alds_onnx.search.minmax import total_cost

# Halvings of the logarithm of the price: the last step is far below the gap between vertices.
_BISECTIONS = 100


def minimize_sum_of_errors(frontiers: Sequence[Frontier], budget: int) -> list[int]:
    """Give the index of a choice on each frontier so that the sum of the errors is small.

    `budget` is the largest total cost of the layers, at least `smallest_cost`. The result is
    optimal on the convex hulls, and at most one step of one layer away from the optimum.
    """
    chosen = [0 for _ in frontiers]
    low, high = -60.0, 60.0  # natural logarithm of the price
    if frontiers and total_cost(frontiers, _at_price(frontiers, 0.0)) <= budget:
        return _at_price(frontiers, 0.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        candidate = _at_price(frontiers, float(np.exp(middle)))
        if total_cost(frontiers, candidate) <= budget:
            chosen, high = candidate, middle
        else:
            low = middle
    return _spend_leftover(frontiers, chosen, budget)


def _at_price(frontiers: Sequence[Frontier], price: float) -> list[int]:
    return [int(np.argmin(f.error + price * f.cost)) for f in frontiers]


def _spend_leftover(frontiers: Sequence[Frontier], chosen: list[int], budget: int) -> list[int]:
    """Take the step with the largest gain per cost, of any length, as long as one fits."""
    chosen = list(chosen)
    left = budget - total_cost(frontiers, chosen)
    while True:
        steps = [
            step
            for layer, f in enumerate(frontiers)
            if (step := _best_step(f, chosen[layer], left, layer)) is not None
        ]
        if not steps:
            return chosen
        _, _, layer, index = max(steps, key=lambda step: step[:2])
        left -= int(frontiers[layer].cost[index] - frontiers[layer].cost[chosen[layer]])
        chosen[layer] = index


def _best_step(
    f: Frontier, current: int, left: int, layer: int
) -> tuple[float, str, int, int] | None:
    """Find the best affordable step of a layer: gain per cost, name, layer, and index."""
    costs = f.cost[current + 1 :] - f.cost[current]
    affordable = int(np.searchsorted(costs, left, side="right"))
    if not affordable:
        return None
    saved = f.error[current] - f.error[current + 1 : current + 1 + affordable]
    gains = saved / costs[:affordable]
    best = int(np.argmax(gains))
    return float(gains[best]), f.name, layer, current + 1 + best
