"""The global optimum of the largest error over all numbers of slices and ranks."""

from __future__ import annotations

from collections.abc import Mapping

from alds_onnx.cuts import Cut, Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import PARAMETERS_ONLY, CostModel
from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import minimize_maximum_error


def search_exact(
    spectra: Mapping[str, Spectra],
    budget: int,
    alignment: Alignment = FREE,
    cost_model: CostModel = PARAMETERS_ONLY,
) -> dict[str, Cut | None]:
    """Choose (k, j) for every layer so that the largest relative error is as small as possible.

    Parameters
    ----------
    spectra
        Error curves by layer name.
    budget
        Largest total cost of the layers; at least `alds_onnx.search.smallest.smallest_total`.
    alignment
        The allowed (k, j).
    cost_model
        How cost is counted, and the excluded cuts.

    Returns
    -------
    The cut of each layer; None where it stays dense.
    """
    frontiers = [frontier(name, curves, alignment, cost_model) for name, curves in spectra.items()]
    chosen = minimize_maximum_error(frontiers, budget)
    return {f.name: f.cut(i) for f, i in zip(frontiers, chosen, strict=True)}
