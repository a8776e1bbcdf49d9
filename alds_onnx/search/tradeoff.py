"""What every budget would have cost: the optimum of the search over all of them at once.

Both objectives decouple the layers once one number is fixed (`minmax`: a threshold, `knapsack`: a
price). Each threshold or price is the optimum for one budget, so a sweep over them draws the whole
curve in the time of about one search.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import FloatArray
from alds_onnx.search.frontier import Frontier

# More thresholds and prices than points are drawn: those kept are about evenly spaced in cost.
_THRESHOLDS, _PRICES = 2000, 200


def smallest_maxima(
    frontiers: Sequence[Frontier], points: int = 60
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Trade cost for the largest error.

    Parameters
    ----------
    frontiers
        One for each layer, at least one.
    points
        Most points to give.

    Returns
    -------
    Cost of all layers, ascending, and the smallest possible maximum error at each.
    """
    thresholds = _spread(np.unique(np.concatenate([f.error for f in frontiers])), _THRESHOLDS)
    cost = np.zeros(len(thresholds), np.int64)
    for f in frontiers:
        cost += f.cost[np.searchsorted(-f.error, -thresholds)]
    return _thinned(cost[::-1], thresholds[::-1], points)


def smallest_sums(
    frontiers: Sequence[Frontier], points: int = 60
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Trade cost for the sum of the errors, on the convex hulls; as `smallest_maxima`."""
    ties = _spread(np.unique(np.concatenate([_hull_slopes(f) for f in frontiers])), _PRICES)
    # Between two ties, where rounding cannot decide: each vertex is the best for some such price.
    prices = [0.0, *((ties[1:] + ties[:-1]) / 2)]
    cost, error = np.zeros(len(prices) + 1, np.int64), np.zeros(len(prices) + 1)
    for f in frontiers:
        # Above the highest price every layer is at its smallest.
        chosen = [*(int(np.argmin(f.error + price * f.cost)) for price in prices), 0]
        cost += f.cost[chosen]
        error += f.error[chosen]
    return _thinned(cost[::-1], error[::-1], points)


def _hull_slopes(curve: Frontier) -> FloatArray:
    """What a unit of cost saves along each edge of the lower convex hull."""
    hull: list[int] = []
    for point in range(len(curve)):
        while len(hull) > 1 and _saved(curve, *hull[-2:]) <= _saved(curve, hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array([_saved(curve, a, b) for a, b in pairwise(hull)])


def _saved(curve: Frontier, one: int, other: int) -> float:
    return float((curve.error[one] - curve.error[other]) / (curve.cost[other] - curve.cost[one]))


def _spread(values: FloatArray, most: int) -> FloatArray:
    """At most so many of the sorted values, the ends among them."""
    if len(values) <= most:
        return values
    chosen = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return np.asarray(values[chosen])


def _thinned(
    cost: npt.NDArray[np.int64], error: FloatArray, points: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Points of strictly rising cost, about evenly spaced in it; of equal ones the best."""
    last = np.append(np.diff(cost) > 0, True)
    cost, error = cost[last], error[last]
    wanted = np.linspace(cost[0], cost[-1], points)
    kept = np.unique(np.searchsorted(cost, wanted, side="right") - 1)
    return cost[kept], error[kept]
