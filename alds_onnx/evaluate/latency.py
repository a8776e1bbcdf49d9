"""Latency of two models, in turns, so that a drift of the machine's speed meets both."""

from __future__ import annotations

import time

import numpy as np

from alds_onnx.evaluate.sessions import Feeds, Session
from alds_onnx.values import Latency

_WARM_UP = 2
_FEWEST, _MOST = 5, 200


def measure(
    original: Session, compressed: Session, feeds: Feeds, *, seconds: float = 1.0
) -> tuple[Latency, Latency]:
    """Time both models on the same inputs, A B A B ...

    Parameters
    ----------
    original, compressed
        Loaded with the same number of threads.
    feeds
        The inputs of one run.
    seconds
        About how long to measure; at least five runs of each all the same.
    """
    sessions = (original, compressed)
    for _ in range(_WARM_UP):
        for session in sessions:
            session.run(feeds)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < _FEWEST or (time.perf_counter() < end and len(times[0]) < _MOST):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            own.append(1e3 * (time.perf_counter() - start))
    return _summary(times[0]), _summary(times[1])


def _summary(milliseconds: list[float]) -> Latency:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return Latency(
        median_ms=float(median),
        low_ms=float(low),
        high_ms=float(high),
        runs=len(milliseconds),
        times_ms=tuple(milliseconds),
    )
