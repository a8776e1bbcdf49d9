"""The budgets that were asked for, but those of time."""

from __future__ import annotations

from collections.abc import Mapping

from alds_onnx.cuts import Work
from alds_onnx.errors import UsageError
from alds_onnx.graph.scopes import Site
from alds_onnx.search.budgets import Limit, parameter_limit
from alds_onnx.search.costs import Macs
from alds_onnx.settings import Settings
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Budget, BudgetKind


def make_limits(
    survey: Survey, settings: Settings, parameters: int, work: Mapping[Site, Work]
) -> tuple[Limit, ...]:
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
    limits = []
    if settings.cr is not None:
        limits.append(parameter_limit(parameters, settings.cr))
    if settings.cr_macs is not None:
        before = sum(own.macs for own in work.values())
        if not before:
            raise UsageError(
                "--cr-macs: the shapes of the model are not known, and so its multiply-accumulates "
                "are not: give --input-shape or --calibration"
            )
        budget = Budget(kind=BudgetKind.MACS, before=before, removed=settings.cr_macs)
        limits.append(Limit(budget=budget, cost=Macs(work=_work_of_weights(survey, work))))
    return tuple(limits)


def _work_of_weights(survey: Survey, work: Mapping[Site, Work]) -> dict[str, tuple[Work, ...]]:
    """What the layers that read each weight compute, by the weight's name."""
    return {
        weight.name: tuple(work[layer.site] for layer in weight.layers if layer.site in work)
        for weight in survey.weights()
    }
