"""Latency budgets: the cost of cuts by measured times, and its correction by the whole model.

Every layer in isolation is timed at a few ranks of every scheme and number of slices that may be
chosen, and the search counts the time of a cut by these curves. The model that it finds is built
with zeros for weights and timed against the original: what that differs from the curves corrects
how much they are asked to save, a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from alds_onnx.cuts import Cut, Cuts, IntArray, LayerShape, Spectra
from alds_onnx.errors import BudgetError
from alds_onnx.evaluate.sessions import Feeds
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import rewrite
from alds_onnx.search.alignment import Alignment
from alds_onnx.timing.curves import Grid, TimeCurve, Variant, grid_of, measure_curves
from alds_onnx.timing.layer_models import zero_replacement
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.timer import LayerTimer, Timing

# Whole models that are built and timed.
_ROUNDS = 4
# The ratio that is aimed at, as a part of the one that was asked for, and the range that is near
# enough: a little below, since the round that is kept is one that chance has favoured.
_AIM, _LOW, _HIGH = 0.955, 0.92, 0.985
# A ratio that is missed by more than this factor is out of reach.
_MISSED = 1.05
# The most that the curves are asked to save, and how much of what they can: whole numbers and the
# steps between ranks leave a little.
_MOST, _NEARLY = 0.98, 0.995


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencyCost:
    """The cost of cuts in nanoseconds of one run (`search.costs.Cost`).

    Attributes
    ----------
    curves
        Times by rank. A cut without a curve takes longer than the dense layers.
    blocks
        What makes the ranks of a weight aligned, by its name.
    whole
        Times of the dense layers, by the names of their weights; 0 where they are not known.
    """

    curves: Mapping[Variant, TimeCurve]
    blocks: Mapping[str, int]
    whole: Mapping[str, int]

    def dense(self, name: str, shape: LayerShape) -> int:
        """Cost of the layer as it is."""
        return self.whole.get(name, 0)

    def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> IntArray:
        """Cost of each cut."""
        block = self.blocks[name]
        is_aligned = (cuts.rank % block == 0) & (cuts.rank_out % block == 0)
        costs = np.full(len(cuts.rank), self.dense(name, shape) + 1, np.int64)
        for aligned in (False, True):
            variant = Variant(
                name=name, scheme=cuts.scheme, num_slices=cuts.num_slices, aligned=aligned
            )
            curve, own = self.curves.get(variant), is_aligned == aligned
            if curve is not None:
                costs[own] = np.maximum(0, curve.at(cuts.where(own))).astype(np.int64)
        return costs

    def most_saved(self) -> int:
        """Nanoseconds that are saved with every layer at its fastest."""
        fastest = {name: float(own) for name, own in self.whole.items()}
        for variant, curve in self.curves.items():
            least = max(0.0, float(curve.times.min()))
            fastest[variant.name] = min(fastest[variant.name], least)
        return int(_NEARLY * (sum(self.whole.values()) - sum(fastest.values())))


def measure_latency_cost(
    times: LayerTimes, spectra: Mapping[str, Spectra], alignment: Alignment
) -> LatencyCost:
    """Time the layers at a few ranks of each scheme and number of slices that the rule allows."""
    blocks = {name: times.block(name) for name in spectra}
    grids: dict[Variant, Grid] = {}
    for name, curves in spectra.items():
        for variant in _variants(name, curves):
            grid = grid_of(curves.shape, variant, blocks[name], alignment)
            if grid is not None:
                grids[variant] = grid
    measured = measure_curves(times, grids)
    whole = {variant.name: int(curve.dense) for variant, curve in measured.items()}
    return LatencyCost(curves=measured, blocks=blocks, whole=whole)


def _variants(name: str, spectra: Spectra) -> list[Variant]:
    """All variants of the cuts that may be chosen."""
    kinds = [(c.scheme, c.num_slices) for c in spectra.curves if c.scheme in spectra.schemes]
    kinds += [(scheme, 1) for scheme in spectra.schemes if len(scheme.structure.folds) > 1]
    return [
        Variant(name=name, scheme=scheme, num_slices=k, aligned=aligned)
        for scheme, k in kinds
        for aligned in (True, False)
    ]


def time_whole_model(
    timer: LayerTimer,
    model: ModelProto,
    folder: Path,
    cuts: Sequence[tuple[tuple[Layer, ...], Cut]],
    feeds: Feeds,
) -> Timing:
    """Time a whole model on `feeds`, as it is and with cuts whose factors are zeros.

    `cuts` are pairs of the layers that share a weight, and its cut; external data lies in `folder`.
    RunError if the runtime does not run one of the two models.
    """
    replacements = [zero_replacement(layers, cut) for layers, cut in cuts]
    changed = [rewrite(model, replacements)] if replacements else []
    before, *after = timer.time_models([model, *changed], folder, feeds)
    return Timing(dense=before, cut=after[0] if after else before)


def corrected_saving(ratio: float, ratio_of: Callable[[float], float], most: float) -> float:
    """Ask the curves for more or less until the whole model takes the time that it may.

    Parameters
    ----------
    ratio
        The part of the time of a run that may be left; BudgetError if it is out of reach.
    ratio_of
        Searches for cuts that save a fraction of the time by the curves, builds a model with them,
        and gives its time over that of the original.
    most
        The fraction that the curves can save. What they are to save is the result.
    """
    if most <= 0:
        raise BudgetError(
            f"a latency ratio of {ratio:g} is out of reach: no cut of any layer is faster on this "
            "machine; give --cr or --cr-macs instead"
        )
    aimed, goal = min(1 - ratio, most), _AIM * ratio
    best: tuple[float, float] | None = None
    for _ in range(_ROUNDS):
        try:
            found = ratio_of(aimed)
        except BudgetError:
            if best is None:
                raise
            break
        if best is None or abs(found - goal) < abs(best[0] - goal):
            best = found, aimed
        if _LOW * ratio <= found <= _HIGH * ratio:
            break
        saved = max(1 - found, 0.1 * aimed)  # curves that promise ten times too much are wrong
        before, aimed = aimed, float(min(_MOST, most, aimed * (1 - goal) / saved))
        if aimed == before:  # there is no more to ask for
            break
    assert best is not None
    if best[0] > _MISSED * ratio:
        raise BudgetError(
            f"a latency ratio of {ratio:g} is out of reach: the fastest model that was found has "
            f"{best[0]:.2f}; raise --latency-ratio"
        )
    return best[1]
