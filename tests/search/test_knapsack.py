"""The knapsack search compared with all combinations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.knapsack import minimize_sum_of_errors
from alds_onnx.search.minmax import smallest_cost
from tests.search.layers import models_and_budgets

# Sums of a few errors of about 1 in float64.
ROUNDING = 1e-12


def made_up(name: str, parameters: list[int], errors: list[float]) -> Frontier:
    count = len(parameters)
    rank = np.arange(1, count + 1)
    rank[-1] = 0
    return Frontier(
        name=name,
        cost=np.array(parameters),
        error=np.array(errors),
        num_slices=np.minimum(rank, 1),
        rank=rank,
        scheme=np.zeros_like(rank),
        rank_out=np.zeros_like(rank),
    )


def convex(name: str, seed: int, count: int, step: int) -> Frontier:
    """Steps of one cost whose gains fall."""
    gains = np.sort(np.random.default_rng(seed).uniform(0.01, 1.0, count - 1))
    errors = [*np.cumsum(gains)[::-1], 0.0]
    return made_up(name, [step * (i + 1) for i in range(count)], errors)


def cost(frontiers: list[Frontier], chosen: list[int]) -> int:
    return sum(int(f.cost[i]) for f, i in zip(frontiers, chosen, strict=True))


def error(frontiers: list[Frontier], chosen: list[int] | tuple[int, ...]) -> float:
    return float(sum(f.error[i] for f, i in zip(frontiers, chosen, strict=True)))


def optimum(frontiers: list[Frontier], budget: int) -> float:
    combinations = product(*(range(len(f)) for f in frontiers))
    return min(error(frontiers, c) for c in combinations if cost(frontiers, list(c)) <= budget)


def largest_hull_step(f: Frontier) -> float:
    """Largest gain between neighbours on the lower convex hull."""
    at, largest = 0, 0.0
    while at + 1 < len(f):
        slopes = (f.error[at + 1 :] - f.error[at]) / (f.cost[at + 1 :] - f.cost[at])
        after = at + 1 + int(np.argmin(slopes))
        largest = max(largest, float(f.error[at] - f.error[after]))
        at = after
    return largest


def frontiers_of(model: dict[str, object]) -> list[Frontier]:
    return [frontier(name, spectra) for name, spectra in model.items()]  # type: ignore[arg-type]


@given(models_and_budgets())
def test_fits_the_budget_and_is_one_step_from_the_optimum(drawn: tuple[dict, int]) -> None:
    model, budget = drawn
    frontiers = frontiers_of(model)
    chosen = minimize_sum_of_errors(frontiers, budget)
    assert cost(frontiers, chosen) <= budget
    found, best = error(frontiers, chosen), optimum(frontiers, budget)
    assert found >= best - ROUNDING
    assert found <= best + max(map(largest_hull_step, frontiers)) + ROUNDING


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_exact_where_steps_cost_the_same_and_gains_fall(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    frontiers = [convex(str(i), seed + i, n, step=7) for i, n in enumerate(sizes)]
    budget = data.draw(st.integers(7 * len(sizes), 7 * sum(sizes) + 7))
    found = error(frontiers, minimize_sum_of_errors(frontiers, budget))
    assert found == pytest.approx(optimum(frontiers, budget), abs=ROUNDING)


@given(models_and_budgets(), st.randoms())
def test_the_order_of_layers_does_not_matter(drawn: tuple[dict, int], random) -> None:
    model, budget = drawn
    frontiers = frontiers_of(model)
    shuffled = list(frontiers)
    random.shuffle(shuffled)
    first, second = (
        {f.name: i for f, i in zip(layers, minimize_sum_of_errors(layers, budget), strict=True)}
        for layers in (frontiers, shuffled)
    )
    assert first == second


def test_equal_layers_are_told_apart_by_name_only() -> None:
    a, b = (made_up(name, [10, 20], [1.0, 0.0]) for name in "ab")
    assert minimize_sum_of_errors([a, b], 30) == minimize_sum_of_errors([b, a], 30)[::-1]


@given(models_and_budgets())
def test_where_everything_fits_nothing_is_lost(drawn: tuple[dict, int]) -> None:
    frontiers = frontiers_of(drawn[0])
    everything = sum(int(f.cost[-1]) for f in frontiers)
    assert error(frontiers, minimize_sum_of_errors(frontiers, everything)) == 0.0


@given(models_and_budgets())
def test_the_smallest_budget_takes_the_cheapest_of_all(drawn: tuple[dict, int]) -> None:
    frontiers = frontiers_of(drawn[0])
    assert minimize_sum_of_errors(frontiers, smallest_cost(frontiers)) == [0] * len(frontiers)


@given(models_and_budgets())
def test_what_is_left_buys_nothing_more(drawn: tuple[dict, int]) -> None:
    model, budget = drawn
    frontiers = frontiers_of(model)
    chosen = minimize_sum_of_errors(frontiers, budget)
    rest = budget - cost(frontiers, chosen)
    for f, i in zip(frontiers, chosen, strict=True):
        assert i + 1 == len(f) or f.cost[i + 1] - f.cost[i] > rest


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e3, 1e9])
def test_the_unit_of_the_error_does_not_matter(scale: float) -> None:
    frontiers = [convex(str(i), i, 6, step=1000) for i in range(4)]
    scaled = [made_up(f.name, list(f.cost), list(scale * f.error)) for f in frontiers]
    for budget in range(4000, 24001, 1500):
        assert minimize_sum_of_errors(scaled, budget) == minimize_sum_of_errors(frontiers, budget)


def test_no_layers_no_choices() -> None:
    assert minimize_sum_of_errors([], 10) == []
