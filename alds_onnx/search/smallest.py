"""The smallest total cost of the layers, below which no budget can be kept."""

from __future__ import annotations

from collections.abc import Mapping

from alds_onnx.cuts import Spectra
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.costs import PARAMETERS_ONLY, CostModel
from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import smallest_cost


def smallest_parameters(spectra: Mapping[str, Spectra]) -> int:
    """Count the parameters of all layers, each cut as far as possible."""
    return smallest_total(spectra)


def smallest_total(
    spectra: Mapping[str, Spectra],
    alignment: Alignment = FREE,
    cost_model: CostModel = PARAMETERS_ONLY,
) -> int:
    """Add up the costs of all layers, each at its cheapest choice."""
    return smallest_cost(
        [frontier(n, curves, alignment, cost_model) for n, curves in spectra.items()]
    )
