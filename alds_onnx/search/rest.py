"""Spending what aligned ranks leave of a budget.

Aligned ranks come in large steps: where layers are few or small, the next step of each may cost
more than what is left. If that is more than may stay unspent, single layers get a rank in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alds_onnx.search.alignment import Alignment
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.values import Cut, Spectra


def finer_choices(
    current: Sequence[tuple[int, float]], finer: Sequence[Frontier], rest: int, slack: int
) -> dict[int, int]:
    """Improve single layers, as few as possible, until at most `slack` is left.

    Of the layers that can take enough of the rest the worst one does; where none can, the one that
    takes most goes first.

    Parameters
    ----------
    current
        Parameters and error of each layer.
    finer
        A frontier in finer steps for each layer.
    rest, slack
        Parameters that are left, and how many of them may stay so.

    Returns
    -------
    The index of the new choice on the finer frontier, for each layer that gets one.
    """
    chosen: dict[int, int] = {}
    while rest > slack:
        steps = [
            (spent, error, f.name, layer, index)
            for layer, (f, (parameters, error)) in enumerate(zip(finer, current, strict=True))
            if layer not in chosen
            and (index := f.largest(parameters + rest)) is not None
            and f.error[index] < error
            and (spent := int(f.parameters[index]) - parameters) > 0
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
) -> dict[str, Cut | None]:
    """Give single layers finer ranks where `cuts` leave more than `slack` of the budget."""
    done = dict(cuts)
    for rule in alignment.finer():
        current = [_cost(cut, spectra[name]) for name, cut in done.items()]
        rest = budget - sum(parameters for parameters, _ in current)
        if rest <= slack:
            break
        finer = [frontier(name, spectra[name], rule) for name in done]
        new = finer_choices(current, finer, rest, slack)
        done |= {finer[layer].name: finer[layer].cut(index) for layer, index in new.items()}
    return done


def _cost(cut: Cut | None, spectra: Spectra) -> tuple[int, float]:
    """Parameters and error of a layer."""
    if cut is None:
        return spectra.shape.num_parameters, 0.0
    return cut.num_parameters(spectra.shape), spectra.relative_error(cut)
