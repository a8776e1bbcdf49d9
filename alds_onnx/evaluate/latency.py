"""Run times of several models, taken in turns so that a drift of the machine's speed meets all."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from alds_onnx.cuts import FloatArray
from alds_onnx.evaluate.sessions import Feeds, Session
from alds_onnx.results import Latency

_WARM_UP = 2
_FEWEST, _MOST = 5, 200


def time_in_turns(
    sessions: Sequence[Session],
    feeds: Feeds,
    seconds: float,
    *,
    fewest: int = _FEWEST,
    most: int = _MOST,
) -> FloatArray:
    """Run models A B C A B C ..., and give the seconds of each run, shape (sessions, turns).

    The models are loaded with the same number of threads. The turns last about `seconds` after two
    that do not count, and there are `fewest` to `most` of them, whatever the time.
    """
    turns: list[list[float]] = []
    for _ in range(_WARM_UP):
        for session in sessions:
            session.run(feeds)
    end = time.perf_counter() + seconds
    while len(turns) < fewest or (len(turns) < most and time.perf_counter() < end):
        turns.append([])
        for session in sessions:
            start = time.perf_counter()
            session.run(feeds)
            turns[-1].append(time.perf_counter() - start)
    return np.array(turns, np.float64).T


def measure(
    original: Session, compressed: Session, feeds: Feeds, *, seconds: float = 1.0
) -> tuple[Latency, Latency]:
    """Time two models on the same inputs; see `time_in_turns`."""
    before, after = 1e3 * time_in_turns((original, compressed), feeds, seconds)
    return _summary(before), _summary(after)


def _summary(milliseconds: FloatArray) -> Latency:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return Latency(
        median_ms=float(median),
        low_ms=float(low),
        high_ms=float(high),
        runs=len(milliseconds),
        times_ms=tuple(float(one) for one in milliseconds),
    )
