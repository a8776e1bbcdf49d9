"""The Pareto front of measured points, and its knee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import FloatArray


def pareto_front(size: Sequence[float], loss: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point is dominated if another one is no worse in size and loss, and better in one of them.

    Parameters
    ----------
    size, loss
        Size and loss of each point; smaller is better. A point with NaN is never on the front.
        Equal points are on it together.
    """
    sizes, losses = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    known = np.isfinite(sizes) & np.isfinite(losses)
    beaten = np.array([_is_beaten(i, sizes, losses) for i in range(len(sizes))], dtype=np.bool_)
    return np.asarray(known & ~beaten)


def _is_beaten(point: int, sizes: FloatArray, losses: FloatArray) -> bool:
    """Whether another point is no worse in size and loss, and better in one of them."""
    size, loss = sizes[point], losses[point]
    no_worse = np.less_equal(sizes, size) & np.less_equal(losses, loss)
    return bool((no_worse & (np.less(sizes, size) | np.less(losses, loss))).any())


def knee(size: Sequence[float], loss: Sequence[float]) -> int | None:
    """Find the point beyond which saving more costs disproportionately much.

    The knee is the point of the front farthest below the straight line from the uncompressed model
    (size 1, loss 0) to the smallest point, with both axes scaled to that range; see Satopaa et al.,
    "Finding a Kneedle in a Haystack", 2011, here without smoothing.

    Returns
    -------
    The index of the point; None if no point lies below the line.
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
