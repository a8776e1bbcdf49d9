"""The trade-off between cost and error: the optimum of the search for all budgets at once.

Both objectives decouple the layers once one number is fixed: a threshold in `minmax`, a price in
`knapsack`. Each threshold or price gives the optimum for one budget, so that evaluating many of
them draws the whole curve in about the time of one search.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import FloatArray
from alds_onnx.search.frontier import Frontier

# Evaluate more thresholds and prices than points are drawn, to space the points evenly in cost.
_THRESHOLDS, _PRICES = 2000, 200


def smallest_maxima(
    frontiers: Sequence[Frontier], points: int = 60
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Draw the trade-off between cost and the largest error of one layer or more.

    The result, of at most so many points, has total costs of the layers, ascending, and the
    smallest possible maximum error at each.
    """
    thresholds = _spread(np.unique(np.concatenate([f.error for f in frontiers])), _THRESHOLDS)
    cost = np.zeros(len(thresholds), np.int64)
    for f in frontiers:
        cost += f.cost[np.searchsorted(-f.error, -thresholds)]
    return _thinned(cost[::-1], thresholds[::-1], points)


def smallest_sums(
    frontiers: Sequence[Frontier], points: int = 60
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Draw the trade-off between cost and the sum of the errors, on the convex hulls, likewise."""
    ties = _spread(np.unique(np.concatenate([_hull_slopes(f) for f in frontiers])), _PRICES)
    # Prices between ties, where rounding has no effect. Each vertex is the best for one of them.
    prices = [0.0, *((ties[1:] + ties[:-1]) / 2)]
    cost, error = np.zeros(len(prices) + 1, np.int64), np.zeros(len(prices) + 1)
    for f in frontiers:
        # Above the highest price every layer takes its cheapest choice.
        chosen = [*(int(np.argmin(f.error + price * f.cost)) for price in prices), 0]
        cost += f.cost[chosen]
        error += f.error[chosen]
    return _thinned(cost[::-1], error[::-1], points)


def _hull_slopes(curve: Frontier) -> FloatArray:
    """Give the error saved per unit of cost along each edge of the lower convex hull."""
    hull: list[int] = []
    for point in range(len(curve)):
        while len(hull) > 1 and _saved(curve, *hull[-2:]) <= _saved(curve, hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array([_saved(curve, a, b) for a, b in pairwise(hull)])


def _saved(curve: Frontier, one: int, other: int) -> float:
    return float((curve.error[one] - curve.error[other]) / (curve.cost[other] - curve.cost[one]))


def _spread(values: FloatArray, most: int) -> FloatArray:
    """Pick at most `most` of the sorted values, among them both ends."""
    if len(values) <= most:
        return values
    chosen = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return np.asarray(values[chosen])


def _thinned(
    cost: npt.NDArray[np.int64], error: FloatArray, points: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Pick points of strictly rising cost, about evenly spaced; the best one of equal cost."""
    last = np.append(np.diff(cost) > 0, True)
    cost, error = cost[last], error[last]
    wanted = np.linspace(cost[0], cost[-1], points)
    kept = np.unique(np.searchsorted(cost, wanted, side="right") - 1)
    return cost[kept], error[kept]
