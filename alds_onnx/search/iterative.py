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

from alds_onnx.cuts import Cut, Scheme, Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.frontier import Frontier, Point, frontier
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost

_FIXED_STARTS = (3, 5, 7, 9)
_NUM_STARTS = 15
_NUM_ROUNDS = 4


def search_iterative(
    spectra: Mapping[str, Spectra],
    budget: int,
    generator: np.random.Generator,
    alignment: Alignment = FREE,
) -> dict[str, Point]:
    """Choose (k, j) for every layer by alternating between ranks and numbers of slices.

    `budget` is the most parameters of the layers together; their cheapest cuts must fit. The
    generator draws the random starts.
    """
    # Sort the layers, so that the draws do not depend on their order.
    layers = [(name, _allowed(s, alignment)) for name, s in sorted(spectra.items())]
    starts = [[_nearest(s, k) for _, s in layers] for k in _FIXED_STARTS]
    starts += [
        [int(generator.choice(_counts(s))) for _, s in layers]
        for _ in range(_NUM_STARTS - len(_FIXED_STARTS))
    ]
    solutions = (_descend(layers, start, budget, alignment) for start in starts)
    return min(solutions, key=_largest_error)


_Layers = Sequence[tuple[str, Spectra]]


def _largest_error(points: Mapping[str, Point]) -> float:
    return max((point.error for point in points.values()), default=0.0)


def _allowed(spectra: Spectra, alignment: Alignment) -> Spectra:
    """Keep the paper's scheme at the k that have an allowed rank, and in any case at k = 1."""
    counts = {1, *alignment.counts(spectra.shape, _counts(spectra))}
    kept = tuple(curve for curve in spectra.curves if curve.num_slices in counts)
    return replace(spectra, curves=kept, schemes=(Scheme.ENCODE,))


def _counts(spectra: Spectra) -> list[int]:
    return [curve.num_slices for curve in spectra.curves]


def _nearest(spectra: Spectra, wanted: int) -> int:
    """The k that is nearest to `wanted`, the larger one of a tie."""
    return min(reversed(_counts(spectra)), key=lambda k: abs(k - wanted))


def _frontiers(layers: _Layers, num_slices: Sequence[int], alignment: Alignment) -> list[Frontier]:
    return [
        frontier(name, replace(s, curves=(s.curve(k),)), alignment)
        for (name, s), k in zip(layers, num_slices, strict=True)
    ]


def _descend(
    layers: _Layers, start: list[int], budget: int, alignment: Alignment
) -> dict[str, Point]:
    """Alternate both steps from one start, and give the best round."""
    affordable = _affordable(layers, start, budget, alignment)
    best = current = _best_ranks(layers, affordable, budget, alignment)
    for _ in range(_NUM_ROUNDS):
        # At its new k each layer has a rank within its current parameters: the budget is kept.
        num_slices = [_best_count(s, current[name].cut, alignment) for name, s in layers]
        current = _best_ranks(layers, num_slices, budget, alignment)
        best = min(best, current, key=_largest_error)
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
) -> dict[str, Point]:
    """Take the global step: the best ranks for these numbers of slices."""
    frontiers = _frontiers(layers, num_slices, alignment)
    chosen = minimize_maximum_error(frontiers, budget)
    return {f.name: Point(f, i) for f, i in zip(frontiers, chosen, strict=True)}


def _best_count(spectra: Spectra, cut: Cut | None, alignment: Alignment) -> int:
    """Take the local step: the k with the smallest error at the parameters of a layer's cut."""
    shape = spectra.shape
    budget = cut.num_parameters(shape) if cut else shape.num_parameters
    errors = []
    for curve in spectra.curves:
        k, last = curve.num_slices, len(curve.relative_error) - 1
        ranks = alignment.ranks(shape, k, min(budget // shape.parameters_per_rank(k), last))
        if ranks.size:
            errors.append((float(curve.relative_error[ranks[-1]]), k))
    return min(errors, default=(0.0, 1))[1]  # no rank saves parameters: the layer stays dense
