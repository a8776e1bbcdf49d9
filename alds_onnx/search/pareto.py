"""The Pareto front of measured points, and its knee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pareto_front(size: Sequence[float], loss: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point is dominated if another one is no worse in size and loss, and better in one of them;
    smaller is better. A point with NaN is never on the front. Equal points are on it together.
    """
    sizes, losses = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    known = np.isfinite(sizes) & np.isfinite(losses)
    size_of_each, loss_of_each = sizes[:, None], losses[:, None]
    no_worse = (sizes <= size_of_each) & (losses <= loss_of_each)
    better = (sizes < size_of_each) | (losses < loss_of_each)
    return np.asarray(known & ~(no_worse & better).any(axis=1))


def knee(size: Sequence[float], loss: Sequence[float]) -> int | None:
    """Find the point beyond which saving more costs disproportionately much.

    The knee is the point of the front farthest below the straight line from the uncompressed model
    (size 1, loss 0) to the smallest point, with both axes scaled to that range; see Satopaa et al.,
    "Finding a Kneedle in a Haystack", 2011, here without smoothing. None if no point lies below it.
    """
    front = np.flatnonzero(pareto_front(size, loss))
    if not len(front):
        return None
    sizes, losses = np.asarray(size, np.float64)[front], np.asarray(loss, np.float64)[front]
    saved, worst = 1 - sizes, float(losses.max())
    if float(saved.max()) <= 0.0:
        return None
    if worst <= 0.0:
        return int(front[int(saved.argmax())])
    below = saved / float(saved.max()) - losses / worst
    best = int(below.argmax())
    return int(front[best]) if below[best] > 0 else None
