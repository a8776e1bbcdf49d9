"""What a budget can be."""

from __future__ import annotations

from collections.abc import Mapping

from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import smallest_cost
from alds_onnx.values import Spectra


def smallest_parameters(spectra: Mapping[str, Spectra]) -> int:
    """Parameters of all layers together if each is cut as far as possible."""
    return smallest_cost([frontier(name, curves) for name, curves in spectra.items()])
