"""Frozen values about what the user measures: scores of the task, and limits to keep."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a model does its task, before and after.

    Attributes
    ----------
    name
        `top-1`, `top-5`, or the name of the function that was given.
    before, after
        Fractions of `samples`, or what the function returned; higher is better.
    samples
        Labelled samples; None for a function, whose scores have units of their own.
    output
        The graph output that was scored; "" for a function.
    """

    name: str
    before: float
    after: float
    samples: int | None = None
    output: str = ""

    @property
    def drop(self) -> float:
        """What was lost: in percentage points, or in the units of the function.

        The difference of the decimal numbers that a reader sees: 0.8 - 0.7 is above 0.1 in binary.
        """
        if self.samples is None:
            return float(Decimal(repr(self.before)) - Decimal(repr(self.after)))
        lost = round(self.before * self.samples) - round(self.after * self.samples)
        return 100 * lost / self.samples


class LimitKind(str, Enum):
    """What a search for the largest compression keeps within a limit."""

    MAX_ERROR = "max-error"
    MAX_DROP = "max-drop"


class LimitData(str, Enum):
    """What a target was measured on."""

    RANDOM = "random inputs"
    HELD_OUT = "held-out calibration samples"
    FITTED = "calibration samples, the same as for the fit"
    LABELLED = "labelled samples"
    FUNCTION = "a function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One attempt of that search: the fraction to remove, and the value that was measured."""

    removed: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitResult:
    """A limit that was asked for instead of a compression ratio, and what was found.

    Attributes
    ----------
    kind, limit
        What was limited: the relative L2 error of the worst output, or the drop of a score in its
        units (`Score.drop`).
    reached
        The value at the ratio that was chosen; 0 where nothing could be removed.
    data, samples
        What it was measured on, and how many there were; None where a function did.
    trials
        Everything that was tried.
    """

    kind: LimitKind
    limit: float
    reached: float
    data: LimitData
    samples: int | None
    trials: tuple[Trial, ...]
