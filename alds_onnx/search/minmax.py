"""The smallest possible maximum error within a budget, over given frontiers.

Once a threshold on the error is fixed, the layers decouple: each wants its cheapest choice with an
error at or below it. The total cost falls as the threshold rises, so a bisection over the finitely
many errors finds the global optimum. What is left of the budget then goes to the worst layer as
long as it fits, then to the next worst, and so on: the result is optimal lexicographically too.
Where layers have the very same error, the cheaper step goes first: that improves as many of them as
the budget allows, but their next errors may not be the best (to choose among them is a knapsack).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from alds_onnx.search.frontier import Frontier


def smallest_cost(frontiers: Sequence[Frontier]) -> int:
    """What all layers cost, each at its cheapest choice."""
    return sum(int(f.cost[0]) for f in frontiers)


def minimize_maximum_error(frontiers: Sequence[Frontier], budget: int) -> list[int]:
    """Choose for each layer so that the largest error is as small as the budget allows.

    Parameters
    ----------
    frontiers
        One for each layer.
    budget
        What the layers may cost together; at least `smallest_cost`.

    Returns
    -------
    The index of the choice on each frontier.
    """
    threshold = _smallest_threshold(frontiers, budget)
    chosen = [f.cheapest(threshold) for f in frontiers]
    return _spend_rest(frontiers, chosen, budget)


def _smallest_threshold(frontiers: Sequence[Frontier], budget: int) -> float:
    if not frontiers:
        return 0.0
    thresholds = np.unique(np.concatenate([f.error for f in frontiers]))
    low, high = 0, len(thresholds) - 1  # the highest always fits: each layer at its cheapest
    while low < high:
        middle = (low + high) // 2
        cost = sum(int(f.cost[f.cheapest(thresholds[middle])]) for f in frontiers)
        if cost <= budget:
            high = middle
        else:
            low = middle + 1
    return float(thresholds[low])


def _spend_rest(frontiers: Sequence[Frontier], chosen: list[int], budget: int) -> list[int]:
    """Improve the worst layer, step by step; a layer whose next step does not fit stays."""
    chosen = list(chosen)
    rest = budget - sum(int(f.cost[i]) for f, i in zip(frontiers, chosen, strict=True))

    def step(layer: int) -> tuple[float, int, str, int]:
        f, i = frontiers[layer], chosen[layer]
        return (-float(f.error[i]), int(f.cost[i + 1] - f.cost[i]), f.name, layer)

    queue = [step(layer) for layer, f in enumerate(frontiers) if chosen[layer] + 1 < len(f)]
    heapq.heapify(queue)
    while queue:
        _, cost, _, layer = heapq.heappop(queue)
        if cost > rest:
            continue
        rest -= cost
        chosen[layer] += 1
        if chosen[layer] + 1 < len(frontiers[layer]):
            heapq.heappush(queue, step(layer))
    return chosen
