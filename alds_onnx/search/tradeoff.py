"""What every budget would have cost: the optimum of the search over all of them at once.

Both objectives decouple the layers once one number is fixed (`minmax`: a threshold, `knapsack`: a
price). Each threshold or price is the optimum for one budget, so a sweep over them draws the whole
curve in the time of about one search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alds_onnx.search.frontier import Frontier
from alds_onnx.values import FloatArray

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
    slopes = [-np.diff(f.error) / np.diff(f.cost) for f in frontiers]
    prices = [0.0, *_spread(np.unique(np.concatenate(slopes)), _PRICES)]
    cost, error = np.zeros(len(prices) + 1, np.int64), np.zeros(len(prices) + 1)
    for f in frontiers:
        # Above the highest price every layer is at its smallest.
        chosen = [*(int(np.argmin(f.error + price * f.cost)) for price in prices), 0]
        cost += f.cost[chosen]
        error += f.error[chosen]
    return _thinned(cost[::-1], error[::-1], points)


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
