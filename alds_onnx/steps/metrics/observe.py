"""Observing a model on calibration data, before anything is chosen.

statistics    the second moments of every layer's inputs, from one pass over the original
curves        the error of a layer's output on the data, for every number of slices and rank
sensitivity   the measured change of the model's outputs when one layer is cut
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.cache import Cache
from alds_onnx.calibrate.distance import distance_of_weights, spread_batches, walk_order
from alds_onnx.calibrate.reference import reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.sensitivity import Probe, Sensitivity, measure
from alds_onnx.calibrate.statistics import Sampler, Sums, input_sums
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Scheme
from alds_onnx.decompose.regression import (
    Halves,
    Moments,
    crossed_spectra,
    is_wide,
    outputs_of_white_noise,
    predicted_moments,
    white_moments,
)
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import constant_bias
from alds_onnx.settings import Settings, Step
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.metrics.data import DataMetric
from alds_onnx.steps.metrics.kept import (
    identity_of_data,
    identity_of_model,
    remembered_sensitivities,
    remembered_spectra,
    remembered_sums,
)
from alds_onnx.steps.metrics.weights import slice_counts
from alds_onnx.steps.survey import Advance, Survey, Weight, side_by_side
from alds_onnx.values import Objective

# Largest number of slices: more of them do not reduce errors on data, and are slower in runtimes.
_MOST_SLICES = 8
# Total number of input numbers of the samples on which layers are probed, and the largest number of
# samples. Every layer is probed several times; the larger the inputs, the fewer samples suffice.
_PROBE_NUMBERS, _MOST_PROBES = 1_000_000, 64

_HalvedSums: TypeAlias = tuple[Mapping[str, Sums], Mapping[str, Sums]]


def data_metric(survey: Survey, runner: Runner, settings: Settings, clock: Clock) -> DataMetric:
    """Run the original on the data, draw the error curves, and probe every layer.

    What is fitted to the first half of the runner's batches is judged on the second. With a plan,
    nothing is probed. If the model does not run on the data, that is a DataError.
    """
    sampler = Sampler(index=survey.index, seed=settings.seed, num_batches=len(runner.batches))
    cache, origin = Cache(folder=settings.cache), _origin(survey, runner, settings)
    weights = survey.weights()
    layers = [one for weight in weights for one in weight.layers if one.site.scope == 0]
    try:
        clock.start(Step.STATISTICS)
        sums = remembered_sums(
            cache,
            lambda: _sums(survey, runner, sampler, layers, clock.advance),
            *origin,
            tuple(layer.name for layer in layers),
        )
        probes = _probes(survey, sums, settings)
        sensitivities: Mapping[str, Sensitivity] = {}
        if settings.plan is None:
            clock.start(Step.SENSITIVITY)
            sensitivities = remembered_sensitivities(
                cache,
                lambda: _sensitivities(survey, runner.second_half(), probes, clock.advance),
                *origin,
                *map(_probed_cuts, probes.items()),
            )
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e
    return DataMetric(
        survey=survey,
        runner=runner,
        sampler=sampler,
        probes=probes,
        sensitivities=sensitivities,
        # A sweep has many points, which are accurate enough without refinement.
        refines=settings.objective is Objective.SUM_OUTPUT_ERROR and not settings.sweep,
    )


def _probed_cuts(named: tuple[str, Probe]) -> tuple[object, ...]:
    """Give what decides how a weight is probed: its name, the schemes and the slices."""
    name, probe = named
    return name, tuple((c.scheme.value, c.num_slices) for c in probe.spectra.curves)


def _origin(survey: Survey, runner: Runner, settings: Settings) -> tuple[str | int, ...]:
    """Give the cache key of the model and the data; empty without a cache."""
    if settings.cache is None:
        return ()
    return (
        identity_of_model(survey.loaded),
        identity_of_data(runner.batches),
        runner.first,
        settings.provider.value,
        settings.seed,
    )


def _sums(
    survey: Survey,
    runner: Runner,
    sampler: Sampler,
    layers: Sequence[Layer],
    advance: Advance,
) -> _HalvedSums:
    """Compute the sums over the inputs of layers of the main graph, for each half."""
    if not layers:
        return {}, {}
    with threadpool_limits(limits=1):
        transposed = {
            layer.name: survey.matrix(layer).T.astype(np.float32)
            for layer in layers
            if is_wide(layer.shape)
        }
        return input_sums(runner, sampler, layers, transposed, advance)


def _probes(survey: Survey, halves: _HalvedSums, settings: Settings) -> dict[str, Probe]:
    weights = survey.weights()

    def look(weight: Weight) -> Probe:
        parts = [
            [sums[layer.name] for layer in weight.layers if layer.name in sums] for sums in halves
        ]
        if any(layer.layout.mirrored for layer in weight.layers):
            # Rows of the table and inputs of the head: the errors of both are relative.
            parts = [[one.scaled for one in found] for found in parts]
        inputs = [sum(found[1:], found[0]) for found in parts if found]
        return _probe(survey, weight, inputs, settings)

    probes = side_by_side(
        look,
        weights,
        settings.threads,
        lambda done, total: None,
        size=lambda weight: weight.num_parameters,
    )
    return {weight.name: probe for weight, probe in zip(weights, probes, strict=True)}


def _probe(survey: Survey, weight: Weight, inputs: Sequence[Sums], settings: Settings) -> Probe:
    """Compute the moments and error curves of a weight; without sums, those of white noise.

    There are sums for each half of the samples that there is.
    """
    layer, *others = weight.layers
    bias = None  # only that of a weight with one layer, in the main graph, may change
    if not others and layer.site.scope == 0:
        bias = constant_bias(survey.index, layer, survey.loaded.folder)
    own = survey.matrix(layer)
    wide = is_wide(layer.shape)
    matrix = np.eye(len(own)) if wide else own
    if inputs:
        halves = [
            predicted_moments(matrix, half.moments(centred=bias is not None)) for half in inputs
        ]
    else:
        halves = [outputs_of_white_noise(own) if wide else white_moments(own)]
    moments = Halves(first=halves[0], second=halves[-1])
    counts = _slice_counts(layer, settings)
    return Probe(
        layers=weight.layers,
        weight=own,
        matrix=matrix,
        moments=moments,
        bias=bias,
        spectra=remembered_spectra(
            Cache(folder=settings.cache),
            layer.shape,
            lambda: crossed_spectra(matrix, layer.shape, moments, counts),
            "curves",
            tuple((scheme.value, ks) for scheme, ks in counts.items()),
            matrix,
            *(part for half in (moments.first, moments.second) for part in _identity(half)),
        ),
    )


def _identity(moments: Moments) -> tuple[object, ...]:
    return moments.inputs, moments.uncertainty


def _slice_counts(layer: Layer, settings: Settings) -> dict[Scheme, tuple[int, ...]]:
    """The numbers of slices to draw curves for, one slice of each scheme among them."""
    if is_wide(layer.shape):
        return {Scheme.ENCODE: (1,)}
    most = 1 if settings.plan is not None else _MOST_SLICES
    return {
        scheme: (1, *(k for k in counts if 1 < k <= most))
        for scheme, counts in slice_counts(layer, settings).items()
    }


def _sensitivities(
    survey: Survey, judge: Runner, probes: Mapping[str, Probe], advance: Advance
) -> Mapping[str, Sensitivity]:
    """Measure the sensitivities of all weights; see `alds_onnx.calibrate.sensitivity`."""
    model = survey.loaded.model
    few = spread_batches(judge, _PROBE_NUMBERS, _MOST_PROBES)
    in_order = sorted(probes.items(), key=lambda item: walk_order(item[1].layers))
    found: dict[str, Sensitivity] = {}
    with threadpool_limits(limits=1), Walk(few, model) as walk:
        original = reference(few, model)
        for name, probe in in_order:
            biased = probe.bias is not None
            distance = distance_of_weights(original, walk, model, probe.layers, biased=biased)
            found[name] = measure(probe, distance)
            advance(len(found), len(probes))
    return found
