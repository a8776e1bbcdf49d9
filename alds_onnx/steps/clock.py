"""Reporting the progress of a run, and timing its steps."""

from __future__ import annotations

import time

from alds_onnx.settings import Progress, Step


class Clock:
    """Reports the progress, and times each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._times: list[tuple[Step, float]] = []

    def start(self, step: Step) -> Step:
        """Begin a step, and give the step that it ends; itself if it is the first."""
        before = self._times[-1][0] if self._times else step
        self._times.append((step, time.perf_counter()))
        self._progress(step, 0, 0)
        return before

    def attempt(self, number: int, most: int) -> None:
        """Report that an attempt begins, and the largest number of attempts."""
        self._progress(Step.ATTEMPT, number, most)

    def advance(self, done: int, total: int) -> None:
        """Report how much of the current step is done."""
        self._progress(self._times[-1][0], done, total)

    def stop(self) -> None:
        """End the last step."""
        self._times.append((Step.DONE, time.perf_counter()))
        self._progress(Step.DONE, 1, 1)

    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Give the time of each step, added up over all attempts."""
        total: dict[str, float] = {}
        for (step, start), (_, end) in zip(self._times, self._times[1:], strict=False):
            total[step.value] = total.get(step.value, 0.0) + end - start
        return tuple(total.items())
