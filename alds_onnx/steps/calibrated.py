"""The data-aware way from weights to factors.

statistics    one pass over the original: second moments of every layer's inputs
curves        error of a layer's output on the data, for every number of slices and rank
sensitivity   how far the model's outputs move when one layer is cut, measured
search        ranks by the measured output errors, within the budget
reconstruct   layer by layer, in graph order: factors and bias by regression
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.calibrate.reader import model_inputs, read_feeds
from alds_onnx.calibrate.reconstruct import Solution, Task, measure_sums, solve
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.sensitivity import Probe, Sensitivity, floating, measure
from alds_onnx.calibrate.statistics import Sampler, input_sums
from alds_onnx.calibrate.walk import Walk
from alds_onnx.decompose.factorize import cut_error
from alds_onnx.decompose.folding import compose
from alds_onnx.decompose.regression import (
    Moments,
    joint_spectra,
    predicted_moments,
    regress,
    white_moments,
)
from alds_onnx.decompose.spectra import spectra
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.bias import constant_bias
from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.rewrite import Dense, stored_factors, with_dense_weights
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost
from alds_onnx.settings import Settings
from alds_onnx.steps.decide import allowance, planned_cuts
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance, Survey, Weight, side_by_side
from alds_onnx.values import Budget, Cut, Factors, FloatArray, Objective, Spectra

# Most slices tried: more of them have not paid on data, and runtimes like them less.
_MOST_SLICES = 8
# Layers are probed on samples with about this many numbers in all: every layer is probed several
# times, and the larger the inputs, the more each of them tells.
_PROBE_NUMBERS = 1_000_000
_FEWEST_PROBES, _MOST_PROBES = 16, 64
_SWEEPS = 20
_RIDGE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """What the data says about a model.

    Attributes
    ----------
    runner, sampler
        The data.
    probes
        Weight, moments and error curves of each weight, by its name, in graph order.
    """

    runner: Runner
    sampler: Sampler
    probes: Mapping[str, Probe]


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
    sampler = Sampler(index=survey.index, seed=settings.seed, num_batches=len(runner.batches))
    weights = [weight for weight in survey.weights() if weight.name in names]
    layers = [layer for weight in weights for layer in weight.layers if layer.site.scope == 0]
    try:
        with threadpool_limits(limits=1):
            sums = input_sums(runner, sampler, layers, advance) if layers else {}
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e

    def look(weight: Weight) -> Probe:
        found = [sums[layer.name] for layer in weight.layers if layer.name in sums]
        matrix = read_matrix(survey.index, weight.layers[0], survey.loaded.folder)
        bias = _own_bias(survey, weight)
        moments = white_moments(matrix)
        if found:
            inputs = sum(found[1:], found[0]).moments(centred=bias is not None)
            moments = predicted_moments(matrix, inputs)
        return _probe(weight, matrix, moments, bias, settings)

    probes = side_by_side(look, weights, settings.threads, lambda done, total: None)
    return Calibrated(
        runner=runner,
        sampler=sampler,
        probes={weight.name: probe for weight, probe in zip(weights, probes, strict=True)},
    )


def _probe(
    weight: Weight,
    matrix: FloatArray,
    moments: Moments,
    bias: FloatArray | None,
    settings: Settings,
) -> Probe:
    layer = weight.layers[0]
    counts = tuple(k for k in layer.slice_counts if k <= _MOST_SLICES)
    if settings.plan is not None:
        counts = counts[:1]
    curves = joint_spectra(matrix, layer.shape, moments.inputs, counts)
    return Probe(layers=weight.layers, matrix=matrix, moments=moments, bias=bias, spectra=curves)


def _own_bias(survey: Survey, weight: Weight) -> FloatArray | None:
    """The bias that may change: that of the only reader of a weight of the main graph."""
    (first, *others) = weight.layers
    if others or first.site.scope != 0:
        return None
    return constant_bias(survey.index, first, survey.loaded.folder)


def sensitivities(
    survey: Survey, calibrated: Calibrated, advance: Advance
) -> dict[str, Sensitivity]:
    """Probe every weight; see `alds_onnx.calibrate.sensitivity`.

    Raises
    ------
    DataError
        If onnxruntime cannot run the model.
    """
    runner, model = calibrated.runner, survey.loaded.model
    batches = _spread(runner)
    found: dict[str, Sensitivity] = {}
    try:
        session = runner.session(model)
        expected = {b: floating(session.run(runner.batches[b])) for b in batches}
        with threadpool_limits(limits=1):
            for name, probe in calibrated.probes.items():
                found[name] = measure(model, runner, batches, probe, expected)
                advance(len(found), len(calibrated.probes))
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e
    return found


def _spread(runner: Runner) -> list[int]:
    """Batches for the probes, evenly spread over the data."""
    first = next(iter(runner.batches[0].values()), np.zeros(1))
    size = max(1, len(first) if first.ndim else 1)
    numbers = sum(array.size for array in runner.batches[0].values()) / size
    samples = int(np.clip(_PROBE_NUMBERS / max(1, numbers), _FEWEST_PROBES, _MOST_PROBES))
    count = min(len(runner.batches), max(1, -(-samples // size)))
    return sorted({round(b) for b in np.linspace(0, len(runner.batches) - 1, count)})


def choose(
    survey: Survey,
    calibrated: Calibrated,
    measured: Mapping[str, Sensitivity],
    settings: Settings,
    budget: Budget | None,
) -> dict[str, Cut]:
    """Choose the cuts by the measured output errors, or take those of the plan."""
    if settings.plan is not None:
        return planned_cuts(survey, settings.plan)
    if budget is None or not calibrated.probes:
        return {}
    frontiers = [
        _by_output(frontier(name, probe.spectra), measured[name])
        for name, probe in calibrated.probes.items()
    ]
    dense = sum(probe.spectra.shape.num_parameters for probe in calibrated.probes.values())
    allowed = allowance(budget, dense, smallest_cost(frontiers))
    largest = settings.objective is Objective.MAX_OUTPUT_ERROR
    solve_for = minimize_maximum_error if largest else minimize_sum_of_errors
    chosen = solve_for(frontiers, allowed)
    cuts = {f.name: f.cut(i) for f, i in zip(frontiers, chosen, strict=True)}
    return {name: cut for name, cut in cuts.items() if cut is not None}


def _by_output(local: Frontier, sensitivity: Sensitivity) -> Frontier:
    """The frontier with local errors exchanged for squared errors of the model's outputs."""
    return replace(local, error=sensitivity.damage(local.error))


def reconstruct_all(
    survey: Survey,
    calibrated: Calibrated,
    measured: Mapping[str, Sensitivity],
    cuts: Mapping[str, Cut],
    advance: Advance,
) -> list[Decomposition]:
    """Factors of every weight that is cut, each fitted to what those before it have become.

    Raises
    ------
    DataError
        If onnxruntime cannot run a part of the model.
    """
    weights = [weight for weight in survey.weights() if weight.name in cuts]
    in_order = sorted(weights, key=_place)
    done: dict[str, Solution] = {}
    dense: list[Dense] = []
    original = survey.loaded.model
    try:
        with (
            threadpool_limits(limits=1),
            Walk(calibrated.runner, original) as before,
            Walk(calibrated.runner, original) as after,
        ):
            for weight in in_order:
                task = _task(calibrated.probes[weight.name], cuts[weight.name])
                if _walkable(weight):
                    node = weight.layers[0].site.node
                    before.go(original, node)
                    after.go(with_dense_weights(original, dense), node)
                    fit = partial(measure_sums, before, after)
                    solution = solve(task, *fit(calibrated.runner, calibrated.sampler, task))
                else:
                    solution = _solve_alone(task)
                solution = _rounded(task.layer, solution)
                done[weight.name] = solution
                matrix = compose(solution.factors)
                dense.append(Dense(layers=weight.layers, matrix=matrix, bias=solution.bias))
                advance(len(done), len(in_order))
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e
    return [
        _decomposition(weight, calibrated.probes[weight.name], done[weight.name], measured)
        for weight in weights
    ]


def _place(weight: Weight) -> tuple[bool, int]:
    """Weights that are solved on their own first, then the others in the order of the graph."""
    return _walkable(weight), weight.layers[0].site.node


def _walkable(weight: Weight) -> bool:
    """Whether a weight has one reader, in the main graph: its inputs can then be observed."""
    return len(weight.layers) == 1 and weight.layers[0].site.scope == 0


def _task(probe: Probe, cut: Cut) -> Task:
    return Task(
        layer=probe.layers[0],
        matrix=probe.matrix,
        cut=cut,
        bias=probe.bias,
        moments=probe.moments,
    )


def _solve_alone(task: Task) -> Solution:
    shape = task.layer.shape
    factors = regress(task.matrix, shape, task.moments, task.cut, ridge=_RIDGE, sweeps=_SWEEPS)
    return Solution(factors=factors, bias=None, squared_error=None, uncorrected=None)


def _rounded(layer: Layer, solution: Solution) -> Solution:
    return replace(solution, factors=stored_factors(layer, solution.factors))


def _decomposition(
    weight: Weight, probe: Probe, solution: Solution, measured: Mapping[str, Sensitivity]
) -> Decomposition:
    factors: Factors = solution.factors
    squared = solution.squared_error
    local = None if squared is None else squared**0.5
    moved = None
    if local is not None and weight.name in measured:
        moved = float(measured[weight.name].damage(np.array([local]))[0]) ** 0.5
    return Decomposition(
        weight=weight,
        factors=factors,
        bias=solution.bias,
        error=cut_error(probe.matrix, factors, _weight_curve(probe, factors.cut)),
        local_error=local,
        output_error=moved,
    )


def _weight_curve(probe: Probe, cut: Cut) -> Spectra:
    """Error curves of the weight itself at the number of slices that was chosen."""
    return spectra(probe.matrix, probe.spectra.shape, (cut.num_slices,))
