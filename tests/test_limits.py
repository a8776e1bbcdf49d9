"""The drop of a score is the one that a reader would compute."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.results import Score


@pytest.mark.parametrize(("before", "after", "drop"), [(995, 990, 0.5), (7, 4, 0.3), (1, 3, -0.2)])
def test_a_drop_of_whole_samples_is_exact(before: int, after: int, drop: float) -> None:
    score = Score(name="top-1", before=before / 1000, after=after / 1000, samples=1000)
    assert score.drop == drop


@given(st.integers(1, 10**6), st.data())
def test_a_drop_is_the_difference_of_counts(samples: int, data: st.DataObject) -> None:
    before, after = (data.draw(st.integers(0, samples)) for _ in range(2))
    score = Score(name="", before=before / samples, after=after / samples, samples=samples)
    assert score.drop == 100 * (before - after) / samples


def test_a_drop_of_a_function_is_that_of_the_decimal_numbers() -> None:
    assert Score(name="f", before=0.8, after=0.7).drop == 0.1
    assert Score(name="f", before=0.8, after=-math.inf).drop == math.inf
    assert math.isnan(Score(name="f", before=0.8, after=math.nan).drop)
