"""Frozen values: scores of the task, and limits on the result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score of the original and of the compressed model.

    Attributes
    ----------
    name
        `top-1`, `top-5`, or the name of the scoring function.
    before, after
        Fractions of `samples`, or the returned values of the function; higher is better.
    samples
        Number of labelled samples; None for a function, whose scores have their own units.
    output
        The graph output that was scored; "" for a function.
    drop_stderr
        Standard error of `drop`, in percentage points, from the differences between the two models
        on the same samples, at least that of one sample; None for a function, and if there is only
        one sample.
    held_out
        Whether nothing was fitted to the samples or chosen by them; None for a function, whose
        samples are not known.
    """

    name: str
    before: float
    after: float
    samples: int | None = None
    output: str = ""
    drop_stderr: float | None = None
    held_out: bool | None = None

    @property
    def drop(self) -> float:
        """The drop of the score, in percentage points or in the units of the function.

        Computed from the decimal numbers that a reader sees: 0.8 - 0.7 exceeds 0.1 in binary.
        """
        if self.samples is None:
            return float(Decimal(repr(self.before)) - Decimal(repr(self.after)))
        lost = round(self.before * self.samples) - round(self.after * self.samples)
        return 100 * lost / self.samples


class LimitKind(str, Enum):
    """The quantity that is limited."""

    MAX_ERROR = "max-error"
    MAX_DROP = "max-drop"


class LimitData(str, Enum):
    """The data on which a limited quantity was measured."""

    RANDOM = "random inputs"
    HELD_OUT = "held-out calibration samples"
    FITTED = "calibration samples, the same as for the fit"
    LABELLED = "labelled samples"
    FUNCTION = "a function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One attempt: the fraction to remove, and a measured value."""

    removed: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitResult:
    """The result of a search within a limit that was given instead of a compression ratio.

    Attributes
    ----------
    kind, limit
        The limited quantity, which is the relative L2 error of the worst output or the drop of a
        score in its units (`Score.drop`), and its largest allowed value.
    reached
        The value at the chosen ratio; 0 if nothing could be removed. It was measured on the samples
        that nothing was chosen by, if there are any.
    data, samples
        The data of that measurement and its number of samples; None for a function.
    trials
        All attempts, in order, with the values by which one was chosen.
    stderr
        Standard error of `reached`; None where it was not estimated.
    chosen, chosen_samples
        The value at the chosen ratio on the samples by which it was chosen, and their number; None
        if these are the same samples.
    checked
        What was measured on the samples that nothing was chosen by, in order. The limit was broken
        there by all but the last, which were refused.
    """

    kind: LimitKind
    limit: float
    reached: float
    data: LimitData
    samples: int | None
    trials: tuple[Trial, ...]
    stderr: float | None = None
    chosen: float | None = None
    chosen_samples: int | None = None
    checked: tuple[Trial, ...] = ()

    @property
    def refused(self) -> tuple[Trial, ...]:
        """What kept the limit on the samples that chose it, and broke it on the others."""
        return tuple(trial for trial in self.checked if not trial.value <= self.limit)
