"""Spending what aligned ranks leave of a budget.

Aligned ranks come in large steps: where layers are few or small, the next step of each may cost
more than what is left. If that is more than may stay unspent, single layers get a rank in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alds_onnx.cuts import Cut, Spectra
from alds_onnx.search.alignment import Alignment
from alds_onnx.search.costs import PLAIN, Cost, Terms, cost_of
from alds_onnx.search.frontier import Frontier, frontier


def finer_choices(
    current: Sequence[tuple[int, float]], finer: Sequence[Frontier], rest: int, slack: int
) -> dict[int, int]:
    """Improve single layers, as few as possible, until at most `slack` is left.

    Of the layers that can take enough of the rest the worst one does; where none can, the one that
    takes most goes first.

    Parameters
    ----------
    current
        Cost and error of each layer.
    finer
        A frontier in finer steps for each layer.
    rest, slack
        What is left, and how much of it may stay so.

    Returns
    -------
    The index of the new choice on the finer frontier, for each layer that gets one.
    """
    chosen: dict[int, int] = {}
    while rest > slack:
        steps = [
            (spent, error, f.name, layer, index)
            for layer, (f, (cost, error)) in enumerate(zip(finer, current, strict=True))
            if layer not in chosen
            and (index := f.largest(cost + rest)) is not None
            and f.error[index] < error
            and (spent := int(f.cost[index]) - cost) > 0
        ]
        if not steps:
            break
        enough = [step for step in steps if rest - step[0] <= slack]
        spent, _, _, layer, index = (
            max(enough, key=lambda step: step[1:3]) if enough else max(steps)
        )
        chosen[layer] = index
        rest -= spent
    return chosen


def spend_rest(
    cuts: Mapping[str, Cut | None],
    spectra: Mapping[str, Spectra],
    budget: int,
    slack: int,
    alignment: Alignment,
    *,
    terms: Terms = PLAIN,
) -> dict[str, Cut | None]:
    """Give single layers finer ranks where `cuts` leave more than `slack` of the budget."""
    done = dict(cuts)
    for rule in alignment.finer():
        current = [_point(terms.cost, name, spectra[name], cut) for name, cut in done.items()]
        rest = budget - sum(cost for cost, _ in current)
        if rest <= slack:
            break
        finer = [frontier(name, spectra[name], rule, terms) for name in done]
        new = finer_choices(current, finer, rest, slack)
        done |= {finer[layer].name: finer[layer].cut(index) for layer, index in new.items()}
    return done


def _point(cost: Cost, name: str, spectra: Spectra, cut: Cut | None) -> tuple[int, float]:
    """Cost and error of a layer."""
    paid = cost_of(cost, name, spectra.shape, cut)
    return paid, spectra.relative_error(cut) if cut else 0.0
