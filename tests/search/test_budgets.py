"""Searches within several budgets, compared with all combinations of all choices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Spectra
from alds_onnx.errors import BudgetError
from alds_onnx.search.alignment import FREE
from alds_onnx.search.budgets import Allowance, parameter_budget, search_allowances, search_within
from alds_onnx.search.choose import Candidates, Choice, LargestError
from alds_onnx.search.costs import PARAMETERS, Cost, CostModel, Cuts, total_cost

from .layers import models
from .test_costs import _falling, everything, macs_of, shapes_of, uses_of


def solver(model: dict[str, Spectra]) -> Callable[[Allowance], Choice]:
    def solve(one: Allowance) -> Choice:
        objective, cost_model = LargestError(), CostModel(cost=one.cost)
        points = objective.search(Candidates(spectra=model), FREE, cost_model, one.allowed)
        cuts = {name: point.cut for name, point in points.items() if point.cut}
        value = objective.value([point.error for point in points.values()])
        return Choice(cuts=cuts, points=points, objective=value)

    return solve


def every_layer(model: dict[str, Spectra], choice: Choice) -> dict[str, Cut | None]:
    return {name: choice.cuts.get(name) for name in model}


@given(models(most=2), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_several_budgets_are_all_kept(
    model: dict[str, Spectra], seed: int, first: float, second: float
) -> None:
    shapes, costs = shapes_of(model), (PARAMETERS, macs_of(model, uses_of(model, seed)))
    allowances = []
    for cost, part in zip(costs, (first, second), strict=True):
        totals = [total_cost(cost, shapes, cuts) for cuts in everything(model)]
        allowed = min(totals) + int(part * (max(totals) - min(totals)))
        allowances.append(Allowance(cost=cost, allowed=allowed, slack=0))
    found = search_allowances(allowances, shapes, solver(model))
    assert found is not None
    for one in allowances:
        assert total_cost(one.cost, shapes, every_layer(model, found)) <= one.allowed
    single = [solver(model)(one).objective for one in allowances]
    assert found.objective >= max(single)


def test_budgets_that_nothing_keeps_together_find_nothing() -> None:
    class Reversed:
        """What is saved of the one is spent of the other."""

        def dense(self, name: str, shape: LayerShape) -> int:
            return 0

        def cuts(self, name: str, shape: LayerShape, cuts: Cuts) -> np.ndarray:
            return shape.num_parameters - PARAMETERS.cuts(name, shape, cuts)

    shape = LayerShape(out_features=8, in_channels=8)
    model = {"a": _falling(shape)}
    dense = shape.num_parameters
    costs: tuple[Cost, Cost] = (PARAMETERS, Reversed())
    allowances = [Allowance(cost=cost, allowed=dense // 4, slack=0) for cost in costs]
    assert search_allowances(allowances, {"a": shape}, solver(model)) is None


def test_one_budget_is_what_the_search_makes_of_it() -> None:
    shape = LayerShape(out_features=8, in_channels=8)
    allowance = Allowance(cost=PARAMETERS, allowed=20, slack=3)
    asked: list[Allowance] = []
    found = Choice(cuts={}, objective=1.0)

    def solve(one: Allowance) -> Choice:
        asked.append(one)
        return found

    assert search_allowances([allowance], {"a": shape}, solve) is found
    assert asked == [allowance]


def test_a_budget_out_of_reach_says_what_can_be_reached() -> None:
    shape = LayerShape(out_features=8, in_channels=8)
    budget = parameter_budget(100, 0.99)
    with pytest.raises(BudgetError, match=r"at most 0\.4800 of the 100 parameters"):
        search_within([budget], {"a": shape}, lambda cost: 16, lambda one: Choice(cuts={}))
