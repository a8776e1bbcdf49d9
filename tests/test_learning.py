"""What more samples would do: the error of two fits goes on as sampling theory says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.results import LearningCurve, LearningPoint

errors = st.just(0.0) | st.floats(1e-6, 10)
counts = st.tuples(st.integers(1, 1000), st.integers(1, 1000))

# Roots of differences of squares in float64.
ROUNDING = 1e-7


def curve(half: float, whole: float, samples: tuple[int, int] = (100, 100)) -> LearningCurve:
    """Errors with the samples of the first half, and with both."""
    first, second = samples
    return LearningCurve.of(
        LearningPoint(samples=first, output_error=half),
        LearningPoint(samples=first + second, output_error=whole),
    )


@given(limit=errors, slope=st.floats(0, 100), samples=counts)
def test_errors_that_fall_as_they_should_go_on(
    limit: float, slope: float, samples: tuple[int, int]
) -> None:
    """Squared errors of a + b/N at N of the half and of all: a + b/(2N), however large the half."""

    def error(count: int) -> float:
        return math.sqrt(limit**2 + slope / count)

    whole = sum(samples)
    expected = curve(error(samples[0]), error(whole), samples).expected
    assert expected.samples == 2 * whole
    # The difference of the squares is scaled up where the second half is small.
    noise = ROUNDING * error(samples[0]) * math.sqrt(1 + samples[0] / samples[1])
    assert expected.output_error == pytest.approx(error(2 * whole), abs=noise)


@given(error=errors, samples=counts)
def test_where_more_made_no_difference_more_will_not(
    error: float, samples: tuple[int, int]
) -> None:
    assert curve(error, error, samples).expected.output_error == error


@given(half=errors, whole=errors, samples=counts)
def test_more_samples_are_never_expected_to_do_worse(
    half: float, whole: float, samples: tuple[int, int]
) -> None:
    """Nor better than an error that vanishes with more and more, whose square they halve."""
    found = curve(half, whole, samples)
    expected = found.expected.output_error
    assert whole * (0.5**0.5 - ROUNDING) <= expected <= whole
    assert (expected < whole) == (half**2 > whole**2) or expected == pytest.approx(whole)
    if half <= whole:
        assert expected == whole, "that is noise, and says nothing"
    assert [point.output_error for point in found.measured] == [half, whole]


def test_equal_halves_save_half_of_what_the_second_one_saved() -> None:
    assert curve(0.5, 0.4).expected.output_error == pytest.approx((0.16 - 0.09 / 2) ** 0.5)


@given(half=errors, whole=errors, scale=st.floats(0.1, 10), samples=counts)
def test_units_do_not_matter(
    half: float, whole: float, scale: float, samples: tuple[int, int]
) -> None:
    expected = curve(half, whole, samples).expected.output_error
    found = curve(scale * half, scale * whole, samples).expected.output_error
    noise = ROUNDING * scale * max(half, whole) * math.sqrt(1 + samples[0] / samples[1])
    assert found == pytest.approx(scale * expected, rel=ROUNDING, abs=noise)
