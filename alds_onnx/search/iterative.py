"""Algorithm 1 of the ALDS paper, as its authors run it.

15 starts: the divisors nearest to k = 3, 5, 7, 9 in every layer, then k at random. From each start,
in turn: the best ranks of all layers for these k, then, layer by layer, the k with the smallest
error at the parameters that the layer now has; four rounds. The best round of the best start wins.

Not copied from their code: a local step that rounds the rank to the nearest, which the layer's
parameters may not pay for, and then reads the error one rank too early. The two slips nearly cancel
each other, so that both are undone together.
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
        Most parameters that these layers may have together; at least what
        `alds_onnx.search.smallest.smallest_parameters` gives.
    generator
        Draws the random starts.
    alignment
        Which (k, j) there are.

    Returns
    -------
    The cut of each layer; None where it stays dense.
    """
    # The draws must not depend on the order of the layers.
    layers = [(name, _allowed(s, alignment)) for name, s in sorted(spectra.items())]
    starts = [_nearest(layers, k) for k in _FIXED_STARTS]
    starts += [_drawn(layers, generator) for _ in range(_NUM_STARTS - len(_FIXED_STARTS))]
    solutions = (_descend(layers, start, budget, alignment) for start in starts)
    return min(solutions, key=lambda solution: solution[0])[1]


_Layers = Sequence[tuple[str, Spectra]]
_Solution = tuple[float, dict[str, Cut | None]]


def _allowed(spectra: Spectra, alignment: Alignment) -> Spectra:
    """The curves of those k that some allowed rank goes with; k = 1 stays in any case."""
    counts = {1, *alignment.counts(spectra.shape, _counts(spectra))}
    kept = tuple(curve for curve in spectra.curves if curve.num_slices in counts)
    return replace(spectra, curves=kept)


def _counts(spectra: Spectra) -> list[int]:
    return [curve.num_slices for curve in spectra.curves]


def _nearest(layers: _Layers, wanted: int) -> list[int]:
    """Find the k of each layer that is nearest to `wanted`; the larger of two as near."""
    return [min(reversed(_counts(s)), key=lambda k: abs(k - wanted)) for _, s in layers]


def _drawn(layers: _Layers, generator: np.random.Generator) -> list[int]:
    return [int(generator.choice(_counts(s))) for _, s in layers]


def _frontiers(layers: _Layers, num_slices: Sequence[int], alignment: Alignment) -> list[Frontier]:
    return [
        frontier_of_curves(name, s.shape, (s.curve(k),), alignment)
        for (name, s), k in zip(layers, num_slices, strict=True)
    ]


def _descend(layers: _Layers, start: list[int], budget: int, alignment: Alignment) -> _Solution:
    """Alternate from one start; the best of the rounds."""
    affordable = _affordable(layers, start, budget, alignment)
    best = current = _best_ranks(layers, affordable, budget, alignment)
    for _ in range(_NUM_ROUNDS):
        # Each layer can pay for a rank at its new k with what it has: the budget is kept.
        num_slices = _best_slices(layers, current[1], alignment)
        current = _best_ranks(layers, num_slices, budget, alignment)
        best = min(best, current, key=lambda solution: solution[0])
    return best


def _affordable(layers: _Layers, start: list[int], budget: int, alignment: Alignment) -> list[int]:
    """Halve all k until the cheapest cuts fit the budget, as k = 1 does if any k does."""
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
    """Global step: the best ranks for these numbers of slices."""
    frontiers = _frontiers(layers, num_slices, alignment)
    chosen = minimize_maximum_error(frontiers, budget)
    error = max((float(f.error[i]) for f, i in zip(frontiers, chosen, strict=True)), default=0.0)
    return error, {f.name: f.cut(i) for f, i in zip(frontiers, chosen, strict=True)}


def _best_slices(
    layers: _Layers, cuts: Mapping[str, Cut | None], alignment: Alignment
) -> list[int]:
    """Local step: for each layer, the k with the smallest error at the parameters it has."""
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
    return min(errors, default=(0.0, 1))[1]  # no rank pays: the layer stays dense at any k
