"""What calibration data says about a model, before anything is chosen.

statistics    one pass over the original: second moments of every layer's inputs
curves        error of a layer's output on the data, for every number of slices and rank
sensitivity   how far the model's outputs move when one layer is cut, measured
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from alds_onnx.cache import Cache
from alds_onnx.calibrate.behind import Behind, can_be_fed
from alds_onnx.calibrate.reader import model_inputs, read_feeds
from alds_onnx.calibrate.reference import Reference, reference
from alds_onnx.calibrate.rows import Rows
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.sensitivity import Probe, Sensitivity, measure
from alds_onnx.calibrate.statistics import Sampler, input_sums
from alds_onnx.calibrate.sums import Sums
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import FloatArray, Scheme
from alds_onnx.decompose.regression import (
    is_wide,
    joint_spectra,
    outputs_of_white_noise,
    predicted_moments,
    white_moments,
)
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.bias import constant_bias
from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.rewrite import Dense, with_dense_weights
from alds_onnx.settings import Settings
from alds_onnx.steps.remember import (
    identity_of_data,
    identity_of_model,
    remembered_sensitivities,
    remembered_spectra,
    remembered_sums,
)
from alds_onnx.steps.survey import Advance, Survey, Weight, side_by_side

# Most slices tried: more of them have not paid on data, and runtimes like them less.
_MOST_SLICES = 8
# Layers are probed on samples with about this many numbers in all: every layer is probed several
# times, and the larger the inputs, the more each of them tells.
_PROBE_NUMBERS = 1_000_000
_FEWEST_PROBES, _MOST_PROBES = 16, 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """What the data says about a model.

    Attributes
    ----------
    runner, sampler
        The data.
    origin
        What all this depends on, for a cache.
    probes
        Weight, moments and error curves of each weight, by its name, in graph order.
    sensitivities
        What cuts of each weight do to the outputs; empty where nobody asked.
    """

    runner: Runner
    sampler: Sampler
    origin: tuple[str | int, ...]
    probes: Mapping[str, Probe]
    sensitivities: Mapping[str, Sensitivity]


def observe(
    survey: Survey, names: Sequence[str], settings: Settings, advance: Advance
) -> Calibrated:
    """Run the original once and draw the error curves.

    Parameters
    ----------
    survey
        The model.
    names
        Weights to look at.
    settings
        Must hold calibration data.
    advance
        Called as the work goes on.

    Raises
    ------
    DataError
        If the data does not fit, or onnxruntime cannot run the model on it.
    """
    assert settings.calibration is not None
    model = survey.loaded.model
    runner = Runner(
        batches=tuple(read_feeds(settings.calibration, model_inputs(model))),
        folder=survey.loaded.folder,
        threads=settings.threads,
        provider=settings.provider,
    )
    cache, origin = Cache(folder=settings.cache), _origin(survey, runner, settings)
    sampler = Sampler(index=survey.index, seed=settings.seed, num_batches=len(runner.batches))
    weights = [weight for weight in survey.weights() if weight.name in names]
    layers = [layer for weight in weights for layer in weight.layers if layer.site.scope == 0]
    try:
        with threadpool_limits(limits=1):
            wide = {layer.name: layer for layer in layers if is_wide(layer.shape)}
            transposed = {name: _transposed(survey, layer) for name, layer in wide.items()}
            sums = remembered_sums(
                cache,
                lambda: input_sums(runner, sampler, layers, transposed, advance) if layers else {},
                *origin,
                tuple(layer.name for layer in layers),
            )
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e

    def look(weight: Weight) -> Probe:
        found = [sums[layer.name] for layer in weight.layers if layer.name in sums]
        inputs = sum(found[1:], found[0]) if found else None
        return _probe(survey, weight, inputs, settings)

    probes = side_by_side(
        look,
        weights,
        settings.threads,
        lambda done, total: None,
        size=lambda weight: weight.num_parameters,
    )
    return Calibrated(
        runner=runner,
        sampler=sampler,
        origin=origin,
        probes={weight.name: probe for weight, probe in zip(weights, probes, strict=True)},
        sensitivities={},
    )


def _origin(survey: Survey, runner: Runner, settings: Settings) -> tuple[str | int, ...]:
    """What measurements on the data depend on, for a cache; nothing without one."""
    if settings.cache is None:
        return ()
    return (
        identity_of_model(survey.loaded),
        identity_of_data(runner.batches),
        settings.provider.value,
        settings.seed,
    )


def _transposed(survey: Survey, layer: Layer) -> Rows:
    return read_matrix(survey.index, layer, survey.loaded.folder).T.astype(np.float32)


def _probe(survey: Survey, weight: Weight, inputs: Sums | None, settings: Settings) -> Probe:
    """Moments and error curves of a weight; without sums, as for white noise."""
    layer = weight.layers[0]
    bias = _own_bias(survey, weight)
    own = read_matrix(survey.index, layer, survey.loaded.folder)
    wide = is_wide(layer.shape)
    matrix = np.eye(len(own)) if wide else own
    if inputs is not None:
        moments = predicted_moments(matrix, inputs.moments(centred=bias is not None))
    else:
        moments = outputs_of_white_noise(own) if wide else white_moments(own)
    few = tuple(k for k in layer.slice_counts if k <= (1 if wide else _MOST_SLICES))
    finest = settings.alignment.tiers()[-1]
    counts = (1, *(k for k in finest.counts(layer.shape, few) if k > 1))
    if settings.plan is not None:
        counts = counts[:1]
    return Probe(
        layers=weight.layers,
        weight=own,
        matrix=matrix,
        moments=moments,
        bias=bias,
        spectra=remembered_spectra(
            Cache(folder=settings.cache),
            layer.shape,
            lambda: joint_spectra(matrix, layer.shape, moments, {Scheme.ENCODE: counts}),
            "curves",
            counts,
            matrix,
            moments.inputs,
            moments.uncertainty,
        ),
    )


def _own_bias(survey: Survey, weight: Weight) -> FloatArray | None:
    """The bias that may change: that of the only reader of a weight of the main graph."""
    (first, *others) = weight.layers
    if others or first.site.scope != 0:
        return None
    return constant_bias(survey.index, first, survey.loaded.folder)


def probe_all(
    survey: Survey, calibrated: Calibrated, settings: Settings, advance: Advance
) -> Calibrated:
    """Add the sensitivities of all weights; see `alds_onnx.calibrate.sensitivity`.

    Raises
    ------
    DataError
        If onnxruntime cannot run the model.
    """
    ranks = (
        (name, tuple(curve.num_slices for curve in probe.spectra.curves))
        for name, probe in calibrated.probes.items()
    )
    found = remembered_sensitivities(
        Cache(folder=settings.cache),
        lambda: _measured(survey, calibrated, advance),
        *calibrated.origin,
        *ranks,
    )
    return replace(calibrated, sensitivities=found)


def _measured(survey: Survey, calibrated: Calibrated, advance: Advance) -> dict[str, Sensitivity]:
    model = survey.loaded.model
    runner = some(calibrated.runner, _PROBE_NUMBERS, _MOST_PROBES)
    in_order = sorted(calibrated.probes.items(), key=lambda item: place(item[1].layers))
    found: dict[str, Sensitivity] = {}
    try:
        with threadpool_limits(limits=1), Walk(runner, model) as walk:
            original = reference(runner, model)
            for name, probe in in_order:
                biased = probe.bias is not None
                distance = distance_of_weights(original, walk, model, probe.layers, biased=biased)
                found[name] = measure(probe, distance)
                advance(len(found), len(calibrated.probes))
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e
    return found


def distance_of_weights(
    original: Reference,
    walk: Walk,
    model: ModelProto,
    layers: tuple[Layer, ...],
    *,
    biased: bool,
) -> Callable[[FloatArray, FloatArray | None], float]:
    """A function of a weight (f, n) and bias (f,): how far they move the outputs of a model.

    Parameters
    ----------
    original
        What the outputs are compared with.
    walk
        Through the model; goes to the first of the layers if their weight can be fed.
    model
        The model.
    layers
        Those that read the weight.
    biased
        Whether the bias may be another too.

    Raises
    ------
    RunError
        If onnxruntime does not run a part of the model.
    """
    if not can_be_fed(layers):

        def rebuilt(matrix: FloatArray, bias: FloatArray | None) -> float:
            dense = Dense(layers=layers, matrix=matrix, bias=bias)
            return original.distance_of(with_dense_weights(model, [dense]))

        return rebuilt
    behind = Behind(walk, model, layers, biased=biased)

    def fed(matrix: FloatArray, bias: FloatArray | None) -> float:
        return original.distance(lambda batch: behind.outputs(batch, matrix, bias))

    return fed


def place(layers: Sequence[Layer]) -> tuple[bool, int]:
    """Weights whose layers a walk does not pass come first, then the others in graph order."""
    return can_be_fed(layers), min(layer.site.node for layer in layers)


def some(runner: Runner, numbers: int, most: int) -> Runner:
    """Batches with about `numbers` input numbers, at most `most` samples, evenly spread."""
    first = next(iter(runner.batches[0].values()), np.zeros(1))
    size = max(1, len(first) if first.ndim else 1)
    own = sum(array.size for array in runner.batches[0].values()) / size
    samples = int(np.clip(numbers / max(1, own), _FEWEST_PROBES, most))
    count = min(len(runner.batches), max(1, -(-samples // size)))
    chosen = sorted({round(b) for b in np.linspace(0, len(runner.batches) - 1, count)})
    return replace(runner, batches=tuple(runner.batches[b] for b in chosen))
