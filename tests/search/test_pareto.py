"""The front and its knee, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.search.pareto import knee, pareto_front

NUMBERS = st.floats(0, 1, allow_nan=False)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(points=POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(*zip(*points, strict=True))
    assert list(front) == [not any(beats(other, point) for other in points) for point in points]
    assert front.any()


def test_what_was_not_measured_is_not_on_the_front_and_beats_nothing() -> None:
    assert list(pareto_front([0.1, 0.5, 0.9], [math.nan, 0.2, 0.1])) == [False, True, True]


@given(points=POINTS)
def test_the_knee_is_on_the_front(points: list[tuple[float, float]]) -> None:
    size, loss = zip(*points, strict=True)
    found = knee(size, loss)
    assert found is None or pareto_front(size, loss)[found]


def test_the_knee_is_where_a_flat_curve_turns_up() -> None:
    removed = np.arange(0.1, 0.95, 0.1)
    loss = np.where(removed < 0.65, 0.01 * removed, 0.01 * removed + 3 * (removed - 0.6))
    assert knee(1 - removed, loss) == 5


def test_where_nothing_is_lost_the_smallest_is_taken() -> None:
    assert knee([0.9, 0.5, 0.7], [0.0, 0.0, 0.0]) == 1


@pytest.mark.parametrize(
    ("size", "loss"),
    [([0.9, 0.5], [0.8, 0.9]), ([1.0], [0.5]), ([0.5], [math.nan])],
    ids=["above the line", "nothing removed", "not measured"],
)
def test_there_may_be_no_knee(size: list[float], loss: list[float]) -> None:
    assert knee(size, loss) is None
