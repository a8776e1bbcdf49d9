"""The ranks of labels, and the choice of the output that holds the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alds_onnx.evaluate.scores import (
    NoScoresError,
    choose_output,
    drop_stderr,
    halves,
    num_classes,
    ranks,
)

ROWS = np.array([[0.1, 0.7, 0.2], [5.0, 5.0, 1.0], [-1.0, -2.0, -3.0]], np.float32)


@settings(deadline=None)
@given(
    arrays(np.float32, (7, 6), elements=st.floats(-2, 2, width=16)),
    arrays(np.int64, 7, elements=st.integers(0, 5)),
)
def test_ranks_are_places_in_the_sorted_scores(scores: Any, labels: Any) -> None:
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert list(ranks(scores, labels)) == expected
    assert list(ranks(scores, labels) == 0) == list(scores.argmax(axis=1) == labels)


def test_of_equal_scores_the_first_is_higher() -> None:
    assert list(ranks(ROWS, np.array([1, 0, 2]))) == [0, 0, 2]
    assert list(ranks(ROWS, np.array([1, 1, 2]))) == [0, 1, 2]


def test_a_row_with_nan_is_wrong() -> None:
    scores = ROWS.copy()
    scores[0, 1] = np.nan
    scores[2, 0] = np.inf
    assert list(ranks(scores, np.array([1, 0, 0]))) == [3, 0, 0]


def test_axes_of_size_one_do_no_harm() -> None:
    assert list(ranks(ROWS[:, :, None, None], np.array([1, 0, 2]))) == [0, 0, 2]


@pytest.mark.parametrize(
    ("output", "classes"),
    [
        (np.zeros((4, 10), np.float32), 10),
        (np.zeros((4, 10, 1, 1), np.float16), 10),
        (np.zeros((4, 2)), 2),
        (np.zeros((4, 1), np.float32), 0),
        (np.zeros((3, 10), np.float32), 0),
        (np.zeros((4, 10), np.int64), 0),
        (np.zeros((4, 10, 2), np.float32), 0),
        (np.zeros(4, np.float32), 0),
        (np.float32(1), 0),
        ([np.zeros((4, 10), np.float32)], 0),
    ],
)
def test_what_scores_look_like(output: Any, classes: int) -> None:
    assert num_classes(output, 4) == classes


def test_the_first_that_fits_is_taken() -> None:
    outputs = [np.zeros((4, 3), np.int32), np.zeros((4, 6)), np.zeros((4, 1)), np.zeros((4, 9))]
    choice = choose_output("abcd", outputs, 4)
    assert (choice.output, choice.num_classes, choice.others, choice.tops) == (1, 6, (3,), (1, 5))
    assert choose_output("a", [np.zeros((4, 5))], 4).tops == (1,)


def test_if_none_fits_all_are_named() -> None:
    with pytest.raises(NoScoresError) as refused:
        choose_output(["a", "b"], [np.zeros((4, 3), np.int32), [1]], 4)
    assert "'a' int32 [4, 3], 'b' list" in str(refused.value)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 3))
def test_halves_share_every_class_evenly(labels: list[int], seed: int) -> None:
    array = np.array(labels, np.int64)
    first, second = halves(array, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert 0 <= len(first) - len(second) <= 1
    for kind in set(labels):
        shares = [int((array[half] == kind).sum()) for half in (first, second)]
        assert abs(shares[0] - shares[1]) <= 1


def test_halves_are_drawn_by_the_seed() -> None:
    labels = np.arange(64) % 4
    (first, _), (again, _), (other, _) = (halves(labels, seed) for seed in (1, 1, 2))
    assert list(first) == list(again)
    assert list(first) != list(other)
    assert list(first) != list(range(0, 64, 2))


def test_the_standard_error_of_a_drop_is_that_of_many_drawings() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(400) < 0.9
    after = before & (generator.random(400) < 0.95)
    drawn = generator.integers(0, 400, (4000, 400))
    drops = before[drawn].mean(axis=1) - after[drawn].mean(axis=1)
    assert drop_stderr(before, after) == pytest.approx(drops.std(), rel=0.05)
    assert drop_stderr(before[:1], after[:1]) is None
    assert drop_stderr(before, before) == 1 / 400, "as if one had changed"
