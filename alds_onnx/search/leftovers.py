"""Spending the part of a budget that aligned ranks leave over.

Aligned ranks come in large steps. With few or small layers, every next step may cost more than is
left of the budget. If more is left than may stay unspent, single layers get a rank in between.
"""

from __future__ import annotations

from collections.abc import Mapping

from alds_onnx.search.frontier import Frontier, Point


def finer_points(
    current: Mapping[str, Point], finer: Mapping[str, Frontier], left: int, slack: int
) -> dict[str, Point]:
    """Improve as few layers as possible by finer steps until at most `slack` is left.

    Among the layers that can spend enough, the one with the largest error is improved. If there is
    none, the layer that can spend the most is improved first. The result has the new choices only.
    """
    chosen: dict[str, Point] = {}
    while left > slack:
        steps = [
            (spent, point.error, name, index)
            for name, point in current.items()
            if name not in chosen
            and (index := finer[name].largest(point.cost + left)) is not None
            and finer[name].error[index] < point.error
            and (spent := int(finer[name].cost[index]) - point.cost) > 0
        ]
        if not steps:
            break
        enough = [step for step in steps if left - step[0] <= slack]
        spent, _, name, index = max(enough, key=lambda step: step[1:3]) if enough else max(steps)
        chosen[name] = Point(finer[name], index)
        left -= spent
    return chosen
