"""What one layer can be cut to: its cheapest choice for each error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from alds_onnx.cuts import Cut, Cuts, FloatArray, IntArray, LayerShape, Scheme, Spectra
from alds_onnx.schemes.base import Candidates
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import PARAMETERS_ONLY, CostModel

_SCHEMES = tuple(Scheme)


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
        Second rank of a choice; 0 where its scheme has only one.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The cuts that a search chose.

    Attributes
    ----------
    cuts
        Cuts by layer name; layers that stay dense have none.
    points
        The choice of each layer on its frontier; empty if there was no search.
    objective
        Value of the objective; smaller is better, infinite if nothing fits the budget.
    """

    cuts: Mapping[str, Cut]
    points: Mapping[str, Point] = field(default_factory=dict)
    objective: float = 0.0


def frontier(
    name: str,
    spectra: Spectra,
    alignment: Alignment = FREE,
    cost_model: CostModel = PARAMETERS_ONLY,
) -> Frontier:
    """Build the frontier over all schemes, k and j of a layer that are allowed.

    Ties go to the smaller k: fewer slices are simpler and no runtime is slower with them; then to
    the scheme that comes first.
    """
    shape, curves = spectra.shape, spectra.by_fold
    dense = np.array([[cost_model.cost.dense(name, shape)], [0.0], [0], [0], [0], [0]])
    columns = [
        _columns(name, shape, scheme, candidates, cost_model)
        for scheme in spectra.schemes
        for candidates in scheme.structure.candidates(
            shape, curves, alignment.ranks, spectra.error_norm
        )
    ]
    table = np.concatenate([*columns, dense], axis=1)
    table = table[:, np.lexsort((table[4], table[2], table[1], table[0]))]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], table[1, :-1]]))
    kept = table[:, table[1] < best_before]
    cost, num_slices, rank, schemes, rank_out = kept[[0, 2, 3, 4, 5]].astype(np.int64)
    return Frontier(
        name=name,
        cost=cost,
        error=kept[1].copy(),
        num_slices=num_slices,
        rank=rank,
        scheme=schemes,
        rank_out=rank_out,
    )


def _columns(
    name: str, shape: LayerShape, scheme: Scheme, candidates: Candidates, cost_model: CostModel
) -> FloatArray:
    """Cuts that are not excluded, (6, cuts): cost, error, k, j, scheme, second rank."""
    num_slices, rank, rank_out, error = candidates
    cuts = Cuts(scheme=scheme, num_slices=num_slices, rank=rank, rank_out=rank_out)
    left = cost_model.allows(name, cuts)
    cuts = cuts.where(left)
    cost = cost_model.cost.cuts(name, shape, cuts)
    k = np.full_like(cost, num_slices)
    schemes = np.full_like(cost, _SCHEMES.index(scheme))
    return np.stack([cost, error[left], k, cuts.rank, schemes, cuts.rank_out])
