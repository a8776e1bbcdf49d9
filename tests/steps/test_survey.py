"""Mapping over weights in parallel."""

from __future__ import annotations

import pytest

from alds_onnx.steps.survey import side_by_side


@pytest.mark.parametrize("threads", [1, 3])
def test_the_largest_come_first_and_results_in_order(threads: int) -> None:
    items, seen, said = [2, 7, 1, 7, 5], [], []

    def look(item: int) -> int:
        seen.append(item)
        return 10 * item

    found = side_by_side(
        look, items, threads, lambda *done: said.append(done), size=lambda item: item
    )
    assert found == [20, 70, 10, 70, 50]
    assert said == [(n, 5) for n in range(1, 6)]
    if threads == 1:
        assert seen == [7, 7, 5, 2, 1]
