"""Which of several measured points are worth having, and where more starts to cost more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import FloatArray


def pareto_front(size: Sequence[float], loss: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Which points no other one beats: none is at most as large and loses less, or the reverse.

    Parameters
    ----------
    size, loss
        Of each point, smaller is better; a NaN is never on the front. Of equal points all are.
    """
    sizes, losses = np.asarray(size, np.float64), np.asarray(loss, np.float64)
    known = np.isfinite(sizes) & np.isfinite(losses)
    beaten = np.array([_is_beaten(i, sizes, losses) for i in range(len(sizes))], dtype=np.bool_)
    return np.asarray(known & ~beaten)


def _is_beaten(point: int, sizes: FloatArray, losses: FloatArray) -> bool:
    """Whether another point is no worse in either, and better in one."""
    size, loss = sizes[point], losses[point]
    no_worse = np.less_equal(sizes, size) & np.less_equal(losses, loss)
    return bool((no_worse & (np.less(sizes, size) | np.less(losses, loss))).any())


def knee(size: Sequence[float], loss: Sequence[float]) -> int | None:
    """Index of the point where saving more begins to cost disproportionately much.

    Of the points on the front, and the uncompressed model (size 1, loss 0), the one farthest below
    the straight line from there to the smallest one, both axes scaled to that range: the knee of
    Satopaa et al., "Finding a Kneedle in a Haystack", 2011, without its smoothing. None if there is
    no point below the line.
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
