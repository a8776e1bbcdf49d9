"""The metric without data: errors are spectral norms of weights, as in the ALDS paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alds_onnx.cache import Cache
from alds_onnx.cuts import FloatArray, Scheme, Spectra, distinct
from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.evidence import Damage
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import stored_factors
from alds_onnx.search.frontier import Choice
from alds_onnx.settings import Settings
from alds_onnx.steps.metrics.base import Reconsider
from alds_onnx.steps.metrics.kept import remembered_spectra
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance, Survey, Weight, side_by_side
from alds_onnx.values import Plan

# Largest ratio of errors of weights to accept for cuts that are fast on the target.
_TOLERANCE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightMetric:
    """Errors of weights; see `Metric`. So many `threads` factorize layers in parallel."""

    survey: Survey
    spectra: Mapping[str, Spectra]
    threads: int
    on_data: bool = False
    tolerance: float = _TOLERANCE

    def damage(self, name: str, error: FloatArray) -> FloatArray:
        """Give the errors unchanged."""
        return error

    def relative(self, damage: float) -> float:
        """Give the error unchanged."""
        return damage

    def probes_of(self, name: str) -> tuple[Damage, ...]:
        """Give nothing: without data, there are no measurements."""
        return ()

    def fit(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> list[Decomposition]:
        """Compute truncated singular value decompositions."""
        survey = self.survey
        weights = [weight for weight in survey.weights() if weight.name in choice.cuts]

        def compute(weight: Weight) -> Decomposition:
            layer = weight.layers[0]
            matrix = survey.matrix(layer)
            exact = factorize(matrix, layer.shape, choice.cuts[weight.name])
            factors = stored_factors(layer, exact)
            error = cut_error(matrix, factors, self.spectra[weight.name])
            return Decomposition(weight=weight, factors=factors, error=error)

        return side_by_side(
            compute, weights, self.threads, advance, size=lambda weight: weight.num_parameters
        )


def weight_metric(survey: Survey, settings: Settings, advance: Advance) -> WeightMetric:
    """Draw the error curves of all weights."""
    weights, cache = survey.weights(), Cache(folder=settings.cache)

    def compute(weight: Weight) -> Spectra:
        layer = weight.layers[0]
        counts = slice_counts(layer, settings)
        matrix = survey.matrix(layer)
        return remembered_spectra(
            cache,
            layer.shape,
            lambda: spectra_of_schemes(matrix, layer.shape, counts),
            "spectra",
            tuple((scheme.value, ks) for scheme, ks in counts.items()),
            matrix,
        )

    found = side_by_side(
        compute, weights, settings.threads, advance, size=lambda weight: weight.num_parameters
    )
    spectra = {weight.name: curves for weight, curves in zip(weights, found, strict=True)}
    return WeightMetric(survey=survey, spectra=spectra, threads=settings.threads)


def slice_counts(layer: Layer, settings: Settings) -> dict[Scheme, tuple[int, ...]]:
    """List the numbers of slices that may be chosen, for each scheme that makes a difference.

    With a plan, these are only the ones that the plan names for this layer.
    """
    if settings.plan is not None:
        return _planned_counts(layer, settings.plan)
    rule = settings.alignment.tiers()[-1]
    folds = {
        scheme: scheme.structure.sliced(layer.shape)
        for scheme in distinct(layer.shape, settings.candidates)
    }
    return {
        scheme: rule.counts(folded, layer.counts(folded)) if folded else ()
        for scheme, folded in folds.items()
    }


def _planned_counts(layer: Layer, plan: Plan) -> dict[Scheme, tuple[int, ...]]:
    """Give the number of slices that the plan names, if it divides the channels."""
    c = layer.shape.in_channels
    cuts = [row.cut for row in plan.layers if row.name == layer.name]
    found: dict[Scheme, tuple[int, ...]] = {
        cut.scheme: (cut.num_slices,)
        for cut in cuts
        if cut and c % cut.num_slices == 0 and cut.scheme in distinct(layer.shape, Scheme)
    }
    return found or {Scheme.ENCODE: ()}
