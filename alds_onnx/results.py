"""Frozen values: what was measured of a compressed model, in its checks, scores and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFidelity:
    """The difference between one output of the compressed model and that of the original.

    Attributes
    ----------
    relative_l2
        ||y - ŷ||_2 / ||y||_2 over all samples.
    cosine
        Cosine of the angle between y and ŷ.
    sqnr_db
        Signal-to-noise ratio, 10·log10(||y||² / ||y - ŷ||²), in dB.
    top1_agreement
        Fraction of the rows of y whose largest entry is at the same place in ŷ; None if the rows
        are not scores.
    relative_l2_stderr, top1_agreement_stderr
        Standard errors of the two, from a bootstrap over the samples; None for a single sample, and
        for an agreement that is None.
    note
        Why the output could not be compared; "" if it could.
    """

    name: str
    relative_l2: float
    max_abs: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None = None
    relative_l2_stderr: float | None = None
    top1_agreement_stderr: float | None = None
    note: str = ""


def output_error(fidelity: Sequence[OutputFidelity]) -> float | None:
    """Give the relative L2 error of the worst output that can be compared; None if none can."""
    return max((output.relative_l2 for output in fidelity if not output.note), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstKind:
    """A kind of inputs: its number of samples, and the relative L2 error of the worst output.

    `example` is the number, from 0, of a typical sample of this kind among all that were given.
    """

    example: int
    samples: int
    output_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The comparison on kinds of inputs that the factors have not seen.

    It is that of a model of the same ranks, whose factors are fitted without samples of these
    kinds. The model that is written has seen other samples of them.

    Attributes
    ----------
    kinds, samples
        Number of kinds, which are clusters of samples by the outputs of the original, and of the
        samples in them.
    fidelity
        Comparison of the compressed model with the original, output by output. The standard errors
        are those over kinds, as far as so few can tell, or those over samples if they are larger.
    worst
        The kind with the largest output error; None if no output can be compared.
    """

    kinds: int
    samples: int
    fidelity: tuple[OutputFidelity, ...]
    worst: WorstKind | None = None

    @property
    def output_error(self) -> float | None:
        """Relative L2 error of the worst output that can be compared; None if none can."""
        return output_error(self.fidelity)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPoint:
    """The relative L2 error of the worst output if factors are fitted to so many samples."""

    samples: int
    output_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurve:
    """What more calibration data would do, at the same ranks.

    Attributes
    ----------
    measured
        The error on the check samples with factors fitted to half of the samples, and to all.
    expected
        The error to expect from twice as many samples, if the squared error exceeds its limit in
        inverse proportion to their number.
    """

    measured: tuple[LearningPoint, LearningPoint]
    expected: LearningPoint

    @classmethod
    def of(cls, half: LearningPoint, whole: LearningPoint) -> LearningCurve:
        """Extrapolate to twice the samples of `whole`.

        With e² = a + b/N for N samples, twice as many save N_half/(N - N_half)/2 times what the
        second half has saved: half as much, if the halves are equal. The limit a is not negative,
        so that at most half of e² is saved, even if it has fallen faster so far.
        """
        share = half.samples / (whole.samples - half.samples) / 2
        saved = share * (half.output_error**2 - whole.output_error**2)
        error = whole.output_error
        if saved > 0:
            error = (error**2 - min(saved, error**2 / 2)) ** 0.5
        return cls(
            measured=(half, whole),
            expected=LearningPoint(samples=2 * whole.samples, output_error=error),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one run in milliseconds: the median, the quartiles, and all of them in order.

    Runs of the two models are measured alternately.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    times_ms: tuple[float, ...] = field(default=(), repr=False)


class Status(str, Enum):
    """The result of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_VALIDATED = "not validated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks of the compressed model with onnxruntime.

    Attributes
    ----------
    status
        Whether the rewrite is exact: the written model equals the original with W replaced by Ŵ.
    reason
        Why the model could not be validated, or what failed.
    difference, tolerance
        Largest relative L2 difference between the outputs of the two, and the largest allowed one.
    fidelity
        Comparison of the compressed model with the original, output by output.
    samples, random_inputs
        Number of samples, and whether they were random.
    held_out
        Whether the samples are calibration data that nothing was fitted to or chosen by.
    left_out
        The same comparison on kinds of inputs that were left out of the fit; None if there were too
        few samples to leave any out.
    learning
        How the error falls with the number of samples; None without calibration data.
    latency_before, latency_after
        None if latency was not measured.
    threads, input_shapes
        Threads of onnxruntime, and the shapes of the inputs of one run.
    """

    status: Status
    reason: str = ""
    difference: float | None = None
    tolerance: float | None = None
    fidelity: tuple[OutputFidelity, ...] = ()
    samples: int = 0
    random_inputs: bool = True
    held_out: bool = False
    left_out: LeftOut | None = None
    learning: LearningCurve | None = None
    latency_before: Latency | None = None
    latency_after: Latency | None = None
    threads: int = 1
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def output_error(self) -> float | None:
        """Relative L2 error of the worst output that can be compared; None if none can."""
        return output_error(self.fidelity)

    @property
    def latency_ratio(self) -> float | None:
        """Time of the compressed model over the time of the original."""
        if self.latency_before is None or self.latency_after is None:
            return None
        return self.latency_after.median_ms / self.latency_before.median_ms


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
