"""Spending the part of a budget that aligned ranks leave over.

Aligned ranks come in large steps. With few or small layers, every next step may cost more than is
left of the budget. If more is left than may stay unspent, single layers get a rank in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from alds_onnx.search.frontier import Frontier, Point


def finer_points(
    current: Sequence[Point], finer: Sequence[Frontier], left: int, slack: int
) -> dict[int, Point]:
    """Improve as few layers as possible until at most `slack` is left.

    Among the layers that can spend enough, the one with the largest error is improved. If there is
    none, the layer that can spend the most is improved first.

    Parameters
    ----------
    current
        The choice of each layer.
    finer
        A frontier with finer steps for each layer.
    left, slack
        The unspent part of the budget, and how much of it may stay unspent.

    Returns
    -------
    The new choices, by the position of the layer.
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
