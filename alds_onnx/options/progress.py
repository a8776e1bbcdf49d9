"""What a run tells while it goes on."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Step(str, Enum):
    """The steps of a run, in order; `ATTEMPT` to `MEASURE` come again for every attempt."""

    LOAD = "load"
    SCORES = "scores"
    SPECTRA = "spectra"
    STATISTICS = "statistics"
    SENSITIVITY = "sensitivity"
    INPUTS = "inputs"
    MERGE = "merge"
    ATTEMPT = "attempt"
    SEARCH = "search"
    TIMING = "timing"
    FACTORIZE = "factorize"
    MEASURE = "measure"
    VERIFY = "verify"
    DONE = "done"


class Progress(Protocol):
    """Called as the work goes on."""

    def __call__(self, step: Step, done: int, total: int) -> None:
        """`done` of `total` parts of a step; `total` 0 where it is not known."""


def silent(step: Step, done: int, total: int) -> None:
    """A progress that nobody sees."""
