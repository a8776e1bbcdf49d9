"""How long layers take, dense and cut, side by side in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import helper

from alds_onnx.cuts import Cut
from alds_onnx.evaluate.sessions import Execution, Feeds, Session
from alds_onnx.graph.alone import Alone

_WARM_UP = 2
_FEWEST, _MOST = 7, 200
# Seconds of measuring for each variant, if the fewest runs do not take longer.
_SECONDS = 0.03
# The machine disturbs runs in one direction only: a low percentile is steadier than the median,
# and does not hang on one lucky run as the minimum does.
_PERCENTILE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A layer on its own, measured in turns: nanoseconds of the dense one and of a cut."""

    dense: float
    cut: float

    @property
    def saved(self) -> float:
        """Nanoseconds that the cut saves; negative if it is slower."""
        return self.dense - self.cut

    @property
    def ratio(self) -> float:
        """Time of the cut over that of the dense one."""
        return self.cut / self.dense


def time_cuts(alone: Alone, cuts: Sequence[Cut], execution: Execution) -> list[Timing]:
    """Time a layer and its cuts in turns.

    Raises
    ------
    RunError
        If onnxruntime does not run one of them.
    """
    models = [alone.dense(), *alone.decomposed(cuts)]
    sessions = [Session(model, Path(), execution) for model in models]
    del models
    kind = alone.skeleton.graph.input[0].type.tensor_type.elem_type
    generator = np.random.default_rng(0)
    x = generator.standard_normal(alone.shape, np.float32).astype(
        helper.tensor_dtype_to_np_dtype(kind)
    )
    dense, *others = in_turns(sessions, {"x": x}, _SECONDS * len(sessions))
    return [Timing(dense=dense, cut=other) for other in others]


def in_turns(
    sessions: Sequence[Session], feeds: Feeds, seconds: float, most: int = _MOST
) -> list[float]:
    """Nanoseconds of one run of each, measured A B C A B C ...: a low percentile.

    Parameters
    ----------
    sessions
        Loaded with the same number of threads.
    feeds
        The inputs of one run.
    seconds
        About how long to measure; a few runs of each all the same.
    most
        Runs of each that are enough.
    """
    times: list[list[int]] = [[] for _ in sessions]
    end, turn = time.perf_counter() + seconds, -_WARM_UP
    while turn < _FEWEST or (turn < most and time.perf_counter() < end):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter_ns()
            session.run(feeds)
            if turn >= 0:
                own.append(time.perf_counter_ns() - start)
        turn += 1
    return [float(np.percentile(own, _PERCENTILE)) for own in times]
