"""The difference between the outputs of two models, accumulated over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alds_onnx.evaluate.bootstrap import agreement_stderr, ratio_stderr, relative_stderr
from alds_onnx.evaluate.sessions import Outputs, flatten
from alds_onnx.results import OutputFidelity

_Array: TypeAlias = npt.NDArray[np.float64]

_LARGEST = 1e140


class Comparison:
    """Compares graph outputs run by run, without keeping them.

    What is kept are a few sums of each sample, for the standard errors. `ignore` holds the reasons
    why outputs cannot be compared, by name.
    """

    def __init__(self, names: Sequence[str], ignore: Mapping[str, str] | None = None) -> None:
        # A list, because a graph may name an output twice.
        self._sums = [(name, _Sums()) for name in names]
        self._ignore = dict(ignore or {})

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Leave out outputs that turned out not to be comparable."""
        self._ignore |= reasons

    def add(self, expected: Outputs, actual: Outputs, samples: int = 1) -> None:
        """Add the outputs of one run of each model on a batch of so many samples.

        An output whose first axis has another length, such as the boxes of a detector, is not known
        to be divided by samples: then the whole run counts as one.
        """
        for (_, sums), left, right in zip(self._sums, expected, actual, strict=True):
            sums.add_run(flatten(left), flatten(right), samples)

    def outputs(self) -> tuple[OutputFidelity, ...]:
        """Give the fidelity of each output."""
        return tuple(sums.fidelity(n, self._ignore.get(n, "")) for n, sums in self._sums)

    @classmethod
    def of_groups(cls, parts: Sequence[Comparison]) -> Comparison:
        """Join comparisons of groups of samples: other groups may differ more than samples do.

        Standard errors are those over groups, if they are larger than those over samples. A single
        group cannot tell.
        """
        names = [name for name, _ in parts[0]._sums]
        joined = cls(names, {name: why for part in parts for name, why in part._ignore.items()})
        for (_, total), own in zip(
            joined._sums, zip(*(p._sums for p in parts), strict=True), strict=True
        ):
            for _, sums in own:
                total.add_group(sums)
        return joined

    def difference(self, reference: Comparison, floor: float = 0.0) -> float:
        """Give the largest relative L2 difference of a floating-point output that can be compared.

        A difference is relative to the norm of the expected output or of the expected output of
        `reference`, whichever is larger: where the sigmoid of a compressed model falls to 1e-8,
        only its rounding error is left. Without such a reference, `floor` is the smallest magnitude
        that an entry of an output counts as.
        """
        found = [
            _ratio(sums.noise, max(sums.signal, other.signal, floor**2 * sums.entries)) ** 0.5
            for (name, sums), (_, other) in zip(self._sums, reference._sums, strict=True)
            if not (sums.note or self._ignore.get(name))
        ]
        return max(found, default=0.0)


class _Sums:
    """Running sums over one output, in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = self.largest = 0.0
        self.rows = self.agreeing = self.entries = 0
        self.note = ""
        # Signal, noise, agreeing rows and rows of each sample, run by run.
        self._by_sample: list[_Array] = []
        self._by_group: list[_Array] = []

    def add_run(
        self,
        expected: Sequence[npt.NDArray[Any]],
        actual: Sequence[npt.NDArray[Any]],
        samples: int,
    ) -> None:
        """Add the arrays of the output in one run."""
        if len(expected) != len(actual):
            self.differ()
            return
        found = [self._add(a, b, samples) for a, b in zip(expected, actual, strict=True)]
        parts = [part for part in found if part is not None]
        if any(len(part) != samples for part in parts):
            parts = [part.sum(axis=0, keepdims=True) for part in parts]
        if parts:
            self._by_sample.append(np.sum(parts, axis=0))

    def add_group(self, other: _Sums) -> None:
        """Add the sums over a group of samples."""
        self.signal += other.signal
        self.noise += other.noise
        self.other += other.other
        self.product += other.product
        self.largest = max(self.largest, other.largest)
        self.rows += other.rows
        self.agreeing += other.agreeing
        self.entries += other.entries
        self.note = self.note or other.note
        self._by_sample += other._by_sample
        if other._by_sample:
            self._by_group.append(np.concatenate(other._by_sample).sum(axis=0, keepdims=True))

    def _add(
        self, expected: npt.NDArray[Any], actual: npt.NDArray[Any], samples: int
    ) -> _Array | None:
        """Add an array, and give the sums of each sample; None if it cannot be compared."""
        if expected.dtype.kind not in "fV" and not np.issubdtype(expected.dtype, np.floating):
            self.note = f"of type {expected.dtype}"
            return None
        if expected.shape != actual.shape:
            self.differ()
            return None
        y, z, finite, unequal = _finite(expected, actual)
        # Clip far below the largest float64, so that no square overflows.
        y, z = np.clip(y, -_LARGEST, _LARGEST), np.clip(z, -_LARGEST, _LARGEST)
        noise = y - z
        self.entries += y.size
        self.signal += float(np.vdot(y, y))
        self.other += float(np.vdot(z, z))
        self.product += float(np.vdot(y, z))
        self.noise += np.inf if unequal else float(np.vdot(noise, noise))
        largest = np.inf if unequal else float(np.abs(noise).max(initial=0.0))
        self.largest = max(self.largest, largest)
        count = samples if expected.ndim and len(expected) == samples > 0 else 1
        squares = [_squares(values, finite, count) for values in (y, noise)]
        return np.stack([*squares, *self._add_scores(expected, actual, count)], axis=1)

    def differ(self) -> None:
        """Record outputs of different structure: their difference is infinite."""
        self.noise = self.largest = np.inf

    def _add_scores(
        self, expected: npt.NDArray[Any], actual: npt.NDArray[Any], count: int
    ) -> tuple[_Array, _Array]:
        """Count rows with the largest entry at the same place, if the output looks like scores.

        Gives the numbers of such rows and of all rows of each of `count` samples.
        """
        if not (expected.ndim in (2, 3) and expected.shape[-1] > 1 and expected.size):
            return np.zeros(count), np.zeros(count)
        same = (expected.argmax(-1) == actual.argmax(-1)).reshape(count, -1)
        self.rows += same.size
        self.agreeing += int(same.sum())
        return same.sum(axis=1, dtype=np.float64), np.full(count, float(same.shape[1]))

    def fidelity(self, name: str, note: str) -> OutputFidelity:
        note = note or self.note
        errors = (None, None) if note else self._standard_errors()
        return OutputFidelity(
            name=name,
            relative_l2=_ratio(self.noise, self.signal) ** 0.5,
            max_abs=self.largest,
            cosine=self._cosine(),
            sqnr_db=_decibel(self.signal, self.noise),
            top1_agreement=self.agreeing / self.rows if self.rows else None,
            relative_l2_stderr=errors[0],
            top1_agreement_stderr=errors[1],
            note=note,
        )

    def _standard_errors(self) -> tuple[float | None, float | None]:
        """Give the standard errors of the relative L2 difference and of the agreement."""
        if not self._by_sample:
            return None, None
        signal, noise, agreeing, rows = np.concatenate(self._by_sample).T
        error = relative_stderr(noise, signal) if np.isfinite(self.noise) else None
        agreement = agreement_stderr(agreeing, rows)
        if len(self._by_group) > 1:
            signal, noise, agreeing, rows = np.concatenate(self._by_group).T
            if error is not None:
                error = max(error, relative_stderr(noise, signal) or 0.0)
            if agreement is not None:
                agreement = max(agreement, ratio_stderr(agreeing, rows) or 0.0)
        return error, agreement

    def _cosine(self) -> float:
        if self.signal == self.other == 0.0:
            return 1.0
        scale = (self.signal * self.other) ** 0.5
        return min(1.0, self.product / scale) if scale else 0.0


def _finite(
    expected: npt.NDArray[Any], actual: npt.NDArray[Any]
) -> tuple[_Array, _Array, npt.NDArray[np.bool_], bool]:
    """Keep the entries that are finite in both, as float64.

    Also says which these are, and whether the other ones differ.
    """
    y, z = np.ravel(expected).astype(np.float64), np.ravel(actual).astype(np.float64)
    finite = np.isfinite(y) & np.isfinite(z)
    if finite.all():
        return y, z, finite, False
    odd_y, odd_z = y[~finite], z[~finite]
    return y[finite], z[finite], finite, not np.array_equal(odd_y, odd_z, equal_nan=True)


def _squares(values: _Array, finite: npt.NDArray[np.bool_], count: int) -> _Array:
    """Give the sums of squares of each of `count` samples; `values` are the finite entries."""
    if values.size < finite.size:
        compact, values = values, np.zeros(finite.size)
        values[finite] = compact
    values = values.reshape(count, -1)
    sums: _Array = np.einsum("ij,ij->i", values, values)
    return sums


def _ratio(noise: float, signal: float) -> float:
    if noise == 0.0:
        return 0.0
    return noise / signal if signal else np.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return np.inf
    if signal == 0.0 or np.isinf(noise):
        return -np.inf
    return float(10 * np.log10(signal / noise))
