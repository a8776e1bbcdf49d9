"""The smallest possible maximum error within a budget, over given frontiers.

Once a threshold on the error is fixed, the layers decouple: each takes its cheapest choice with an
error at or below the threshold. The total cost falls as the threshold rises, so a bisection over
the finitely many errors finds the global optimum. The rest of the budget goes to the worst layer as
long as its next step fits, then to the next worst, and so on: the result is also lexicographically
optimal. Among layers with the same error the cheapest step goes first. This improves as many of
them as the budget allows, but their next errors may not be the best possible ones, because that
choice is a knapsack problem.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from alds_onnx.cuts import Spectra
from alds_onnx.search.frontier import Frontier, frontier


def smallest_cost(frontiers: Sequence[Frontier]) -> int:
    """Add up the costs of all layers, each at its cheapest choice."""
    return sum(int(f.cost[0]) for f in frontiers)


def smallest_parameters(spectra: Mapping[str, Spectra]) -> int:
    """Count the parameters of all layers, each cut as far as possible."""
    return smallest_cost([frontier(name, curves) for name, curves in spectra.items()])


def total_cost(frontiers: Sequence[Frontier], chosen: Sequence[int]) -> int:
    """Add up the costs of the choices at these indices."""
    return sum(int(f.cost[i]) for f, i in zip(frontiers, chosen, strict=True))


def minimize_maximum_error(frontiers: Sequence[Frontier], budget: int) -> list[int]:
    """Give the index of the choice on each frontier that makes the largest error smallest.

    `budget` is the largest total cost of the layers; at least `smallest_cost`.
    """
    threshold = _smallest_threshold(frontiers, budget)
    chosen = [f.cheapest(threshold) for f in frontiers]
    return _spend_leftover(frontiers, chosen, budget)


def _smallest_threshold(frontiers: Sequence[Frontier], budget: int) -> float:
    if not frontiers:
        return 0.0
    thresholds = np.unique(np.concatenate([f.error for f in frontiers]))
    low, high = 0, len(thresholds) - 1  # the highest always fits: each layer at its cheapest
    while low < high:
        middle = (low + high) // 2
        if total_cost(frontiers, [f.cheapest(thresholds[middle]) for f in frontiers]) <= budget:
            high = middle
        else:
            low = middle + 1
    return float(thresholds[low])


def _spend_leftover(frontiers: Sequence[Frontier], chosen: list[int], budget: int) -> list[int]:
    """Improve the worst layer step by step; leave a layer whose next step does not fit."""
    chosen = list(chosen)
    left = budget - total_cost(frontiers, chosen)

    def step(layer: int) -> tuple[float, int, str, int]:
        f, i = frontiers[layer], chosen[layer]
        return (-float(f.error[i]), int(f.cost[i + 1] - f.cost[i]), f.name, layer)

    queue = [step(layer) for layer, f in enumerate(frontiers) if chosen[layer] + 1 < len(f)]
    heapq.heapify(queue)
    while queue:
        _, cost, _, layer = heapq.heappop(queue)
        if cost > left:
            continue
        left -= cost
        chosen[layer] += 1
        if chosen[layer] + 1 < len(frontiers[layer]):
            heapq.heappush(queue, step(layer))
    return chosen
