"""The metric of calibration data: errors are those of the model's outputs.

search        choose ranks by measured output errors, within the budget
reconstruct   fit factors and biases by regression, layer by layer in graph order
refine        measure the effect of neighbouring ranks, and choose the ranks again

Probes measure the effect of a layer's cut in the original model. In the compressed model the effect
may be larger or smaller, because other layers have lost the same directions, or because layers
downstream correct it. So the ranks are chosen again by slopes measured in the compressed model, and
the better of the two models is kept.

The samples are two halves. Whatever is chosen rests on factors that are fitted to the first half
and judged on the second; the factors that the model gets are fitted to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.calibrate.distance import distance_of_weights, spread_batches
from alds_onnx.calibrate.reconstruct import Fit, Solution, Task, measure_sums, solve
from alds_onnx.calibrate.reference import reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.sensitivity import Probe, Sensitivity
from alds_onnx.calibrate.statistics import Sampler
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Cut, Factors, FloatArray, Scheme, Spectra
from alds_onnx.decompose.factorize import compose, cut_error, factorize
from alds_onnx.decompose.regression import Moments, fitted_shape, regress
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.evidence import Damage
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, Replacement, stored_factors, with_dense_weights
from alds_onnx.search.frontier import Choice, Point
from alds_onnx.steps.metrics.base import Reconsider
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance, Survey, Weight

_ITERATIONS = 20
_RIDGE = 1e-4
# Output errors may be this many times as large for cuts that are fast on the target. It is less
# than for errors of weights: with all schemes fast cuts are nearly as good, and with 1.5 digits at
# 90 % removed (ort-avx2) lost 1.7 points of top-1, where 1.0 are lost with 1.1.
_TOLERANCE = 1.1
# Total number of input numbers of the samples on which slopes are measured, and the largest number
# of samples. Neighbouring ranks differ little, so the samples must represent all data.
_SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES = 2_000_000, 128
# Largest factor by which the root of a slope corrects a curve: slopes are noisy, and local.
_LARGEST_CORRECTION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataMetric:
    """Squared relative errors of the model's outputs; see `Metric`.

    `probes` are the weight, moments and error curves of each weight, by name, in graph order, and
    `sensitivities` the effects of cutting each on the outputs: empty if a plan is applied.
    `refines` tells whether the ranks are chosen a second time.
    """

    survey: Survey
    runner: Runner
    sampler: Sampler
    probes: Mapping[str, Probe]
    sensitivities: Mapping[str, Sensitivity]
    refines: bool
    on_data: bool = True
    tolerance: float = _TOLERANCE**2  # errors are squared

    @property
    def spectra(self) -> Mapping[str, Spectra]:
        """Error curves of the outputs of the layers."""
        return {name: probe.spectra for name, probe in self.probes.items()}

    def damage(self, name: str, error: FloatArray) -> FloatArray:
        """Give squared relative errors of the model's outputs."""
        return self.sensitivities[name].damage(error)

    def relative(self, damage: float) -> float:
        """Take the square root."""
        return float(damage**0.5)

    def probes_of(self, name: str) -> tuple[Damage, ...]:
        """Give the measurements on which the damage of a weight rests, in ascending order."""
        if name not in self.sensitivities:
            return ()
        one = self.sensitivities[name]
        squared = zip(one.local, one.output, strict=True)
        return tuple(Damage(local=x**0.5, output=y**0.5) for x, y in squared)

    def fit(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> list[Decomposition]:
        """Fit factors by regression in graph order, for the better of two choices.

        If onnxruntime cannot run a part of the model, that is a DataError.
        """
        try:
            with threadpool_limits(limits=1):
                fits = self._best(choice, reconsider, advance)
                return [
                    self._decomposition(weight, fits[weight.name])
                    for weight in self.survey.weights()
                    if weight.name in fits
                ]
        except RunError as e:
            raise DataError(f"the model does not run on the calibration data: {e}") from e

    def _best(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> Mapping[str, Fit]:
        """Fit the choice, refine it once, and give the better fits by weight."""
        if not self.refines or not choice.points:
            return self._reconstruct(choice.cuts, {}, advance, whole=True)
        first = self._reconstruct(choice.cuts, choice.points, advance, whole=False)
        if not first:
            return first
        again = reconsider(self._corrections(choice.points, first))
        second = self._reconstruct(again.cuts, {}, advance, whole=True)
        original = reference(self.runner.second_half(), self.survey.loaded.model)

        def error(fits: Mapping[str, Fit]) -> float:
            """Compute the squared relative error of the outputs on the second half."""
            halves = {name: fit.half for name, fit in fits.items()}
            dense = _dense(self._in_order(fits), halves)
            return original.distance_of(with_dense_weights(self.survey.loaded.model, dense))

        if error(second) <= error(first):
            return second
        return self._reconstruct(choice.cuts, {}, advance, whole=True)

    def _in_order(self, names: Mapping[str, object]) -> list[Weight]:
        """List the named weights: first those without observed inputs, then in graph order."""
        weights = [weight for weight in self.survey.weights() if weight.name in names]
        return sorted(weights, key=lambda w: (_is_observed(w), w.layers[0].site.node))

    def _reconstruct(
        self,
        cuts: Mapping[str, Cut],
        points: Mapping[str, Point],
        advance: Advance,
        *,
        whole: bool,
    ) -> dict[str, Fit]:
        """Fit each weight that is cut, with the weights upstream already fitted.

        Those are fitted to all samples if `whole` asks for that, else to the first half. At the
        points, a little smaller and a little larger cuts are fitted too.
        """
        done: dict[str, Fit] = {}
        dense: list[Dense] = []
        runner, original = self.runner, self.survey.loaded.model
        with Walk(runner, original) as walk, Walk(runner, original) as compressed:
            for weight in self._in_order(cuts):
                probe, point = self.probes[weight.name], points.get(weight.name)
                near = map(point.frontier.cut, point.neighbours()) if point else ()
                task = _task(probe, cuts[weight.name], tuple(cut for cut in near if cut))
                if probe.is_wide and not _fits_wide(task.cut):
                    # Without data, as a plan may ask for.
                    factors = factorize(probe.weight, task.layer.shape, task.cut)
                    found = _unmeasured(factors, factors)
                elif _is_observed(weight):
                    node = weight.layers[0].site.node
                    walk.go(original, node)
                    compressed.go(with_dense_weights(original, dense), node)
                    seen = measure_sums(walk, compressed, self.sampler, task)
                    found = solve(task, seen, runner, whole=whole).map(_lifted(probe))
                else:
                    found = _solve_unobserved(task).map(_lifted(probe))
                done[weight.name] = found.map(_stored(task.layer))
                dense += _dense([weight], {weight.name: done[weight.name].whole})
                advance(len(done), len(cuts))
        return done

    def _corrections(
        self, points: Mapping[str, Point], fits: Mapping[str, Fit]
    ) -> dict[str, float]:
        """Measure factors for the errors of weights in the compressed model, on the second half.

        A slope is the output error that a step between ranks saves, divided by the one that the
        curve predicts.
        """
        runner = spread_batches(self.runner.second_half(), _SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES)
        weights = self._in_order(fits)
        original = self.survey.loaded.model
        halves = {name: fit.half for name, fit in fits.items()}
        model = with_dense_weights(original, _dense(weights, halves))
        wanted = reference(runner, original)
        found: dict[str, float] = {}
        with Walk(runner, model) as walk:
            for weight in weights:
                point, probe = points[weight.name], self.probes[weight.name]
                curve, ends = point.frontier, point.neighbours()
                expected = float(curve.error[ends[0]] - curve.error[ends[1]])
                if len(set(ends)) < len(ends) or expected <= 0 or not _is_observed(weight):
                    continue
                distance = distance_of_weights(
                    wanted, walk, model, weight.layers, biased=probe.bias is not None
                )
                less, more = (
                    distance(*_variant(probe, fits[weight.name], curve.cut(i))) for i in ends
                )
                found[weight.name] = correction(max(0.0, less - more) / expected)
        return found

    def _decomposition(self, weight: Weight, fit: Fit) -> Decomposition:
        name, squared, factors = weight.name, fit.squared_error, fit.whole.factors
        local = None if squared is None else squared**0.5
        moved = None
        if local is not None and name in self.sensitivities:
            moved = self.relative(float(self.damage(name, np.array([local]))[0]))
        probe = self.probes[name]
        scheme, k = factors.cut.scheme, factors.cut.num_slices
        curves = spectra_of_schemes(probe.weight, probe.spectra.shape, {scheme: (k,)})
        return Decomposition(
            weight=weight,
            factors=factors,
            bias=fit.whole.bias,
            error=cut_error(probe.weight, factors, curves),
            local_error=local,
            output_error=moved,
            half=_replacement(weight, fit.half),
            kept=None if fit.kept is None else _replacement(weight, fit.kept),
        )


def _replacement(weight: Weight, solution: Solution) -> Replacement:
    return Replacement(layers=weight.layers, factors=solution.factors, bias=solution.bias)


def correction(slope: float) -> float:
    """Convert a measured slope to the factor for a curve: its square root, within bounds."""
    return float(np.clip(np.sqrt(slope), 1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION))


def _dense(weights: Sequence[Weight], fits: Mapping[str, Solution]) -> list[Dense]:
    return [
        Dense(
            layers=weight.layers,
            matrix=compose(fits[weight.name].factors),
            bias=fits[weight.name].bias,
        )
        for weight in weights
    ]


def _variant(probe: Probe, fit: Fit, cut: Cut | None) -> tuple[FloatArray, FloatArray | None]:
    """Give the weight and bias of a layer at a neighbouring cut; None is the dense layer."""
    if cut is None:
        return probe.weight, probe.bias
    found = fit.others[cut]
    return compose(found.factors), found.bias


def _is_observed(weight: Weight) -> bool:
    """Whether the inputs of a weight can be observed: it has one layer, in the main graph."""
    return len(weight.layers) == 1 and weight.layers[0].site.scope == 0


def _task(probe: Probe, cut: Cut, others: tuple[Cut, ...]) -> Task:
    return Task(
        layer=probe.layers[0],
        weight=probe.weight,
        matrix=probe.matrix,
        cut=cut,
        others=others,
        bias=probe.bias,
        moments=probe.moments,
    )


def _solve_unobserved(task: Task) -> Fit:
    """Fit by the moments in the original model, because the inputs cannot be observed.

    These moments are of all samples, those apart among them, or of white noise.
    """
    shape = fitted_shape(task.layer.shape)

    def fitted(moments: Moments) -> Factors:
        ridge = max(_RIDGE, moments.uncertainty)
        return regress(task.matrix, shape, moments, task.cut, ridge=ridge, sweeps=_ITERATIONS)

    both = fitted(task.moments.both)
    same = task.moments.first is task.moments.second
    found = _unmeasured(both if same else fitted(task.moments.first), both)
    return replace(found, kept=None) if task.moments.first.count else found


def _unmeasured(half: Factors, whole: Factors) -> Fit:
    solution = Solution(factors=half, bias=None)
    other = solution if whole is half else Solution(factors=whole, bias=None)
    return Fit(half=solution, whole=other, kept=other, others={})


def _fits_wide(cut: Cut) -> bool:
    """Whether a cut of a wide layer can be fitted: its outputs stand for its inputs."""
    return cut.num_slices == 1 and cut.scheme is Scheme.ENCODE


def _lifted(probe: Probe) -> Callable[[Solution], Solution]:
    """Convert the factors that the regression found to factors of the weight."""
    return lambda solution: replace(solution, factors=probe.factors(solution.factors))


def _stored(layer: Layer) -> Callable[[Solution], Solution]:
    """Round factors as the model stores them."""
    return lambda solution: replace(solution, factors=stored_factors(layer, solution.factors))
