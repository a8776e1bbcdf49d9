"""What is in a model: its layers, its weights, and which of them may be decomposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.cache import Cache
from alds_onnx.cuts import Scheme, Spectra
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.graph.attention import attention_projections
from alds_onnx.graph.files.load import LoadedModel
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer, Skipped, read_matrix, skipped
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks
from alds_onnx.graph.tensors import smallest_normal
from alds_onnx.settings import Settings
from alds_onnx.steps.remember import remembered_spectra
from alds_onnx.values import Plan

_T = TypeVar("_T")
_R = TypeVar("_R")
Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """One weight and the layers that read it (at least one), known by the first one's name."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Name of the first layer."""
        return self.layers[0].name

    @property
    def num_parameters(self) -> int:
        """Its entries."""
        return self.layers[0].shape.num_parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What is in a model.

    Attributes
    ----------
    loaded, index
        The model.
    found
        Every node whose operator can be decomposed, in graph order.
    excluded
        Names of layers that the user wants whole.
    attention
        Names of layers that stay whole because runtimes fuse them with the attention behind them.
    """

    loaded: LoadedModel
    index: ModelIndex
    found: tuple[Layer | Skipped, ...]
    excluded: frozenset[str]
    attention: frozenset[str] = frozenset()

    def weights(self) -> tuple[Weight, ...]:
        """The weights that may be decomposed; one that a layer reads which stays whole may not."""
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
    """Find the layers of a model, and which of them stay whole."""
    index = ModelIndex(loaded.model)
    ranks = known_ranks(index, infer(loaded.model))
    found = find_layers(index, loaded.folder, ranks)
    excluded = settings.excluded([layer.name for layer in found])
    attention: frozenset[str] = frozenset()
    if keep_attention and settings.plan is None:
        attention = _attention(index, found, settings) - excluded
    return Survey(loaded=loaded, index=index, found=found, excluded=excluded, attention=attention)


def _attention(
    index: ModelIndex, found: Sequence[Layer | Skipped], settings: Settings
) -> frozenset[str]:
    """Names of projections of attention that no pattern of the user asks for."""
    layers = {layer.site: layer.name for layer in found if isinstance(layer, Layer)}
    sites = attention_projections(index, layers)
    return frozenset(layers[site] for site in sites if not settings.includes(layers[site]))


def weight_spectra(
    survey: Survey, settings: Settings, advance: Advance
) -> tuple[Survey, dict[str, Spectra]]:
    """Error curves of all weights; those without finite numbers become skipped rows."""
    weights = survey.weights()
    planned, cache = settings.plan, Cache(folder=settings.cache)

    def compute(weight: Weight) -> Spectra | str:
        layer = weight.layers[0]
        counts = _allowed_counts(layer, settings)
        if planned is not None:
            counts = _planned_counts(layer, planned)
        if settings.calibration is not None:
            counts = {Scheme.ENCODE: ()}  # ranks will be chosen by errors on the data
        matrix = read_matrix(survey.index, layer, survey.loaded.folder)
        if not np.isfinite(matrix).all():
            return "its weight has NaN or infinite entries"
        if not matrix.any():
            return "its weight is all zeros"
        if np.abs(matrix).max() < smallest_normal(layer.source.tensor.data_type):
            return "its weight has subnormal entries only, which have too few digits to factorize"
        return remembered_spectra(
            cache,
            layer.shape,
            lambda: spectra_of_schemes(matrix, layer.shape, counts),
            "spectra",
            tuple((scheme.value, ks) for scheme, ks in counts.items()),
            matrix,
        )

    results = side_by_side(
        compute, weights, settings.threads, advance, size=lambda weight: weight.num_parameters
    )
    reasons = {
        layer.name: result
        for weight, result in zip(weights, results, strict=True)
        for layer in weight.layers
        if isinstance(result, str)
    }
    found = tuple(
        skipped(layer, reasons[layer.name])
        if isinstance(layer, Layer) and layer.name in reasons
        else layer
        for layer in survey.found
    )
    curves = {
        weight.name: result
        for weight, result in zip(weights, results, strict=True)
        if isinstance(result, Spectra)
    }
    return replace(survey, found=found), curves


def _allowed_counts(layer: Layer, settings: Settings) -> dict[Scheme, tuple[int, ...]]:
    """The k that may be chosen for each scheme that makes a difference on a layer."""
    rule = settings.alignment.tiers()[-1]
    folds = {
        scheme: layer.shape.folded(scheme) if scheme is not Scheme.TUCKER2 else None
        for scheme in layer.shape.distinct(settings.candidates)
    }
    return {
        scheme: rule.counts(folded, layer.counts(folded)) if folded else ()
        for scheme, folded in folds.items()
    }


def _planned_counts(layer: Layer, plan: Plan) -> dict[Scheme, tuple[int, ...]]:
    """Only the number of slices that the plan names, if it divides the channels."""
    c = layer.shape.in_channels
    cuts = [row.cut for row in plan.layers if row.name == layer.name]
    found: dict[Scheme, tuple[int, ...]] = {
        cut.scheme: (cut.num_slices,)
        for cut in cuts
        if cut and c % cut.num_slices == 0 and cut.scheme in layer.shape.distinct(Scheme)
    }
    return found or {Scheme.ENCODE: ()}


def side_by_side(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    threads: int,
    advance: Advance,
    *,
    size: Callable[[_T], int],
) -> list[_R]:
    """Map over items on several threads, each with one BLAS thread, the largest first.

    One BLAS thread makes the sums of every product run in the same order, whatever the number of
    threads: the same input gives the same bytes. A large item that came last would keep one thread
    at work while the others have nothing to do.
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
