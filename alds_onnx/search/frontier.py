"""What one layer can be cut to: its cheapest choice for each error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from alds_onnx.cuts import Cut, ErrorCurve, FloatArray, IntArray, LayerShape, Scheme, Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import PLAIN, Cuts, Terms

_SCHEMES = tuple(Scheme)
# Cuts of one scheme and k, and the error of each.
_Choices: TypeAlias = tuple[Cuts, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """The choices of one layer that no other choice beats, from the smallest to the dense layer.

    A cut that loses nothing at all beats the dense layer and stands in its place.

    Attributes
    ----------
    name
        Breaks ties between layers, so that the plan does not depend on their order.
    cost
        What is counted (`search.costs`). Strictly rising; the last entry is the dense weight's.
    error
        Strictly falling; the last entry is 0, the dense weight's.
    num_slices, rank
        k and j of each choice; 0 and 0 for the dense weight.
    scheme
        Position of each choice's scheme in `Scheme`; 0 for the dense weight.
    rank_out
        Second rank of a choice of Tucker-2; 0 for the others.
    """

    name: str
    cost: IntArray
    error: FloatArray
    num_slices: IntArray
    rank: IntArray
    scheme: IntArray
    rank_out: IntArray

    def __len__(self) -> int:
        return len(self.cost)

    def cheapest(self, threshold: float) -> int:
        """Index of the cheapest choice whose error is at most `threshold` (>= 0)."""
        return int(np.searchsorted(-self.error, -threshold))

    def largest(self, cost: int) -> int | None:
        """Index of the best choice that costs at most `cost`; None if there is none."""
        index = int(np.searchsorted(self.cost, cost, side="right")) - 1
        return index if index >= 0 else None

    def cut(self, index: int) -> Cut | None:
        """Give the choice at `index`; None for the dense weight."""
        if not self.rank[index]:
            return None
        return Cut(
            num_slices=int(self.num_slices[index]),
            rank=int(self.rank[index]),
            scheme=_SCHEMES[self.scheme[index]],
            rank_out=int(self.rank_out[index]),
        )


# Neighbours of a choice cost about this much more and less than it.
_STEP = 1.2


@dataclass(frozen=True, slots=True)
class Point:
    """A choice for one layer: a frontier and the index on it."""

    frontier: Frontier
    index: int

    @property
    def cut(self) -> Cut | None:
        """The choice; None for the dense weight."""
        return self.frontier.cut(self.index)

    @property
    def cost(self) -> int:
        """What the choice costs."""
        return int(self.frontier.cost[self.index])

    @property
    def error(self) -> float:
        """The error that it leaves."""
        return float(self.frontier.error[self.index])

    def neighbours(self) -> tuple[int, int]:
        """Indices of choices that cost about a fifth less and more, at least one step away."""
        cost, last = self.frontier.cost, len(self.frontier) - 1
        fewer = int(np.abs(cost - cost[self.index] / _STEP).argmin())
        more = int(np.abs(cost - cost[self.index] * _STEP).argmin())
        return min(fewer, max(self.index - 1, 0)), max(more, min(self.index + 1, last))


def frontier(
    name: str, spectra: Spectra, alignment: Alignment = FREE, terms: Terms = PLAIN
) -> Frontier:
    """Build the frontier over all schemes, k and j of a layer that are allowed.

    Ties go to the smaller k: fewer slices are simpler and no runtime is slower with them; then to
    the scheme that comes first.
    """
    shape = spectra.shape
    allowed = [curve for curve in spectra.curves if curve.scheme in spectra.schemes]
    choices = [_choices(shape, curve, alignment) for curve in allowed]
    if Scheme.TUCKER2 in spectra.schemes:
        choices.append(_pairs(spectra, alignment))
    return _undominated(name, shape, choices, terms)


def frontier_of_curves(
    name: str,
    shape: LayerShape,
    curves: tuple[ErrorCurve, ...],
    alignment: Alignment = FREE,
    terms: Terms = PLAIN,
) -> Frontier:
    """Build the frontier over the given curves only."""
    return _undominated(name, shape, [_choices(shape, c, alignment) for c in curves], terms)


def _undominated(
    name: str, shape: LayerShape, choices: Sequence[_Choices], terms: Terms
) -> Frontier:
    """Keep what is not banned and no other choice beats."""
    dense = np.array([[terms.cost.dense(name, shape)], [0.0], [0], [0], [0], [0]])
    columns = [_columns(name, shape, cuts, error, terms) for cuts, error in choices]
    table = np.concatenate([*columns, dense], axis=1)
    table = table[:, np.lexsort((table[4], table[2], table[1], table[0]))]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], table[1, :-1]]))
    kept = table[:, table[1] < best_before]
    cost, num_slices, rank, scheme, rank_out = kept[[0, 2, 3, 4, 5]].astype(np.int64)
    return Frontier(
        name=name,
        cost=cost,
        error=kept[1].copy(),
        num_slices=num_slices,
        rank=rank,
        scheme=scheme,
        rank_out=rank_out,
    )


def _columns(
    name: str, shape: LayerShape, cuts: Cuts, error: FloatArray, terms: Terms
) -> FloatArray:
    """Cuts that are not banned, (6, cuts): cost, error, k, j, scheme, second rank."""
    left = terms.left(name, cuts)
    cuts = cuts.where(left)
    cost = terms.cost.cuts(name, shape, cuts)
    k = np.full_like(cost, cuts.num_slices)
    scheme = np.full_like(cost, _SCHEMES.index(cuts.scheme))
    return np.stack([cost, error[left], k, cuts.rank, scheme, cuts.rank_out])


def _choices(shape: LayerShape, curve: ErrorCurve, alignment: Alignment) -> _Choices:
    """All ranks of one fold at one k that save parameters and are allowed."""
    k, folded = curve.num_slices, shape.folded(curve.scheme)
    highest = min(folded.max_rank(k), len(curve.relative_error) - 1)
    rank = alignment.ranks(folded, k, highest)
    cuts = Cuts(scheme=curve.scheme, num_slices=k, rank=rank, rank_out=np.zeros_like(rank))
    return cuts, curve.relative_error[rank]


def _pairs(spectra: Spectra, alignment: Alignment) -> _Choices:
    """The pairs of ranks of Tucker-2 that save parameters and are allowed.

    Its error is the larger of those of its two projections. So at each threshold the smallest rank
    of either that keeps it is best, and only these pairs, one for each error, need to be looked at.
    """
    shape = spectra.shape
    inputs, error_in = _mode(spectra.curve(1, Scheme.DECODE), shape, Scheme.DECODE, alignment)
    outputs, error_out = _mode(spectra.curve(1), shape, Scheme.ENCODE, alignment)
    thresholds = np.zeros(0)
    if inputs.size and outputs.size:
        thresholds = np.union1d(error_in, error_out)
        thresholds = thresholds[thresholds >= max(error_in[-1], error_out[-1])]
    pairs = Cuts(
        scheme=Scheme.TUCKER2,
        num_slices=1,
        rank=inputs[np.searchsorted(-error_in, -thresholds)],
        rank_out=outputs[np.searchsorted(-error_out, -thresholds)],
    )
    saves = pairs.num_parameters(shape) < shape.num_parameters
    return pairs.where(saves), thresholds[saves]


def _mode(
    curve: ErrorCurve, shape: LayerShape, fold: Scheme, alignment: Alignment
) -> tuple[IntArray, FloatArray]:
    """Ranks that one projection of Tucker-2 may have, and their errors."""
    ranks = alignment.ranks(shape.folded(fold), 1, len(curve.relative_error) - 1)
    return ranks, curve.relative_error[ranks]
