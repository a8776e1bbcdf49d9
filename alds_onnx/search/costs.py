"""What the choices of a layer cost: parameters, multiply-accumulates or time, in whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import Cut, Cuts, IntArray, LayerShape, Scheme, Work, one_cut

# Shares of several budgets are counted in parts of this, and no choice in more than the product:
# sums over the layers are exact in float64 where it matters, and far from overflow.
_SHARES, _MOST_SHARES = 1 << 40, 1 << 12


class Cost(Protocol):
    """What the choices of a layer cost. All numbers are at least 0."""

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut; rises with the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Entries of the weight or of its factors."""

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""
        return shape.num_parameters

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut."""
        return cuts.num_parameters(shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Macs:
    """Multiply-accumulates of one run, as far as they are known.

    Attributes
    ----------
    work
        Of each layer that reads a weight, by the weight's name. Those that are not named cost
        nothing; a cut whose work is not known costs more than the dense layer.
    """

    work: Mapping[str, Sequence[Work]]

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""
        return sum(work.macs for work in self.work.get(name, ()))

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut."""
        sizes = np.stack(cuts.parameters_of_factors(shape))  # (factors, cuts)
        total = np.zeros(len(cuts.rank), np.int64)
        for work in self.work.get(name, ()):
            uses = work.uses(shape, cuts.scheme)
            is_known = uses is not None
            total += work.kept + np.array(uses, np.int64) @ sizes if is_known else work.macs + 1
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Several costs in one: each as a share of what all layers may cost together, times a weight.

    The weights are at least 0, and their sum is 1.
    """

    parts: tuple[Cost, ...]
    allowed: tuple[int, ...]
    weights: tuple[float, ...]

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""
        costs = [part.dense(name, shape) for part in self.parts]
        return int(self._mix(np.array(costs, np.int64)[:, None])[0])

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut."""
        return self._mix(np.stack([part.cuts(name, shape, cuts) for part in self.parts]))

    @property
    def limit(self) -> int:
        """What the layers together may cost in this unit: necessary for all parts, not enough."""
        return _SHARES

    def _mix(self, costs: IntArray) -> IntArray:
        """(parts, choices) -> (choices,)."""
        shares = np.array(self.weights) / np.maximum(1, self.allowed)
        return np.round(_SHARES * np.minimum(shares @ costs, _MOST_SHARES)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedRanks:
    """Excludes ranks of a layer at k slices of a scheme.

    Attributes
    ----------
    scheme, num_slices
        Of which cuts. Of two ranks, `rank` alone counts.
    above
        Ranks up to this one are allowed.
    block, aligned
        Only ranks that are multiples of the block, or only the others.
    """

    scheme: Scheme = Scheme.ENCODE
    num_slices: int
    above: int
    block: int = 1
    aligned: bool = True

    def allows(self, cuts: Cuts) -> npt.NDArray[np.bool_]:
        """Which of the cuts are left."""
        if (cuts.scheme, cuts.num_slices) != (self.scheme, self.num_slices):
            return np.ones(len(cuts.rank), bool)
        concerned = np.equal(cuts.rank % self.block == 0, self.aligned)
        return np.asarray(~concerned | np.less_equal(cuts.rank, self.above))


class CutFilter(Protocol):
    """Excludes cuts of a layer from the search."""

    def allows(self, cuts: Cuts) -> npt.NDArray[np.bool_]:
        """Which of the cuts may be chosen."""


#: Cuts excluded from the search, by layer name.
Excluded: TypeAlias = Mapping[str, Sequence[CutFilter]]

PARAMETERS = Parameters()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostModel:
    """What the search counts as the cost of cuts, and which of them are excluded."""

    cost: Cost = PARAMETERS
    excluded: Excluded = field(default_factory=dict)

    def allows(self, name: str, cuts: Cuts) -> npt.NDArray[np.bool_]:
        """Which of the cuts of a layer may be chosen."""
        allowed = np.ones(len(cuts.rank), bool)
        for one in self.excluded.get(name, ()):
            allowed &= one.allows(cuts)
        return allowed


#: Parameters count, and nothing is excluded.
PARAMETERS_ONLY = CostModel()


def cost_of(cost: Cost, name: str, shape: LayerShape, cut: Cut | None) -> int:
    """What one choice costs; None is the dense layer."""
    if cut is None:
        return cost.dense(name, shape)
    return int(cost.cuts(name, shape, one_cut(cut))[0])


def total_cost(cost: Cost, shapes: Mapping[str, LayerShape], cuts: Mapping[str, Cut | None]) -> int:
    """What all layers cost together; those without a cut are dense."""
    return sum(cost_of(cost, name, shape, cuts.get(name)) for name, shape in shapes.items())
