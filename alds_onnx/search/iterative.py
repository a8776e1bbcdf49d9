"""Algorithm 1 of the ALDS paper, as its authors run it.

The search has 15 starts: in each layer the divisor nearest to k = 3, 5, 7 or 9, then random ones.
Each start takes four rounds. A round finds the best ranks of all layers for the given k, and then,
layer by layer, the k with the smallest error at the layer's current number of parameters. The
result is the best round of all starts.

Two slips of the authors' code are not copied. Their local step rounds the rank to the nearest
integer, which may cost more parameters than the layer has, and then reads the error one rank too
early. The slips nearly cancel each other, so both are corrected here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from alds_onnx.cuts import Cut, Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.frontier import Frontier, frontier_of_curves
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost

_FIXED_STARTS = (3, 5, 7, 9)
_NUM_STARTS = 15
_NUM_ROUNDS = 4


def search_iterative(
    spectra: Mapping[str, Spectra],
    budget: int,
    generator: np.random.Generator,
    alignment: Alignment = FREE,
) -> dict[str, Cut | None]:
    """Choose (k, j) for every layer by alternating between ranks and numbers of slices.

    Parameters
    ----------
    spectra
        Error curves by layer name.
    budget
        Largest total number of parameters of the layers; at least
        `alds_onnx.search.smallest.smallest_parameters`.
    generator
        Draws the random starts.
    alignment
        The allowed (k, j).

    Returns
    -------
    The cut of each layer; None where it stays dense.
    """
    # Sort the layers, so that the draws do not depend on their order.
    layers = [(name, _allowed(s, alignment)) for name, s in sorted(spectra.items())]
    starts = [_nearest(layers, k) for k in _FIXED_STARTS]
    starts += [_drawn(layers, generator) for _ in range(_NUM_STARTS - len(_FIXED_STARTS))]
    solutions = (_descend(layers, start, budget, alignment) for start in starts)
    return min(solutions, key=lambda solution: solution[0])[1]


_Layers = Sequence[tuple[str, Spectra]]
_Solution = tuple[float, dict[str, Cut | None]]


def _allowed(spectra: Spectra, alignment: Alignment) -> Spectra:
    """Keep the curves of the k that have an allowed rank, and in any case k = 1."""
    counts = {1, *alignment.counts(spectra.shape, _counts(spectra))}
    kept = tuple(curve for curve in spectra.curves if curve.num_slices in counts)
    return replace(spectra, curves=kept)


def _counts(spectra: Spectra) -> list[int]:
    return [curve.num_slices for curve in spectra.curves]


def _nearest(layers: _Layers, wanted: int) -> list[int]:
    """Find the k of each layer that is nearest to `wanted`, the larger one of a tie."""
    return [min(reversed(_counts(s)), key=lambda k: abs(k - wanted)) for _, s in layers]


def _drawn(layers: _Layers, generator: np.random.Generator) -> list[int]:
    return [int(generator.choice(_counts(s))) for _, s in layers]


def _frontiers(layers: _Layers, num_slices: Sequence[int], alignment: Alignment) -> list[Frontier]:
    return [
        frontier_of_curves(name, s.shape, (s.curve(k),), alignment)
        for (name, s), k in zip(layers, num_slices, strict=True)
    ]


def _descend(layers: _Layers, start: list[int], budget: int, alignment: Alignment) -> _Solution:
    """Alternate both steps from one start, and give the best round."""
    affordable = _affordable(layers, start, budget, alignment)
    best = current = _best_ranks(layers, affordable, budget, alignment)
    for _ in range(_NUM_ROUNDS):
        # At its new k each layer has a rank within its current parameters: the budget is kept.
        num_slices = _best_slices(layers, current[1], alignment)
        current = _best_ranks(layers, num_slices, budget, alignment)
        best = min(best, current, key=lambda solution: solution[0])
    return best


def _affordable(layers: _Layers, start: list[int], budget: int, alignment: Alignment) -> list[int]:
    """Halve all k until the cheapest cuts fit the budget; if any k fits, k = 1 does."""
    num_slices = start
    while max(num_slices, default=1) > 1:
        if smallest_cost(_frontiers(layers, num_slices, alignment)) <= budget:
            break
        halved = [max(1, k // 2) for k in num_slices]
        num_slices = [
            max(k for k in _counts(s) if k <= half)
            for (_, s), half in zip(layers, halved, strict=True)
        ]
    return num_slices


def _best_ranks(
    layers: _Layers, num_slices: Sequence[int], budget: int, alignment: Alignment
) -> _Solution:
    """Take the global step: the best ranks for these numbers of slices."""
    frontiers = _frontiers(layers, num_slices, alignment)
    chosen = minimize_maximum_error(frontiers, budget)
    error = max((float(f.error[i]) for f, i in zip(frontiers, chosen, strict=True)), default=0.0)
    return error, {f.name: f.cut(i) for f, i in zip(frontiers, chosen, strict=True)}


def _best_slices(
    layers: _Layers, cuts: Mapping[str, Cut | None], alignment: Alignment
) -> list[int]:
    """Take the local step: for each layer, the k with the smallest error at its parameters."""
    return [_best_count(s, cuts[name], alignment) for name, s in layers]


def _best_count(spectra: Spectra, cut: Cut | None, alignment: Alignment) -> int:
    shape = spectra.shape
    budget = cut.num_parameters(shape) if cut else shape.num_parameters
    errors = []
    for curve in spectra.curves:
        k, last = curve.num_slices, len(curve.relative_error) - 1
        ranks = alignment.ranks(shape, k, min(budget // shape.parameters_per_rank(k), last))
        if ranks.size:
            errors.append((float(curve.relative_error[ranks[-1]]), k))
    return min(errors, default=(0.0, 1))[1]  # no rank saves parameters: the layer stays dense
