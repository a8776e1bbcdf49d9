"""One attempt: choose cuts within budgets, compute the factors, and rewrite the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from alds_onnx.cuts import Work
from alds_onnx.errors import UsageError
from alds_onnx.graph.files.external import external_tensors, is_large
from alds_onnx.graph.files.spill import Spill
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import Site
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
from alds_onnx.steps.planned import planned_cuts
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Survey
from alds_onnx.steps.timing import latency_budget
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.slow_cuts import exclude_slow_cuts
from alds_onnx.values import Budget, BudgetKind, SearchMethod
from alds_onnx.values import Objective as ObjectiveName


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A compressed model, and the measurement of the limited quantity if there is one."""

    budgets: tuple[Budget, ...]
    decompositions: list[Decomposition]
    replacements: list[Replacement]
    model: ModelProto
    spill: Spill | None
    measurement: Measurement | None = None


def requested_budgets(prepared: Prepared, clock: Clock) -> tuple[CostedBudget, ...]:
    """Make the budgets that the settings ask for."""
    survey, settings = prepared.survey, prepared.settings
    budgets = _counted_budgets(survey, settings, prepared.before, prepared.work)
    if settings.latency_ratio is None:
        return budgets
    clock.start(Step.TIMING)
    latency = latency_budget(
        survey,
        settings,
        curves=prepared.metric.spectra,
        samples=prepared.samples,
        times=prepared.times,
        choose=lambda latency: _searched(prepared, (*budgets, latency)).cuts,
    )
    return (*budgets, latency)


def _counted_budgets(
    survey: Survey, settings: Settings, parameters: int, work: Mapping[Site, Work]
) -> tuple[CostedBudget, ...]:
    """Make the budgets of parameters and of multiply-accumulates that the settings ask for.

    Parameters
    ----------
    survey, settings
        The model, and the settings of the run.
    parameters
        Number of parameters of the whole model.
    work
        Computations of the layers in one run, where known.

    Raises
    ------
    UsageError
        If there is a budget of multiply-accumulates, but none are known.
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
    """Give the computations of the layers that read each weight, by the weight's name."""
    return {
        weight.name: tuple(work[layer.site] for layer in weight.layers if layer.site in work)
        for weight in survey.weights()
    }


def make_attempt(prepared: Prepared, budgets: Sequence[CostedBudget], clock: Clock) -> Attempt:
    """Choose cuts within budgets or apply a plan, compute the factors, and rewrite the model."""
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
    """Choose the cuts, by the plan or by a search; and give the cuts excluded as slow."""
    survey, settings = prepared.survey, prepared.settings
    if settings.plan is not None:
        return Choice(cuts=planned_cuts(survey, settings.plan)), {}
    known, judge = excluded or {}, _slow_filter(prepared)
    if judge is None or settings.allow_slower:
        return _searched(prepared, budgets, scale, known), known
    return exclude_slow_cuts(
        lambda excluded: _searched(prepared, budgets, scale, excluded), judge, known
    )


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


def _slow_filter(prepared: Prepared) -> LayerTimes | None:
    """Give the filter that excludes slow cuts. A latency budget needs no such filter."""
    return prepared.times if prepared.settings.latency_ratio is None else None


def is_timed(prepared: Prepared) -> bool:
    """Whether the choice rests on times: of a latency budget, or of the filter of slow cuts."""
    if prepared.times is None:
        return False
    return _slow_filter(prepared) is None or not prepared.settings.allow_slower


def _is_streamed(model: ModelProto) -> bool:
    """Whether new weights go to a file: if the model is large and has data files itself."""
    return is_large(model) and bool(external_tensors(model))
