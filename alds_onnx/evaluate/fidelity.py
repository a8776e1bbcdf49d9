"""The difference between the outputs of two models, accumulated over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alds_onnx.evaluate.sessions import Outputs, flatten
from alds_onnx.values import OutputFidelity

_LARGEST = 1e140


class Comparison:
    """Compares graph outputs run by run, without keeping them.

    `ignore` holds the reasons why outputs cannot be compared, by name.
    """

    def __init__(self, names: Sequence[str], ignore: dict[str, str] | None = None) -> None:
        # A list, because a graph may name an output twice.
        self._sums = [(name, _Sums()) for name in names]
        self._ignore = ignore or {}

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Add the outputs of one run of each model."""
        for (_, sums), left, right in zip(self._sums, expected, actual, strict=True):
            arrays, others = flatten(left), flatten(right)
            if len(arrays) != len(others):
                sums.differ()
                continue
            for a, b in zip(arrays, others, strict=True):
                sums.add(a, b)

    def outputs(self) -> tuple[OutputFidelity, ...]:
        """Give the fidelity of each output."""
        return tuple(sums.fidelity(n, self._ignore.get(n, "")) for n, sums in self._sums)

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

    def add(self, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        if expected.dtype.kind not in "fV" and not np.issubdtype(expected.dtype, np.floating):
            self.note = f"of type {expected.dtype}"
            return
        if expected.shape != actual.shape:
            self.differ()
            return
        self._add_scores(expected, actual)
        y, z, unequal = _finite(expected, actual)
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

    def differ(self) -> None:
        """Record outputs of different structure: their difference is infinite."""
        self.noise = self.largest = np.inf

    def _add_scores(self, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        """Count rows with the largest entry at the same place, if the output looks like scores."""
        if expected.ndim in (2, 3) and expected.shape[-1] > 1 and expected.size:
            self.rows += expected.size // expected.shape[-1]
            self.agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())

    def fidelity(self, name: str, note: str) -> OutputFidelity:
        return OutputFidelity(
            name=name,
            relative_l2=_ratio(self.noise, self.signal) ** 0.5,
            max_abs=self.largest,
            cosine=self._cosine(),
            sqnr_db=_decibel(self.signal, self.noise),
            top1_agreement=self.agreeing / self.rows if self.rows else None,
            note=note or self.note,
        )

    def _cosine(self) -> float:
        if self.signal == self.other == 0.0:
            return 1.0
        scale = (self.signal * self.other) ** 0.5
        return min(1.0, self.product / scale) if scale else 0.0


def _finite(
    expected: npt.NDArray[Any], actual: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """Keep the entries that are finite in both, as float64; tell whether the other ones differ."""
    y, z = np.ravel(expected).astype(np.float64), np.ravel(actual).astype(np.float64)
    finite = np.isfinite(y) & np.isfinite(z)
    if finite.all():
        return y, z, False
    odd_y, odd_z = y[~finite], z[~finite]
    return y[finite], z[finite], not np.array_equal(odd_y, odd_z, equal_nan=True)


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
