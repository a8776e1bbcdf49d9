"""Every kind of wrong output has a large distance from the right one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.latency import _summary
from alds_onnx.results import OutputFidelity

Y = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]], np.float32)

#: Sums of a few squares in float64.
ROUNDING = 1e-12


def compare(expected: Any, actual: Any) -> tuple[OutputFidelity, float]:
    """The measures of one output, and its difference relative to itself."""
    comparison = Comparison(["y"])
    comparison.add([expected], [actual])
    (found,) = comparison.outputs()
    return found, comparison.difference(comparison)


def with_entry(value: float) -> npt.NDArray[np.float32]:
    changed = Y.copy()
    changed[0, 0] = value
    return changed


def test_equal_outputs() -> None:
    found, difference = compare(Y, Y.copy())
    assert (found.relative_l2, found.max_abs, found.sqnr_db, difference) == (0, 0, np.inf, 0)
    assert found.cosine == pytest.approx(1, abs=ROUNDING)
    assert found.top1_agreement == 1
    assert found.note == ""


def test_formulas() -> None:
    other = with_entry(2)
    found, difference = compare(Y, other)
    signal, noise = 91.0, 1.0
    assert found.relative_l2 == pytest.approx((noise / signal) ** 0.5, rel=ROUNDING)
    assert difference == found.relative_l2
    assert found.max_abs == 1
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=ROUNDING)
    assert found.cosine == pytest.approx(92 / (91 * 94) ** 0.5, rel=ROUNDING)


@pytest.mark.parametrize("scale", [0.5, 2, 100, -1])
def test_scaled_output(scale: float) -> None:
    found, difference = compare(Y, Y * np.float32(scale))
    assert difference == pytest.approx(abs(scale - 1), rel=ROUNDING)
    assert found.cosine == pytest.approx(np.sign(scale), abs=ROUNDING)


WRONG = {
    "shape": (Y, Y.T),
    "size": (Y, Y[:1]),
    "broadcastable": (Y, Y[:1, :1]),
    "NaN": (Y, with_entry(np.nan)),
    "infinite": (Y, with_entry(np.inf)),
    "no NaN": (with_entry(np.nan), Y),
    "sign of infinity": (with_entry(np.inf), with_entry(-np.inf)),
    "NaN for infinity": (with_entry(np.inf), with_entry(np.nan)),
    "not zero": (np.zeros_like(Y), Y),
    "shorter sequence": ([Y, Y], [Y]),
    "longer sequence": ([Y], [Y, Y]),
    "empty sequence": ([Y], []),
    "fewer keys": ({1: Y, 2: Y}, {1: Y}),
    "one of a sequence": ([Y, Y], [Y, Y.T]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outputs_are_infinitely_far(name: str) -> None:
    found, difference = compare(*WRONG[name])
    assert difference == np.inf
    assert found.relative_l2 == np.inf
    assert found.sqnr_db == -np.inf
    assert found.note == ""


def test_one_wrong_run_is_enough() -> None:
    comparison = Comparison(["y"])
    for actual in (Y, Y.T, Y):
        comparison.add([Y], [actual])
    assert comparison.difference(comparison) == np.inf
    assert comparison.outputs()[0].max_abs == np.inf


SAME = {
    "NaN at the same place": with_entry(np.nan),
    "infinity at the same place": with_entry(-np.inf),
    "all NaN": np.full_like(Y, np.nan),
    "all zero": np.zeros_like(Y),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(2),
    "sequence": [Y, Y.T],
    "map": {"b": Y, "a": Y.T},
    "sequence of maps": [{1: 0.5, 2: 0.25}, {1: 0.125, 2: 1.0}],
    "half": Y.astype(np.float16),
}


@pytest.mark.parametrize("name", SAME)
def test_same_outputs_are_equal(name: str) -> None:
    found, difference = compare(SAME[name], SAME[name])
    assert difference == 0
    assert found.relative_l2 == 0
    assert found.cosine == 1 or name not in ("all zero", "all NaN", "empty")


def test_maps_are_compared_key_by_key() -> None:
    assert compare({1: Y, 2: 2 * Y}, {2: 2 * Y, 1: Y})[1] == 0
    assert compare({1: Y, 2: 2 * Y}, {2: Y, 1: 2 * Y})[1] > 0.5


@pytest.mark.parametrize(("array", "note"), [
    (np.array([1, 2]), "of type int64"),
    (np.array([True]), "of type bool"),
    (np.array(["a"], object), "of type object"),
    (None, "of type object"),
])  # fmt: skip
def test_other_types_are_noted_not_compared(array: Any, note: str) -> None:
    comparison = Comparison(["y"])
    comparison.add([array], [np.array([7])])
    assert comparison.outputs()[0].note == note
    assert comparison.difference(comparison) == 0


def test_ignored_outputs_are_noted_not_compared() -> None:
    comparison = Comparison(["y", "z"], {"y": "random"})
    comparison.add([Y, Y], [-Y, Y])
    assert [output.note for output in comparison.outputs()] == ["random", ""]
    assert comparison.difference(comparison) == 0
    comparison.add([Y, Y], [Y, -Y])
    assert comparison.difference(comparison) > 1


def test_difference_is_relative_to_the_larger_scale() -> None:
    """Where a compressed model's sigmoid falls to 1e-8, only its rounding is left."""
    small, reference = Comparison(["y"]), Comparison(["y"])
    small.add([Y * 1e-8], [Y * 3e-8])
    reference.add([Y], [Y * 1e-8])
    assert small.difference(small) == pytest.approx(2, rel=1e-5)
    assert small.difference(reference) == pytest.approx(2e-8, rel=1e-5)


@pytest.mark.parametrize(("array", "agreement"), [
    (Y, 0.5), (Y[None], 0.5), (Y[0], None), (Y[:, :1], None), (Y[None, None], None), (Y[:0], None),
])  # fmt: skip
def test_agreement_of_scores(array: npt.NDArray[np.float32], agreement: float | None) -> None:
    changed = np.where(array == 3, np.float32(0), array)  # the largest of the first row
    assert compare(array, changed)[0].top1_agreement == agreement


def test_sums_run_over_all_samples() -> None:
    parts, whole = Comparison(["y"]), Comparison(["y"])
    for row in range(2):
        parts.add([Y[row : row + 1]], [Y[row : row + 1] + 1])
    whole.add([Y], [Y + 1], samples=2)
    assert parts.outputs() == whole.outputs()
    assert parts.outputs()[0].relative_l2_stderr is not None


def errors_of(*runs: tuple[Any, Any], samples: int) -> tuple[float | None, float | None]:
    """The standard errors after runs of so many samples."""
    comparison = Comparison(["y"])
    for expected, actual in runs:
        comparison.add([expected], [actual], samples)
    (found,) = comparison.outputs()
    return found.relative_l2_stderr, found.top1_agreement_stderr


def test_a_single_sample_has_no_standard_error() -> None:
    assert errors_of((Y[:1], Y[:1] + 1), samples=1) == (None, None)
    assert errors_of((Y, Y + 1), samples=1) == (None, None)
    assert errors_of((Y, Y), samples=1) == (None, None)


def test_a_run_that_is_not_divided_by_samples_is_one_sample() -> None:
    """A detector gives as many boxes as it finds."""
    boxes = np.concatenate([Y, Y, Y])
    other = boxes + np.arange(6, dtype=np.float32)[:, None]
    assert errors_of((boxes, other), samples=4) == (None, None)
    twice = ((boxes, other), (boxes, boxes + 1))
    assert errors_of(*twice, samples=4) == errors_of(*twice, samples=1)
    assert errors_of(*twice, samples=4) != errors_of(*twice, samples=6)


def test_the_arrays_of_a_sequence_share_their_samples() -> None:
    """A sequence is one output: its standard error is that of the arrays side by side."""
    other = with_entry(7)
    expected, actual = [Y, 3 * Y], [other, 3 * Y]
    side_by_side = np.concatenate(expected, 1), np.concatenate(actual, 1)
    found = errors_of((expected, actual), samples=2)[0]
    assert found is not None
    assert found == pytest.approx(errors_of(side_by_side, samples=2)[0], rel=ROUNDING)
    # A map of numbers for each sample, as classifiers give it, is one sample.
    maps = [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]
    assert errors_of((maps, maps), samples=2) == (None, None)


def test_entries_that_are_not_finite_belong_to_no_sample() -> None:
    rows = np.array([[np.nan, 3.0], [4.0, np.inf], [1.0, 2.0]])
    changed = rows + np.array([[0.5], [0.25], [0.0]])
    there = np.isfinite(rows)
    cleared = np.where(there, rows, 0), np.where(there, changed, 0)
    assert errors_of((rows, changed), samples=3)[0] == errors_of(cleared, samples=3)[0]
    assert errors_of((rows, np.nan_to_num(rows)), samples=3)[0] is None


def test_outputs_that_are_not_compared_have_no_standard_error() -> None:
    comparison = Comparison(["y", "z"])
    comparison.add([Y, Y], [Y + 1, Y + 1], 2)
    comparison.ignore({"z": "random"})
    first, second = comparison.outputs()
    assert first.relative_l2_stderr is not None
    assert (second.note, second.relative_l2_stderr, second.top1_agreement_stderr) == (
        "random",
        None,
        None,
    )


def test_no_outputs_do_not_differ() -> None:
    comparison = Comparison([])
    comparison.add([], [])
    assert comparison.difference(comparison) == 0


def test_number_of_outputs_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="zip"):
        Comparison(["y", "z"]).add([Y, Y], [Y])


def test_cosine_of_orthogonal_and_zero_outputs() -> None:
    assert compare(np.array([1.0, 0.0]), np.array([0.0, 1.0]))[0].cosine == 0
    assert compare(Y, np.zeros_like(Y))[0].cosine == 0


def test_latency_summary() -> None:
    found = _summary(np.array([5.0, 1.0, 2.0, 4.0, 3.0]))
    assert (found.low_ms, found.median_ms, found.high_ms, found.runs) == (2, 3, 4, 5)
