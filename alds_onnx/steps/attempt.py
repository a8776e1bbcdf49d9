"""One compressed model: choose cuts within budgets, compute factors, put them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from alds_onnx.cuts import Work
from alds_onnx.errors import UsageError
from alds_onnx.graph.external import external_tensors, is_large
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import Site
from alds_onnx.graph.spill import Spill
from alds_onnx.search.budgets import CostedBudget, parameter_budget
from alds_onnx.search.choose import (
    Candidates,
    Choice,
    Excluded,
    Iterative,
    LargestError,
    Objective,
    SumOfErrors,
    choose,
)
from alds_onnx.search.costs import Macs
from alds_onnx.settings import Settings, Step
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.latency import corrected, latency_limit, make_table, most_saved, need_pace
from alds_onnx.steps.limits import Measurement
from alds_onnx.steps.pace import Pace, without_slow
from alds_onnx.steps.planned import planned_cuts
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Budget, BudgetKind, SearchMethod
from alds_onnx.values import Objective as ObjectiveName


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A compressed model; `measurement` is what was measured of it if a limit was asked for."""

    budgets: tuple[Budget, ...]
    decompositions: list[Decomposition]
    replacements: list[Replacement]
    model: ModelProto
    spill: Spill | None
    measurement: Measurement | None = None


def requested_budgets(prepared: Prepared, clock: Clock) -> tuple[CostedBudget, ...]:
    """The budgets that were asked for."""
    survey, settings = prepared.survey, prepared.settings
    budgets = _counted_budgets(survey, settings, prepared.before, prepared.work)
    if settings.latency_ratio is None:
        return budgets
    pace, samples = need_pace(prepared.pace), prepared.samples
    if isinstance(samples, str):
        raise UsageError(f"--latency-ratio: the model cannot be timed: {samples}")
    feeds = samples.feeds[0]
    table = make_table(survey, settings.alignment, list(prepared.metric.spectra), pace)
    whole = pace.whole({}, feeds).dense
    budget = latency_limit(settings.latency_ratio, whole, table)
    clock.start(Step.TIMING)
    return corrected(
        (*budgets, budget),
        lambda budgets: _searched(prepared, budgets).cuts,
        lambda cuts: pace.whole(cuts, feeds).ratio,
        most_saved(table) / whole,
    )


def _counted_budgets(
    survey: Survey, settings: Settings, parameters: int, work: Mapping[Site, Work]
) -> tuple[CostedBudget, ...]:
    """The budgets that were asked for, but those of time.

    Parameters
    ----------
    survey, settings
        The model, and what was asked for.
    parameters
        Of the whole model.
    work
        What its layers compute in one run, where known.

    Raises
    ------
    UsageError
        If multiply-accumulates are to be removed, and none are known.
    """
    budgets = []
    if settings.cr is not None:
        budgets.append(parameter_budget(parameters, settings.cr))
    if settings.cr_macs is not None:
        before = sum(own.macs for own in work.values())
        if not before:
            raise UsageError(
                "--cr-macs: the shapes of the model are not known, and so its multiply-accumulates "
                "are not: give --input-shape or --calibration"
            )
        budget = Budget(kind=BudgetKind.MACS, before=before, removed=settings.cr_macs)
        cost = Macs(work=_work_of_weights(survey, work))
        budgets.append(CostedBudget(budget=budget, cost=cost))
    return tuple(budgets)


def _work_of_weights(survey: Survey, work: Mapping[Site, Work]) -> dict[str, tuple[Work, ...]]:
    """What the layers that read each weight compute, by the weight's name."""
    return {
        weight.name: tuple(work[layer.site] for layer in weight.layers if layer.site in work)
        for weight in survey.weights()
    }


def make_attempt(prepared: Prepared, budgets: Sequence[CostedBudget], clock: Clock) -> Attempt:
    """Choose cuts within budgets, or take those of the plan; compute factors; put them in."""
    survey = prepared.survey
    clock.start(Step.SEARCH)
    choice, excluded = _chosen(prepared, budgets)

    def reconsider(scale: Mapping[str, float]) -> Choice:
        return _chosen(prepared, budgets, scale, excluded)[0]

    clock.start(Step.FACTORIZE)
    decompositions = prepared.metric.fit(choice, reconsider, clock.advance)
    replacements = [
        Replacement(layers=d.weight.layers, factors=d.factors, bias=d.bias) for d in decompositions
    ]
    spill = Spill() if _is_streamed(survey.loaded.model) else None
    return Attempt(
        budgets=tuple(one.budget for one in budgets),
        decompositions=decompositions,
        replacements=replacements,
        model=rewrite(survey.loaded.model, replacements, spill),
        spill=spill,
    )


def _chosen(
    prepared: Prepared,
    budgets: Sequence[CostedBudget],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> tuple[Choice, Excluded]:
    """The cuts of the plan, or those that a search finds; and what it had to exclude as slow."""
    survey, settings = prepared.survey, prepared.settings
    if settings.plan is not None:
        return Choice(cuts=planned_cuts(survey, settings.plan)), {}
    known, judge = excluded or {}, _judge(prepared)
    if judge is None or settings.allow_slower:
        return _searched(prepared, budgets, scale, known), known
    choice, paced = without_slow(
        lambda excluded: _searched(prepared, budgets, scale, excluded),
        lambda choice: choice.cuts,
        judge,
        known,
    )
    return choice, paced.bans


def _searched(
    prepared: Prepared,
    budgets: Sequence[CostedBudget],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> Choice:
    metric, settings = prepared.metric, prepared.settings
    return choose(
        Candidates(spectra=metric.spectra, damage=metric.damage),
        budgets,
        _objective(settings),
        settings.alignment,
        tolerance=metric.tolerance,
        scale=scale,
        excluded=excluded or {},
    )


def _objective(settings: Settings) -> Objective:
    if settings.search is SearchMethod.ITERATIVE:
        return Iterative(seed=settings.seed)
    if settings.objective is ObjectiveName.SUM_OUTPUT_ERROR:
        return SumOfErrors()
    return LargestError()


def _judge(prepared: Prepared) -> Pace | None:
    """What keeps slow cuts out; a budget of time needs no such filter."""
    return prepared.pace if prepared.settings.latency_ratio is None else None


def is_timed(prepared: Prepared) -> bool:
    """Whether times decided: those of a budget of time do, and others unless slow is allowed."""
    if prepared.pace is None:
        return False
    return _judge(prepared) is None or not prepared.settings.allow_slower


def _is_streamed(model: ModelProto) -> bool:
    """Whether new weights go to a file: those of a large model that has data files itself."""
    return is_large(model) and bool(external_tensors(model))
