"""The search: the optimum for every objective, within budgets, rules and exclusions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import LayerShape, Scheme, Spectra
from alds_onnx.errors import BudgetError
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.budgets import CostedBudget, parameter_budget
from alds_onnx.search.choose import (
    Candidates,
    Choice,
    Iterative,
    LargestError,
    Objective,
    SumOfErrors,
    choose,
)
from alds_onnx.search.costs import PARAMETERS_ONLY, ExcludedRanks
from alds_onnx.values import Budget

from ..decompose.matrices import spectra
from .layers import best_errors, cost, errors, models_and_budgets
from .test_alignment import RULES

Case = tuple[dict[str, Spectra], int]
OBJECTIVES = st.sampled_from([LargestError(), SumOfErrors(), Iterative(seed=0)])


def costed(model: dict[str, Spectra], budget: int) -> CostedBudget:
    """Make a budget that allows the layers, which are the whole model, `budget` parameters."""
    before = sum(s.shape.num_parameters for s in model.values())
    asked = parameter_budget(before, 1 - budget / before)
    found = next(
        replace(asked, budget=Budget(before=before, removed=removed))
        for removed in (1 - budget / before, np.nextafter(1 - budget / before, -1))
        if Budget(before=before, removed=removed).allowed >= budget
    )
    assert found.budget.allowed == budget
    return found


def chosen(case: Case, objective: Objective, rule: Alignment = FREE, **options: object) -> Choice:
    model, budget = case
    budgets = [costed(model, budget)]
    candidates = Candidates(spectra=model)
    return choose(candidates, budgets, objective, rule, tolerance=1.5, **options)  # type: ignore[arg-type]


def by_layer(case: Case, choice: Choice) -> dict[str, object]:
    return {name: choice.cuts.get(name) for name in case[0]}


@given(models_and_budgets(), OBJECTIVES, RULES)
def test_the_budget_is_kept(case: Case, objective: Objective, rule: Alignment) -> None:
    found = chosen(case, objective, rule)
    assert cost(case[0], by_layer(case, found)) <= case[1]  # type: ignore[arg-type]
    assert found.objective == pytest.approx(
        objective.value([point.error for point in found.points.values()])
    )


@given(models_and_budgets(ties=False))
def test_the_largest_error_is_the_smallest_possible(case: Case) -> None:
    found = chosen(case, LargestError())
    best = best_errors(*case)[0]
    assert errors(case[0], by_layer(case, found))[0] == best == found.objective  # type: ignore[arg-type]


@given(models_and_budgets())
def test_the_exact_search_is_never_worse_than_the_iterative_one(case: Case) -> None:
    assert chosen(case, LargestError()).objective <= chosen(case, Iterative(seed=0)).objective


@given(models_and_budgets(most=6), OBJECTIVES, RULES)
def test_the_choice_does_not_depend_on_the_order_of_layers(
    case: Case, objective: Objective, rule: Alignment
) -> None:
    reverse = dict(reversed(case[0].items())), case[1]
    assert chosen(case, objective, rule).cuts == chosen(reverse, objective, rule).cuts


@given(models_and_budgets(), RULES)
def test_a_rule_that_costs_too_much_error_gives_way(case: Case, rule: Alignment) -> None:
    """The finest rule has as many slices, and all ranks."""
    finest = chosen(case, LargestError(), rule.tiers()[-1]).objective
    assert chosen(case, LargestError(), rule).objective <= 1.5 * finest + 1e-12


@given(models_and_budgets(), st.sampled_from([1, 2]))
def test_excluded_cuts_are_not_chosen(case: Case, k: int) -> None:
    excluded = {
        name: (ExcludedRanks(scheme=Scheme.ENCODE, num_slices=k, above=1),) for name in case[0]
    }
    try:
        found = chosen(case, LargestError(), excluded=excluded)
    except BudgetError:
        return
    assert not any(cut.num_slices == k and cut.rank > 1 for cut in found.cuts.values())


def test_what_is_left_becomes_less_than_the_slack() -> None:
    """One layer whose aligned ranks are 10 % of its parameters apart."""
    shape = LayerShape(out_features=64, in_channels=64, kernel=(3, 3))
    matrix = np.random.default_rng(0).standard_normal((64, shape.num_columns))
    model = {"layer": spectra(matrix, shape, (1, 2, 4))}
    rule = Alignment(preset=preset(Runtime.ORT_AVX512))
    budget = 20_000
    aligned = LargestError().search(Candidates(spectra=model), rule, PARAMETERS_ONLY, budget)
    found = chosen((model, budget), LargestError(), rule)
    slack = int(0.01 * shape.num_parameters)
    assert budget - aligned["layer"].cost > slack
    assert 0 <= budget - found.points["layer"].cost <= slack


def test_scaled_errors_move_the_budget() -> None:
    """A layer whose errors count more gets more of the budget."""
    shape = LayerShape(out_features=32, in_channels=32)
    generator = np.random.default_rng(0)
    model = {name: spectra(generator.standard_normal((32, 32)), shape, (1,)) for name in ("a", "b")}
    plain = chosen((model, 1024), SumOfErrors())
    scaled = chosen((model, 1024), SumOfErrors(), scale={"a": 2.0})
    assert scaled.points["a"].cost > plain.points["a"].cost
    assert scaled.points["b"].cost < plain.points["b"].cost


def test_without_budgets_nothing_is_cut() -> None:
    shape = LayerShape(out_features=32, in_channels=32)
    model = {"a": spectra(np.eye(32), shape, (1,))}
    found = choose(Candidates(spectra=model), [], LargestError(), FREE, tolerance=1.0)
    assert found.cuts == {}
