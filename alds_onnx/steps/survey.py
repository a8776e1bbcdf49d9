"""The layers and weights of a model, and which of them may be decomposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.cuts import FloatArray
from alds_onnx.graph.attention import attention_projections
from alds_onnx.graph.constants.holders import in_graph_order, other_holders
from alds_onnx.graph.files.load import LoadedModel
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer, Skipped, read_matrix, skipped
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks
from alds_onnx.graph.tensors import smallest_normal
from alds_onnx.linalg.scaling import largest_entry
from alds_onnx.settings import Settings

_T = TypeVar("_T")
_R = TypeVar("_R")
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """A weight, and the layers that read it (at least one)."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Name of the weight: that of the first layer."""
        return self.layers[0].name

    @property
    def num_parameters(self) -> int:
        """Number of entries."""
        return self.layers[0].shape.num_parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """The layers of a model: every node whose operator can be decomposed, in graph order.

    Nodes of other operators that hold parameters stand between them, as skipped.
    `excluded` are the names of those that the user excluded, `attention` of those that stay whole
    because runtimes fuse them with attention downstream.
    """

    loaded: LoadedModel
    index: ModelIndex
    found: tuple[Layer | Skipped, ...]
    excluded: frozenset[str]
    attention: frozenset[str] = frozenset()

    def matrix(self, layer: Layer) -> FloatArray:
        """Read a layer's weight folded to (f, c·kh·kw), in float64."""
        return read_matrix(self.index, layer, self.loaded.folder)

    def weights(self) -> tuple[Weight, ...]:
        """List the weights that may be decomposed: all of their layers may be."""
        shared: dict[object, list[Layer]] = {}
        for layer in self.found:
            if isinstance(layer, Layer):
                shared.setdefault(layer.weight_key, []).append(layer)
        groups = (tuple(layers) for layers in shared.values())
        return tuple(
            Weight(layers=group)
            for group in groups
            if not any(layer.name in self.excluded | self.attention for layer in group)
        )


def make_survey(loaded: LoadedModel, settings: Settings, *, keep_attention: bool = True) -> Survey:
    """Find the layers of a model, and those that stay whole."""
    index = ModelIndex(loaded.model)
    ranks = known_ranks(index, infer(loaded.model))
    layers = find_layers(index, loaded.folder, ranks)
    found = in_graph_order(index, (*layers, *other_holders(index, layers)))
    excluded = settings.excluded([layer.name for layer in found])
    attention: frozenset[str] = frozenset()
    if keep_attention and settings.plan is None:
        attention = _attention(index, found, settings) - excluded
    return Survey(loaded=loaded, index=index, found=found, excluded=excluded, attention=attention)


def _attention(
    index: ModelIndex, found: Sequence[Layer | Skipped], settings: Settings
) -> frozenset[str]:
    """Name the projections of attention that no pattern of the user includes."""
    layers = {layer.site: layer.name for layer in found if isinstance(layer, Layer)}
    sites = attention_projections(index, layers)
    return frozenset(layers[site] for site in sites if not settings.includes(layers[site]))


def without_unsound(survey: Survey, threads: int, advance: Advance) -> Survey:
    """Skip the layers whose weights cannot be factorized."""
    weights = survey.weights()

    def look(weight: Weight) -> str:
        layer = weight.layers[0]
        return _unsound(survey.matrix(layer), smallest_normal(layer.source.tensor.data_type))

    found = side_by_side(look, weights, threads, advance, size=lambda weight: weight.num_parameters)
    reasons = {
        layer.name: reason
        for weight, reason in zip(weights, found, strict=True)
        for layer in weight.layers
        if reason
    }
    rows = tuple(
        skipped(layer, reasons[layer.name])
        if isinstance(layer, Layer) and layer.name in reasons
        else layer
        for layer in survey.found
    )
    return replace(survey, found=rows)


def _unsound(matrix: FloatArray, smallest: float) -> str:
    """Say why a weight cannot be factorized; "" if it can."""
    if not np.isfinite(matrix).all():
        return "its weight has NaN or infinite entries"
    largest = largest_entry(matrix)
    if not largest:
        return "its weight is all zeros"
    if largest < smallest:
        return "its weight has subnormal entries only, which have too few digits to factorize"
    return ""


def side_by_side(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    threads: int,
    advance: Advance,
    *,
    size: Callable[[_T], int],
) -> list[_R]:
    """Map over items on several threads, each with one BLAS thread, the largest items first.

    With one BLAS thread the sums of every product are computed in the same order, so the result
    does not depend on the number of threads. A large item that came last would keep one thread busy
    while the others wait.
    """
    order = sorted(range(len(items)), key=lambda index: -size(items[index]))
    results: dict[int, _R] = {}
    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        try:
            found = pool.map(function, [items[index] for index in order])
            for index, result in zip(order, found, strict=True):
                results[index] = result
                advance(len(results), len(items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [results[index] for index in range(len(items))]
