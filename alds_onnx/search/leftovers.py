"""Spending what aligned ranks leave of a budget.

Aligned ranks come in large steps: where layers are few or small, the next step of each may cost
more than what is left. If that is more than may stay unspent, single layers get a rank in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from alds_onnx.search.frontier import Frontier, Point


def finer_points(
    current: Sequence[Point], finer: Sequence[Frontier], left: int, slack: int
) -> dict[int, Point]:
    """Improve single layers, as few as possible, until at most `slack` is left.

    Of the layers that can take enough of what is left, the one with the largest error is improved;
    where none can, the one that takes most goes first.

    Parameters
    ----------
    current
        The choice of each layer.
    finer
        A frontier in finer steps for each layer.
    left, slack
        What is left of the budget, and how much of it may stay unspent.

    Returns
    -------
    The new choice of each layer that gets one, by position.
    """
    chosen: dict[int, Point] = {}
    while left > slack:
        steps = [
            (spent, point.error, f.name, layer, index)
            for layer, (f, point) in enumerate(zip(finer, current, strict=True))
            if layer not in chosen
            and (index := f.largest(point.cost + left)) is not None
            and f.error[index] < point.error
            and (spent := int(f.cost[index]) - point.cost) > 0
        ]
        if not steps:
            break
        enough = [step for step in steps if left - step[0] <= slack]
        spent, _, _, layer, index = (
            max(enough, key=lambda step: step[1:3]) if enough else max(steps)
        )
        chosen[layer] = Point(finer[layer], index)
        left -= spent
    return chosen
