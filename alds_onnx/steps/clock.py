"""Tells the progress, and keeps the time."""

from __future__ import annotations

import time

from alds_onnx.settings import Progress, Step


class Clock:
    """Tells the progress and keeps the time of each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._times: list[tuple[Step, float]] = []

    def start(self, step: Step) -> Step:
        """Begin a step, which ends the one before; that one, or itself if it is the first."""
        before = self._times[-1][0] if self._times else step
        self._times.append((step, time.perf_counter()))
        self._progress(step, 0, 0)
        return before

    def attempt(self, number: int, most: int) -> None:
        """Say which attempt of a search begins, of how many at most; takes no time itself."""
        self._progress(Step.ATTEMPT, number, most)

    def advance(self, done: int, total: int) -> None:
        """Say how far the step is."""
        self._progress(self._times[-1][0], done, total)

    def stop(self) -> None:
        """End the last step."""
        self._times.append((Step.DONE, time.perf_counter()))
        self._progress(Step.DONE, 1, 1)

    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Time of each step, of all its attempts together."""
        total: dict[str, float] = {}
        for (step, start), (_, end) in zip(self._times, self._times[1:], strict=False):
            total[step.value] = total.get(step.value, 0.0) + end - start
        return tuple(total.items())
