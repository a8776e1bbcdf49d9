"""Time as a function of rank: measured at a few ranks, with straight lines between them.

Measured in onnxruntime on layers of six sizes: with aligned ranks, lines through 4, 40 and 100 % of
the largest rank are off by 0.4 % on average (5 % with unaligned ranks, whose time is a staircase).
On Tucker-2, a grid of three by three pairs of ranks is off by 1 % (2 %); a + b·rank +
c·rank·rank_out + d·rank_out, the work of its three stages, by 2 % (3 %) however many pairs it fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from alds_onnx.cuts import Cut, Cuts, FloatArray, IntArray, LayerShape, Scheme
from alds_onnx.search.alignment import Alignment
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.timer import Timing

# Ranks to measure, as parts of the largest.
_PARTS = (1.0, 0.4, 0.04)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Cuts of the weight of this name that have a curve in common.

    They are `aligned` if all ranks are multiples of the runtime's block. If not, the runtime may
    take another path, which makes a jump in the time.
    """

    name: str
    scheme: Scheme
    num_slices: int
    aligned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Ranks to measure of a variant, ascending; `ranks_out` is (0,) where a cut has one rank."""

    ranks: tuple[int, ...]
    ranks_out: tuple[int, ...] = (0,)

    def cuts(self, variant: Variant) -> list[Cut]:
        """Every pair of ranks, the smallest pair first."""
        k, scheme = variant.num_slices, variant.scheme
        return [
            Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=rank_out)
            for rank, rank_out in product(self.ranks, self.ranks_out)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeCurve:
    """Nanoseconds of a run by rank.

    `dense` is the time of the dense layers. That at each pair of ranks of the grid, `times`
    (ranks, ranks_out), rises with both.
    """

    dense: float
    grid: Grid
    times: FloatArray

    def at(self, cuts: Cuts) -> FloatArray:
        """Time of each cut, shape (cuts,), by straight lines along both ranks.

        Ranks below the smallest that was measured take as long as that one. Those above the
        largest take as long as that one, and longer than the dense layers: nothing else is known.
        """
        ranks, ranks_out = self.grid.ranks, self.grid.ranks_out
        columns = [np.interp(cuts.rank, ranks, column) for column in self.times.T]
        found = columns[0]
        for (low, high), (start, end) in zip(pairwise(columns), pairwise(ranks_out), strict=True):
            found = found + np.clip((cuts.rank_out - start) / (end - start), 0, 1) * (high - low)
        beyond = (cuts.rank > ranks[-1]) | (cuts.rank_out > ranks_out[-1])
        found = np.where(beyond, max(self.dense + 1, self.times[-1, -1]), found)
        return np.asarray(found, np.float64)

    def largest_rank(self, cut: Cut) -> int:
        """Give the largest rank up to that of a cut that takes no longer than the dense layers.

        A second rank falls in proportion. 0 means that there is no such rank.
        """
        rank = np.arange(1, cut.rank + 1, dtype=np.int64)
        rank_out = np.round(rank * (cut.rank_out / cut.rank)).astype(np.int64)
        cuts = Cuts(scheme=cut.scheme, num_slices=cut.num_slices, rank=rank, rank_out=rank_out)
        return int(rank[self.at(cuts) <= self.dense].max(initial=0))


def grid_of(shape: LayerShape, variant: Variant, block: int, alignment: Alignment) -> Grid | None:
    """Choose ranks to measure, as parts of the largest rank that saves parameters.

    Multiples of `block` are aligned; by the rule, one slice may have any rank. None if the rule
    allows no rank.
    """
    k = variant.num_slices
    rule = alignment.tiers()[:2][-1] if k == 1 else alignment
    any_cut = Cut(num_slices=k, rank=1, scheme=variant.scheme, rank_out=1)
    projections = variant.scheme.structure.projections(any_cut)
    folds = [projection.fold.sizes(shape) for projection in projections]
    # With two ranks, either may be large if the other one is small.
    highest = [fold.full_rank(k) if len(folds) > 1 else fold.max_rank(k) for fold in folds]
    allowed = [rule.ranks(fold, k, most) for fold, most in zip(folds, highest, strict=True)]
    axes = [_spread(ranks[np.equal(ranks % block == 0, variant.aligned)]) for ranks in allowed]
    if not all(axes):
        return None
    return Grid(ranks=axes[0], ranks_out=axes[1] if len(axes) > 1 else (0,))


def _spread(ranks: IntArray) -> tuple[int, ...]:
    if not len(ranks):
        return ()
    nearest = {int(ranks[np.abs(ranks - part * ranks[-1]).argmin()]) for part in _PARTS}
    return tuple(sorted(nearest))


def measure_curves(times: LayerTimes, grids: Mapping[Variant, Grid]) -> dict[Variant, TimeCurve]:
    """Measure the curves of variants, each at the ranks of its grid.

    Of a variant that is slower than the dense layer at its smallest ranks, nothing else is
    measured. A variant that cannot be timed has no curve.
    """
    smallest = {v: Grid(ranks=g.ranks[:1], ranks_out=g.ranks_out[:1]) for v, g in grids.items()}
    first = _timed(times, smallest)
    promising = {v: grids[v] for v, (timing,) in first.items() if timing.saved >= 0}
    timed = first | _timed(times, promising)
    dense: dict[str, list[float]] = {}
    for variant, timings in timed.items():
        dense.setdefault(variant.name, []).extend(timing.dense for timing in timings)
    whole = {name: float(np.median(own)) for name, own in dense.items()}
    return {
        v: _curve(whole[v.name], promising.get(v, smallest[v]), timings)
        for v, timings in timed.items()
    }


def _timed(times: LayerTimes, grids: Mapping[Variant, Grid]) -> dict[Variant, list[Timing]]:
    """Times at all ranks of those variants that can be timed."""
    wanted = {variant: grid.cuts(variant) for variant, grid in grids.items()}
    times.measure((variant.name, cut) for variant, cuts in wanted.items() for cut in cuts)
    found = {v: [times.timing(v.name, cut) for cut in cuts] for v, cuts in wanted.items()}
    known = {v: [t for t in timings if t is not None] for v, timings in found.items()}
    return {v: timings for v, timings in known.items() if len(timings) == len(wanted[v])}


def _curve(dense: float, grid: Grid, timings: Sequence[Timing]) -> TimeCurve:
    """A curve that rises with the ranks, as times do but for noise.

    Noise only makes a run longer, so a larger rank that is faster shows that a smaller one is, too.
    Cuts are compared with the dense runs that took turns with them.
    """
    shape = len(grid.ranks), len(grid.ranks_out)
    times = np.array([dense - timing.saved for timing in timings]).reshape(shape)
    for axis in (0, 1):
        times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return TimeCurve(dense=dense, grid=grid, times=times)
