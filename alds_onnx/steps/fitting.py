"""The data-aware way from a budget to factors.

search        ranks by the measured output errors, within the budget
reconstruct   layer by layer, in graph order: factors and bias by regression
refine        what a rank more or less does to the outputs now, measured; ranks again with that

Probes tell what a layer's cut costs in the original model. In the compressed one it may cost more
or less: other layers have lost the same directions, or those behind make up for it. So the ranks
are chosen again by the slopes found there, and the better of the two models is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from alds_onnx.calibrate.reconstruct import Fit, Solution, Task, measure_sums, solve
from alds_onnx.calibrate.reference import Reference, reference
from alds_onnx.calibrate.sensitivity import Probe, Sensitivity
from alds_onnx.calibrate.walk import Walk
from alds_onnx.cuts import Cut, FloatArray, Spectra
from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.decompose.folding import compose
from alds_onnx.decompose.regression import fitted_shape, regress
from alds_onnx.decompose.spectra import spectra
from alds_onnx.errors import DataError
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, stored_factors, with_dense_weights
from alds_onnx.search.alignment import Alignment, affordable
from alds_onnx.search.costs import Cost, Terms
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.limits import smallest_total
from alds_onnx.search.minmax import minimize_maximum_error
from alds_onnx.search.rest import finer_choices
from alds_onnx.search.several import Room
from alds_onnx.settings import Settings
from alds_onnx.steps.budgets import Limit, within
from alds_onnx.steps.calibrated import Calibrated, distance_of_weights, some
from alds_onnx.steps.decide import PRICE, Bans, planned_cuts
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance, Survey, Weight
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.slow_cuts import exclude_slow_cuts
from alds_onnx.values import Objective

_SWEEPS = 20
_RIDGE = 1e-4
# Slopes are measured between cuts with about this much more and less than the chosen one.
_STEP = 1.2
# They rest on this many input numbers, at most so many samples: differences between neighbouring
# ranks are small, and the samples must stand for all data.
_SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES = 2_000_000, 128
# A slope corrects a curve by its root, at most so far: it holds for small steps, and is noisy.
_LARGEST_CORRECTION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attempt:
    """A choice of ranks, what it gives, and what its neighbours would.

    Attributes
    ----------
    curves, chosen
        The frontier of each weight, and the index on it.
    fits
        Solutions by weight.
    """

    curves: Mapping[str, Frontier]
    chosen: Mapping[str, int]
    fits: Mapping[str, Fit]

    def dense(self, weights: Sequence[Weight]) -> list[Dense]:
        """The composed weights."""
        return [
            Dense(
                layers=weight.layers,
                matrix=compose(self.fits[weight.name].solution.factors),
                bias=self.fits[weight.name].solution.bias,
            )
            for weight in weights
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choice:
    """A choice of ranks: the frontier of each weight, the index on it, and what it is worth."""

    curves: Mapping[str, Frontier]
    chosen: Mapping[str, int]
    objective: float

    def cuts(self) -> dict[str, Cut | None]:
        """The cut of each weight; None where it stays dense."""
        return {name: curve.cut(self.chosen[name]) for name, curve in self.curves.items()}

    def neighbours(self) -> dict[str, tuple[Cut | None, ...]]:
        """What each weight could be cut to instead, with a little more and a little less."""
        return {
            name: tuple(curve.cut(i) for i in _neighbours(curve, self.chosen[name]))
            for name, curve in self.curves.items()
        }


def fit(
    survey: Survey,
    calibrated: Calibrated,
    settings: Settings,
    limits: Sequence[Limit],
    advance: Advance,
    *,
    times: LayerTimes | None = None,
) -> list[Decomposition]:
    """Choose ranks within the budgets, or take those of the plan, and fit the factors.

    Raises
    ------
    BudgetError
        If a budget is out of reach.
    DataError
        If onnxruntime cannot run a part of the model.
    """
    try:
        with threadpool_limits(limits=1):
            return _Fitting(survey, calibrated, settings, times, advance).best(limits)
    except RunError as e:
        raise DataError(f"the model does not run on the calibration data: {e}") from e


def search(
    survey: Survey, calibrated: Calibrated, settings: Settings, limits: Sequence[Limit]
) -> dict[str, Cut]:
    """The cuts that `fit` begins with.

    Raises
    ------
    BudgetError
        If a budget is out of reach.
    """
    fitting = _Fitting(survey, calibrated, settings, None, lambda done, total: None)
    return fitting.cuts(limits)


class _Fitting:
    """The steps, and what they share."""

    def __init__(
        self,
        survey: Survey,
        calibrated: Calibrated,
        settings: Settings,
        times: LayerTimes | None,
        advance: Advance,
    ) -> None:
        self.survey, self.calibrated = survey, calibrated
        self.settings, self.advance = settings, advance
        self.times = None if settings.allow_slower else times
        self.model = survey.loaded.model

    def best(self, limits: Sequence[Limit]) -> list[Decomposition]:
        """Decompositions of the best attempt."""
        if self.settings.plan is not None:
            cuts = planned_cuts(self.survey, self.settings.plan)
            return self._finish(self._reconstruct(cuts, {}))
        if not limits or not self.calibrated.probes:
            return []
        return self._finish(self._refined(limits).fits)

    def cuts(self, limits: Sequence[Limit]) -> dict[str, Cut]:
        """The first choice, by probes."""
        found = self._within(limits, {}, {}).cuts()
        return {name: cut for name, cut in found.items() if cut}

    def _curves(self, alignment: Alignment, terms: Terms) -> dict[str, Frontier]:
        """What each weight can be cut to, by squared errors of the model's outputs."""
        return {
            name: by_output(
                frontier(name, probe.spectra, alignment, terms),
                self.calibrated.sensitivities[name],
            )
            for name, probe in self.calibrated.probes.items()
        }

    def _choose(self, curves: Mapping[str, Frontier], allowed: int) -> _Choice:
        """By given frontiers; worth nothing where bans leave nothing that fits."""
        largest = self.settings.objective is Objective.MAX_OUTPUT_ERROR
        frontiers = list(curves.values())
        if sum(int(f.cost[0]) for f in frontiers) > allowed:
            return _Choice(curves=curves, chosen=dict.fromkeys(curves, 0), objective=math.inf)
        search = minimize_maximum_error if largest else minimize_sum_of_errors
        chosen = search(frontiers, allowed)
        errors = [float(f.error[i]) for f, i in zip(frontiers, chosen, strict=True)]
        return _Choice(
            curves=curves,
            chosen=dict(zip(curves, chosen, strict=True)),
            objective=max(errors) if largest else sum(errors),
        )

    def _within(self, limits: Sequence[Limit], slopes: Mapping[str, float], bans: Bans) -> _Choice:
        """The best ranks within all budgets; slopes correct the curves."""
        probes = self.calibrated.probes
        shapes = {name: probe.spectra.shape for name, probe in probes.items()}
        spectra = {name: probe.spectra for name, probe in probes.items()}
        rules = self.settings.alignment.tiers()

        def smallest(cost: Cost) -> int:
            return smallest_total(spectra, rules[-1], Terms(cost=cost, bans=bans))

        def solve(room: Room) -> _Choice:
            tiers = [self._curves(rule, Terms(cost=room.cost, bans=bans)) for rule in rules]
            reached = [self._choose(curves, room.allowed).objective for curves in tiers]
            left = tiers[affordable(reached, PRICE**2) :]
            curves, *finer = (_all_corrected(curves, slopes) for curves in left)
            return _with_rest(self._choose(curves, room.allowed), finer, room)

        return within(
            limits, shapes, smallest, solve, lambda choice: (choice.objective, choice.cuts())
        )

    def _in_time(
        self, limits: Sequence[Limit], slopes: Mapping[str, float], bans: Bans
    ) -> tuple[_Choice, Bans]:
        """The same without slow cuts; and what had to be banned for that."""
        if self.times is None:
            return self._within(limits, slopes, bans), bans
        choice, exclusion = exclude_slow_cuts(
            lambda bans: self._within(limits, slopes, bans),
            lambda choice: {name: cut for name, cut in choice.cuts().items() if cut},
            self.times,
            bans,
        )
        return choice, exclusion.excluded

    def _refined(self, limits: Sequence[Limit]) -> _Attempt:
        """Attempts by probes, then by slopes; the best one."""
        choice, bans = self._in_time(limits, {}, {})
        # The points of a sweep are many, and near enough without.
        summed = self.settings.objective is not Objective.MAX_OUTPUT_ERROR
        if not summed or self.settings.sweep:
            return self._attempt(choice, {})
        best = self._attempt(choice, choice.neighbours())
        if not best.fits:
            return best
        again = self._attempt(self._in_time(limits, self._slopes(best), bans)[0], {})
        whole = reference(self.calibrated.runner, self.model)
        return min(best, again, key=lambda attempt: self._error(attempt, whole))

    def _attempt(
        self, choice: _Choice, neighbours: Mapping[str, tuple[Cut | None, ...]]
    ) -> _Attempt:
        cuts = {name: cut for name, cut in choice.cuts().items() if cut}
        fits = self._reconstruct(cuts, neighbours)
        return _Attempt(curves=choice.curves, chosen=choice.chosen, fits=fits)

    def _error(self, attempt: _Attempt, whole: Reference) -> float:
        """Squared relative error of the outputs on all calibration data."""
        dense = attempt.dense(self._weights(attempt.fits))
        return whole.distance_of(with_dense_weights(self.model, dense))

    def _weights(self, names: Mapping[str, object]) -> list[Weight]:
        """Weights that are cut: those that are solved on their own, then the graph's order."""
        weights = [weight for weight in self.survey.weights() if weight.name in names]
        return sorted(weights, key=lambda w: (_walkable(w), w.layers[0].site.node))

    def _reconstruct(
        self, cuts: Mapping[str, Cut], neighbours: Mapping[str, tuple[Cut | None, ...]]
    ) -> dict[str, Fit]:
        """Solve for each weight that is cut, given what those before it have become."""
        done: dict[str, Fit] = {}
        dense: list[Dense] = []
        runner, original = self.calibrated.runner, self.model
        with Walk(runner, original) as before, Walk(runner, original) as after:
            for weight in self._weights(cuts):
                others = tuple(cut for cut in neighbours.get(weight.name, ()) if cut)
                probe = self.calibrated.probes[weight.name]
                task = _task(probe, cuts[weight.name], others)
                if probe.is_wide and task.cut.num_slices > 1:
                    found = _cut_only(probe, task)
                elif _walkable(weight):
                    node = weight.layers[0].site.node
                    before.go(original, node)
                    after.go(with_dense_weights(original, dense), node)
                    sums = measure_sums(before, after, runner, self.calibrated.sampler, task)
                    found = _lifted(probe, solve(task, *sums, runner))
                else:
                    found = _lifted(probe, _solve_alone(task))
                solution = _stored(task.layer, found.solution)
                done[weight.name] = replace(found, solution=solution)
                matrix = compose(solution.factors)
                dense.append(Dense(layers=weight.layers, matrix=matrix, bias=solution.bias))
                self.advance(len(done), len(cuts))
        return done

    def _slopes(self, attempt: _Attempt) -> dict[str, float]:
        """What a step saves of the output error, over what the curve says it does."""
        runner = some(self.calibrated.runner, _SLOPE_NUMBERS, _MOST_SLOPE_SAMPLES)
        weights = self._weights(attempt.fits)
        model = with_dense_weights(self.model, attempt.dense(weights))
        wanted = reference(runner, self.model)
        found: dict[str, float] = {}
        with Walk(runner, model) as walk:
            for weight in weights:
                curve, at = attempt.curves[weight.name], attempt.chosen[weight.name]
                ends = _neighbours(curve, at)
                expected = float(curve.error[ends[0]] - curve.error[ends[1]])
                if len(set(ends)) < len(ends) or expected <= 0 or not _walkable(weight):
                    continue
                probe = self.calibrated.probes[weight.name]
                distance = distance_of_weights(
                    wanted, walk, model, weight.layers, biased=probe.bias is not None
                )
                less, more = (
                    distance(*_variant(probe, attempt.fits[weight.name], curve.cut(i)))
                    for i in ends
                )
                found[weight.name] = max(0.0, less - more) / expected
        return found

    def _finish(self, fits: Mapping[str, Fit]) -> list[Decomposition]:
        weights = [weight for weight in self.survey.weights() if weight.name in fits]
        return [
            _decomposition(
                weight,
                self.calibrated.probes[weight.name],
                fits[weight.name].solution,
                self.calibrated.sensitivities,
            )
            for weight in weights
        ]


def _with_rest(choice: _Choice, finer: Sequence[Mapping[str, Frontier]], room: Room) -> _Choice:
    """Take finer frontiers for single weights where more than the slack would be left."""
    points = {name: (curve, choice.chosen[name]) for name, curve in choice.curves.items()}
    for curves in finer:
        current = [(int(f.cost[i]), float(f.error[i])) for f, i in points.values()]
        rest = room.allowed - sum(cost for cost, _ in current)
        new = finer_choices(current, [curves[name] for name in points], rest, room.slack)
        names = list(points)
        points |= {names[n]: (curves[names[n]], i) for n, i in new.items()}
    return replace(
        choice,
        curves={name: curve for name, (curve, _) in points.items()},
        chosen={name: i for name, (_, i) in points.items()},
    )


def by_output(local: Frontier, sensitivity: Sensitivity) -> Frontier:
    """The frontier with local errors exchanged for squared errors of the model's outputs."""
    return replace(local, error=sensitivity.damage(local.error))


def _neighbours(curve: Frontier, at: int) -> tuple[int, int]:
    """Choices that cost about a fifth less and more, at least one step away."""
    cost, last = curve.cost, len(curve) - 1
    fewer = int(np.abs(cost - cost[at] / _STEP).argmin())
    more = int(np.abs(cost - cost[at] * _STEP).argmin())
    return min(fewer, max(at - 1, 0)), max(more, min(at + 1, last))


def _all_corrected(
    curves: Mapping[str, Frontier], slopes: Mapping[str, float]
) -> dict[str, Frontier]:
    """Scale those curves for which there is a slope."""
    return {
        name: _corrected(curve, slopes[name]) if name in slopes else curve
        for name, curve in curves.items()
    }


def _corrected(curve: Frontier, slope: float) -> Frontier:
    """Scale a curve, as far as a measured slope allows."""
    factor = np.clip(np.sqrt(slope), 1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION)
    return replace(curve, error=curve.error * factor)


def _variant(probe: Probe, fit: Fit, cut: Cut | None) -> tuple[FloatArray, FloatArray | None]:
    """Weight and bias of a layer at a neighbouring cut; None is the dense layer."""
    if cut is None:
        return probe.weight, probe.bias
    found = fit.others[cut]
    return compose(found.factors), found.bias


def _walkable(weight: Weight) -> bool:
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


def _stored(layer: Layer, solution: Solution) -> Solution:
    return replace(solution, factors=stored_factors(layer, solution.factors))


def _decomposition(
    weight: Weight, probe: Probe, solution: Solution, measured: Mapping[str, Sensitivity]
) -> Decomposition:
    squared = solution.squared_error
    local = None if squared is None else squared**0.5
    moved = None
    if local is not None and weight.name in measured:
        moved = float(measured[weight.name].damage(np.array([local]))[0]) ** 0.5
    factors = solution.factors
    return Decomposition(
        weight=weight,
        factors=factors,
        bias=solution.bias,
        error=cut_error(probe.weight, factors, _weight_curve(probe, factors.cut)),
        local_error=local,
        output_error=moved,
    )


def _weight_curve(probe: Probe, cut: Cut) -> Spectra:
    """Error curves of the weight itself at the number of slices that was chosen."""
    return spectra(probe.weight, probe.spectra.shape, (cut.num_slices,))
