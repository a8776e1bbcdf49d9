"""What a report says against what a large test shows, each with its standard error.

The truth is computed here and not by the package: outputs of both models on test samples, in
float64. Its standard error is the spread over 2,000 bootstrap draws of independent test samples: a
line of text is drawn whole, and so are all pictures that show the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from scores import Numbers, resampled_ratios

_BATCH = 16
AGREEMENT, ERROR = "same top-1", "output error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number and its standard error, if there is one."""

    value: float
    stderr: float | None = None

    @property
    def known_stderr(self) -> float:
        """The standard error; who gives none claims to be right."""
        return self.stderr or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a compressed model differs from the original: fractions, agreement None without top-1."""

    error: Number
    agreement: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What was reported and what is true, of the same model."""

    reported: Number
    truth: Number
    higher_is_better: bool

    @property
    def excess(self) -> float:
        """By how much the report is better than the truth."""
        difference = self.reported.value - self.truth.value
        return difference if self.higher_is_better else -difference

    @property
    def stderr(self) -> float:
        """Standard error of the difference."""
        return float(np.hypot(self.reported.known_stderr, self.truth.known_stderr))

    @property
    def is_within(self) -> bool:
        """Whether the two differ by at most two standard errors."""
        return abs(self.excess) <= 2 * self.stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed model.

    Attributes
    ----------
    reported
        None if the report has no such numbers.
    checked, held_out
        Number of samples that the report rests on, and whether they were held out.
    tested
        Number of independent test samples.
    """

    reported: Figures | None
    truth: Figures
    checked: int
    held_out: bool
    tested: int
    seconds: float

    def pair(self, number: str) -> Pair | None:
        """What was reported of a number, and what is true."""
        if self.reported is None:
            return None
        if number == ERROR:
            left, right = self.reported.error, self.truth.error
            return Pair(reported=left, truth=right, higher_is_better=False)
        if self.reported.agreement is None or self.truth.agreement is None:
            return None
        left, right = self.reported.agreement, self.truth.agreement
        return Pair(reported=left, truth=right, higher_is_better=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The draws of one model, one ratio and one number of samples."""

    model: str
    cr: float
    samples: int
    rows: tuple[Row, ...]

    def pairs(self, number: str) -> list[Pair]:
        """Of all draws that have the number."""
        return [pair for row in self.rows if (pair := row.pair(number))]

    def truth(self, number: str) -> Number:
        """The mean over all draws, reported or not."""
        truths = [row.truth.error if number == ERROR else row.truth.agreement for row in self.rows]
        return _mean([truth for truth in truths if truth])

    @property
    def name(self) -> str:
        """For the summary."""
        return f"{self.model} {self.cr:.0%}, {self.samples} samples"


def mean(pairs: Sequence[Pair]) -> Pair:
    """The mean over independent draws."""
    return Pair(
        reported=_mean([pair.reported for pair in pairs]),
        truth=_mean([pair.truth for pair in pairs]),
        higher_is_better=pairs[0].higher_is_better,
    )


def _mean(numbers: Sequence[Number]) -> Number:
    stderr: float | None = None
    if all(number.stderr is not None for number in numbers):
        stderr = float(np.linalg.norm([n.known_stderr for n in numbers])) / len(numbers)
    return Number(value=float(np.mean([number.value for number in numbers])), stderr=stderr)


def read_row(kept: dict[str, Any]) -> Row:
    """A row out of what `asdict` made of it."""
    figures = {name: _read_figures(kept[name]) for name in ("reported", "truth")}
    return Row(**(kept | figures))


def _read_figures(kept: dict[str, Any] | None) -> Figures | None:
    if kept is None:
        return None
    return Figures(**{name: value and Number(**value) for name, value in kept.items()})


def true_figures(
    original: ort.InferenceSession,
    compressed: ort.InferenceSession,
    inputs: dict[str, npt.NDArray[Any]],
    groups: npt.NDArray[np.int64],
    *,
    has_top_1: bool,
) -> Figures:
    """Compare the first output of two models; samples of a group are drawn together."""
    rows: list[Numbers] = []
    for start in range(0, len(groups), _BATCH):
        feed = {name: array[start : start + _BATCH] for name, array in inputs.items()}
        rows.append(differences(original.run(None, feed)[0], compressed.run(None, feed)[0]))
    return figures(np.concatenate(rows), groups, has_top_1=has_top_1)


def differences(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> Numbers:
    """For each sample: squared norms of difference and expected output, rows that agree, rows."""
    samples = len(expected)
    y = expected.astype(np.float64).reshape(samples, -1, expected.shape[-1])
    z = actual.astype(np.float64).reshape(y.shape)
    agreeing = (y.argmax(-1) == z.argmax(-1)).sum(1)
    rows = np.full(samples, y.shape[1])
    return np.stack([((y - z) ** 2).sum((1, 2)), (y**2).sum((1, 2)), agreeing, rows], axis=1)


def figures(rows: Numbers, groups: npt.NDArray[np.int64], *, has_top_1: bool) -> Figures:
    """Relative L2 error and agreement of top-1 over all samples."""
    _, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((places.max() + 1, rows.shape[1]))
    np.add.at(sums, places, rows)
    noise, signal, agreeing, count = sums.T
    error = Number(
        value=float(np.sqrt(noise.sum() / signal.sum())),
        stderr=float(np.sqrt(resampled_ratios(noise, signal)).std()),
    )
    if not has_top_1:
        return Figures(error=error)
    agreement = Number(
        value=float(agreeing.sum() / count.sum()),
        stderr=float(resampled_ratios(agreeing, count).std()),
    )
    return Figures(error=error, agreement=agreement)
