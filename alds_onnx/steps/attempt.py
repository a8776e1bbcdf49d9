"""One attempt: choose cuts within budgets, compute the factors, and rewrite the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from alds_onnx.cuts import Cut, Scheme, distinct
from alds_onnx.errors import BudgetError, PlanError, UsageError
from alds_onnx.graph.constants.sharing import left_whole
from alds_onnx.graph.files.external import Spill, spill_for
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, rewrite
from alds_onnx.plans import match_plan
from alds_onnx.search.budgets import CostedBudget, parameter_budget
from alds_onnx.search.choose import (
    Candidates,
    Iterative,
    LargestError,
    Objective,
    SumOfErrors,
    choose,
)
from alds_onnx.search.costs import Excluded, Macs
from alds_onnx.search.frontier import Choice
from alds_onnx.settings import Settings, Step
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.limits import Measurement
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.rows import Decomposition, plan_rows, what_stays
from alds_onnx.steps.survey import Survey
from alds_onnx.timing.latency_budget import (
    corrected_saving,
    measure_latency_cost,
    time_whole_model,
)
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.slow_cuts import exclude_slow_cuts
from alds_onnx.timing.timer import Timing
from alds_onnx.values import Budget, BudgetKind, Plan, SearchMethod
from alds_onnx.values import Objective as ObjectiveName


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A compressed model, and the measurement of the limited quantity if there is one."""

    budgets: tuple[Budget, ...]
    decompositions: list[Decomposition]
    model: ModelProto
    spill: Spill | None
    measurement: Measurement | None = None


def requested_budgets(prepared: Prepared, clock: Clock) -> tuple[CostedBudget, ...]:
    """Make the budgets that the settings ask for.

    A budget of multiply-accumulates is a UsageError if none are known.
    """
    survey, settings, work = prepared.survey, prepared.settings, prepared.work
    budgets = []
    if settings.cr is not None:
        budgets.append(parameter_budget(prepared.before, settings.cr))
    if settings.cr_macs is not None:
        before = sum(one.macs for one in work.values())
        if not before:
            raise UsageError(
                "--cr-macs: the shapes of the model are not known, and so its multiply-accumulates "
                "are not: give --input-shape or --calibration"
            )
        budget = Budget(kind=BudgetKind.MACS, before=before, removed=settings.cr_macs)
        own = {
            weight.name: tuple(work[layer.site] for layer in weight.layers if layer.site in work)
            for weight in survey.weights()
        }
        budgets.append(CostedBudget(budget=budget, cost=Macs(work=own)))
    if settings.latency_ratio is not None:
        clock.start(Step.TIMING)
        budgets.append(_latency_budget(prepared, tuple(budgets)))
    return tuple(budgets)


def _latency_budget(prepared: Prepared, others: Sequence[CostedBudget]) -> CostedBudget:
    """The budget of time: what the cuts are to save so that the whole model keeps the ratio.

    If nothing can be timed, that is a UsageError. A ratio that is out of reach within all budgets
    is a BudgetError.
    """
    survey, settings, times = prepared.survey, prepared.settings, prepared.times
    samples, ratio = prepared.samples, settings.latency_ratio
    if times is None:
        raise UsageError(
            "--latency-ratio: so large a model is not timed; give --cr or --cr-macs instead"
        )
    if isinstance(samples, str):
        raise UsageError(f"--latency-ratio: the model cannot be timed: {samples}")
    timer, feeds = times.timer, samples.feeds[0]
    assert ratio is not None

    def timed(cuts: Mapping[str, Cut]) -> Timing:
        chosen = [(w.layers, cuts[w.name]) for w in survey.weights() if w.name in cuts]
        return time_whole_model(timer, survey.loaded.model, survey.loaded.folder, chosen, feeds)

    cost = measure_latency_cost(times, prepared.metric.spectra, settings.alignment)
    whole = timed({}).dense
    budget = Budget(kind=BudgetKind.LATENCY, before=max(1, round(whole)), removed=1 - ratio)
    costed = CostedBudget(budget=budget, cost=cost)
    aimed = corrected_saving(
        ratio,
        lambda saved: (
            timed(_searched(prepared, (*others, replace(costed, aimed=saved))).cuts).ratio
        ),
        cost.most_saved() / whole,
    )
    return replace(costed, aimed=aimed)


def make_attempt(prepared: Prepared, budgets: Sequence[CostedBudget], clock: Clock) -> Attempt:
    """Choose cuts within budgets or apply a plan, compute the factors, and rewrite the model."""
    survey = prepared.survey
    clock.start(Step.SEARCH)
    choice, excluded = _chosen(prepared, budgets)

    def reconsider(scale: Mapping[str, float]) -> Choice:
        return _chosen(prepared, budgets, scale, excluded)[0]

    clock.start(Step.FACTORIZE)
    decompositions = prepared.metric.fit(choice, reconsider, clock.advance)
    replacements = [one.replacement for one in decompositions]
    spill = spill_for(survey.loaded.model)
    return Attempt(
        budgets=tuple(one.budget for one in budgets),
        decompositions=decompositions,
        model=rewrite(
            survey.loaded.model, replacements, spill, _left_whole(survey, decompositions)
        ),
        spill=spill,
    )


def _left_whole(survey: Survey, decompositions: Sequence[Decomposition]) -> list[Dense]:
    """Give what stays whole of constants a part of which is cut, as weights of their own."""
    layers = [row for row in survey.found if isinstance(row, Layer)]
    cut = {one.weight.layers[0].weight_key for one in decompositions}
    return [
        Dense(layers=tuple(group), matrix=survey.matrix(group[0]))
        for group in left_whole(survey.index, layers, cut).values()
    ]


def _chosen(
    prepared: Prepared,
    budgets: Sequence[CostedBudget],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> tuple[Choice, Excluded]:
    """Choose the cuts, by the plan or by a search; and give the cuts excluded as slow."""
    survey, settings = prepared.survey, prepared.settings
    if settings.plan is not None:
        return Choice(cuts=_planned_cuts(survey, settings.plan)), {}
    known, judge = excluded or {}, _slow_filter(prepared)
    if judge is None or settings.allow_slower:
        return _searched(prepared, budgets, scale, known), known
    return exclude_slow_cuts(
        lambda excluded: _searched(prepared, budgets, scale, excluded), judge, known
    )


def _planned_cuts(survey: Survey, plan: Plan) -> dict[str, Cut]:
    """Give the cuts of a plan by weight names; a PlanError if it does not fit the model."""
    rows = {row.name: row for row in plan_rows(survey, [], {})}
    cuts = match_plan(plan, rows, survey.loaded.sha256)
    chosen: dict[str, Cut] = {}
    for weight in survey.weights():
        wanted = {cuts.get(layer.name) for layer in weight.layers}
        if len(wanted) > 1:
            names = ", ".join(f"'{layer.name}'" for layer in weight.layers)
            raise PlanError(f"the rows {names} share a weight: their cuts must be the same")
        cut = wanted.pop()
        if cut is not None:
            _check_cut(weight.layers, cut)
            chosen[weight.name] = cut
    return chosen


def _check_cut(layers: Sequence[Layer], cut: Cut) -> None:
    for layer in layers:
        shape, where = layer.shape, f"the plan's row '{layer.name}'"
        if cut.scheme not in distinct(shape, Scheme):
            raise PlanError(
                f"{where}: on this weight the scheme '{cut.scheme.value}' is the same as "
                f"'{distinct(shape, [cut.scheme])[0].value}': write that"
            )
        misfit = cut.scheme.structure.misfit(shape, cut, cut.scheme.value)
        if misfit:
            raise PlanError(f"{where}: {misfit}")
        if cut.num_slices > 1 and layer.slice_counts == (1,):
            raise PlanError(f"{where}: only 1 slice can be built, the activation has unknown rank")


def _searched(
    prepared: Prepared,
    budgets: Sequence[CostedBudget],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> Choice:
    metric, settings = prepared.metric, prepared.settings
    try:
        return choose(
            Candidates(spectra=metric.spectra, damage=metric.damage),
            budgets,
            _objective(settings),
            settings.alignment,
            tolerance=metric.tolerance,
            scale=scale,
            excluded=excluded or {},
        )
    except BudgetError as e:
        raise BudgetError(f"{e}; {what_stays(prepared.survey, prepared.before)}") from e


def _objective(settings: Settings) -> Objective:
    if settings.search is SearchMethod.ITERATIVE:
        return Iterative(seed=settings.seed)
    if settings.objective is ObjectiveName.SUM_OUTPUT_ERROR:
        return SumOfErrors()
    return LargestError()


def _slow_filter(prepared: Prepared) -> LayerTimes | None:
    """Give the filter that excludes slow cuts. A latency budget needs no such filter."""
    return prepared.times if prepared.settings.latency_ratio is None else None


def is_timed(prepared: Prepared) -> bool:
    """Whether the choice rests on times: of a latency budget, or of the filter of slow cuts."""
    if prepared.times is None:
        return False
    return _slow_filter(prepared) is None or not prepared.settings.allow_slower
