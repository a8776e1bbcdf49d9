"""The metric of calibration data: errors are those of the model's outputs.

search        ranks by the measured output errors, within the budget
reconstruct   layer by layer, in graph order: factors and bias by regression
refine        what a rank more or less does to the outputs now, measured; ranks again with that

Probes tell what a layer's cut costs in the original model. In the compressed one it may cost more
or less: other layers have lost the same directions, or those downstream make up for it. So the
ranks are chosen again by the slopes found there, and the better of the two models is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from alds_onnx.cuts import Cut, FloatArray, Spectra
from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.decompose.folding import compose
from alds_onnx.decompose.regression import fitted_shape, regress
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.evidence import Damage
from alds_onnx.graph.rewrite import Dense, stored_factors, with_dense_weights
from alds_onnx.search.choose import Choice
from alds_onnx.search.frontier import Point
from alds_onnx.steps.metrics.base import Reconsider
from alds_onnx.steps.metrics.weights import TOLERANCE
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance, Survey, Weight

_SWEEPS = 20
_RIDGE = 1e-4
# Slopes rest on this many input numbers, at most so many samples: differences between neighbouring
# ranks are small, and the samples must stand for all data.
_SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES = 2_000_000, 128
# A slope corrects a curve by its root, at most so far: it holds for small steps, and is noisy.
_LARGEST_CORRECTION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataMetric:
    """Squared relative errors of the model's outputs; see `Metric`.

    Attributes
    ----------
    survey, runner, sampler
        The model, the data, and which rows of the activations are looked at.
    probes
        Weight, moments and error curves of each weight, by its name, in graph order.
    sensitivities
        What cuts of each weight do to the outputs; empty where a plan is applied.
    refines
        Whether ranks are chosen a second time.
    """

    survey: Survey
    runner: Runner
    sampler: Sampler
    probes: Mapping[str, Probe]
    sensitivities: Mapping[str, Sensitivity]
    refines: bool
    on_data: bool = True
    tolerance: float = TOLERANCE**2  # errors are squared

    @property
    def spectra(self) -> Mapping[str, Spectra]:
        """Relative errors of the layers' outputs."""
        return {name: probe.spectra for name, probe in self.probes.items()}

    def damage(self, name: str, error: FloatArray) -> FloatArray:
        """Squared relative errors of the model's outputs."""
        return self.sensitivities[name].damage(error)

    def relative(self, damage: float) -> float:
        """The root."""
        return float(damage**0.5)

    def probes_of(self, name: str) -> tuple[Damage, ...]:
        """What was measured to know the damage of a weight; ascending."""
        if name not in self.sensitivities:
            return ()
        one = self.sensitivities[name]
        squared = zip(one.local, one.output, strict=True)
        return tuple(Damage(local=x**0.5, output=y**0.5) for x, y in squared)

    def fit(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> list[Decomposition]:
        """Regressions in graph order, for the better of two choices.

        Raises
        ------
        DataError
            If onnxruntime cannot run a part of the model.
        """
        try:
            with threadpool_limits(limits=1):
                return self._decompositions(self._best(choice, reconsider, advance))
        except RunError as e:
            raise DataError(f"the model does not run on the calibration data: {e}") from e

    def _best(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> Mapping[str, Fit]:
        """Solutions by weight."""
        if not self.refines or not choice.points:
            return self._reconstruct(choice.cuts, {}, advance)
        first = self._reconstruct(choice.cuts, _neighbours(choice.points), advance)
        if not first:
            return first
        second = self._reconstruct(
            reconsider(self._corrections(choice.points, first)).cuts, {}, advance
        )
        original = reference(self.runner, self.survey.loaded.model)

        def error(fits: Mapping[str, Fit]) -> float:
            """Squared relative error of the outputs on all calibration data."""
            dense = _dense(self._in_order(fits), fits)
            return original.distance_of(with_dense_weights(self.survey.loaded.model, dense))

        return min(first, second, key=error)

    def _in_order(self, names: Mapping[str, object]) -> list[Weight]:
        """Weights that are cut: those that are solved on their own, then the graph's order."""
        weights = [weight for weight in self.survey.weights() if weight.name in names]
        return sorted(weights, key=lambda w: (_is_observed(w), w.layers[0].site.node))

    def _reconstruct(
        self,
        cuts: Mapping[str, Cut],
        neighbours: Mapping[str, tuple[Cut | None, ...]],
        advance: Advance,
    ) -> dict[str, Fit]:
        """Solve for each weight that is cut, given what those upstream have become."""
        done: dict[str, Fit] = {}
        dense: list[Dense] = []
        runner, original = self.runner, self.survey.loaded.model
        with Walk(runner, original) as walk, Walk(runner, original) as compressed:
            for weight in self._in_order(cuts):
                others = tuple(cut for cut in neighbours.get(weight.name, ()) if cut)
                probe = self.probes[weight.name]
                task = _task(probe, cuts[weight.name], others)
                if probe.is_wide and task.cut.num_slices > 1:
                    found = _cut_only(probe, task)
                elif _is_observed(weight):
                    node = weight.layers[0].site.node
                    walk.go(original, node)
                    compressed.go(with_dense_weights(original, dense), node)
                    sums = measure_sums(walk, compressed, runner, self.sampler, task)
                    found = _lifted(probe, solve(task, *sums, runner))
                else:
                    found = _lifted(probe, _solve_alone(task))
                factors = stored_factors(task.layer, found.solution.factors)
                done[weight.name] = replace(
                    found, solution=replace(found.solution, factors=factors)
                )
                dense += _dense([weight], done)
                advance(len(done), len(cuts))
        return done

    def _corrections(
        self, points: Mapping[str, Point], fits: Mapping[str, Fit]
    ) -> dict[str, float]:
        """Factors for the errors of weights, by what a step does in the compressed model.

        A slope is what a step saves of the output error, over what the curve says it does.
        """
        runner = spread_batches(self.runner, _SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES)
        weights = self._in_order(fits)
        original = self.survey.loaded.model
        model = with_dense_weights(original, _dense(weights, fits))
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

    def _decompositions(self, fits: Mapping[str, Fit]) -> list[Decomposition]:
        return [
            self._decomposition(weight, fits[weight.name].solution)
            for weight in self.survey.weights()
            if weight.name in fits
        ]

    def _decomposition(self, weight: Weight, solution: Solution) -> Decomposition:
        name, squared, factors = weight.name, solution.squared_error, solution.factors
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
            bias=solution.bias,
            error=cut_error(probe.weight, factors, curves),
            local_error=local,
            output_error=moved,
        )


def _neighbours(points: Mapping[str, Point]) -> dict[str, tuple[Cut | None, ...]]:
    """What each weight could be cut to instead, with a little less and a little more."""
    return {
        name: tuple(point.frontier.cut(i) for i in point.neighbours())
        for name, point in points.items()
    }


def correction(slope: float) -> float:
    """The factor for a curve from a measured slope: its root, within bounds."""
    return float(np.clip(np.sqrt(slope), 1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION))


def _dense(weights: Sequence[Weight], fits: Mapping[str, Fit]) -> list[Dense]:
    """The composed weights."""
    return [
        Dense(
            layers=weight.layers,
            matrix=compose(fits[weight.name].solution.factors),
            bias=fits[weight.name].solution.bias,
        )
        for weight in weights
    ]


def _variant(probe: Probe, fit: Fit, cut: Cut | None) -> tuple[FloatArray, FloatArray | None]:
    """Weight and bias of a layer at a neighbouring cut; None is the dense layer."""
    if cut is None:
        return probe.weight, probe.bias
    found = fit.others[cut]
    return compose(found.factors), found.bias


def _is_observed(weight: Weight) -> bool:
    """Whether a weight has one reader, in the main graph: its inputs can then be observed."""
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


def _solve_alone(task: Task) -> Fit:
    """By the moments in the original model: the inputs cannot be observed."""
    shape = fitted_shape(task.layer.shape)
    ridge = max(_RIDGE, task.moments.uncertainty)
    factors = regress(task.matrix, shape, task.moments, task.cut, ridge=ridge, sweeps=_SWEEPS)
    solution = Solution(factors=factors, bias=None, squared_error=None, uncorrected=None)
    return Fit(solution=solution, others={})


def _cut_only(probe: Probe, task: Task) -> Fit:
    """Slices of a wide layer, which a plan may ask for: by the weight alone."""
    factors = factorize(probe.weight, task.layer.shape, task.cut)
    solution = Solution(factors=factors, bias=None, squared_error=None, uncorrected=None)
    return Fit(solution=solution, others={})


def _lifted(probe: Probe, found: Fit) -> Fit:
    """Factors of the weight in place of those that the regression found."""

    def lifted(solution: Solution) -> Solution:
        return replace(solution, factors=probe.factors(solution.factors))

    return Fit(
        solution=lifted(found.solution),
        others={cut: lifted(other) for cut, other in found.others.items()},
    )
