"""The exact search compared with all combinations of all choices."""

from __future__ import annotations

from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Spectra
from alds_onnx.search.frontier import frontier
from alds_onnx.search.minmax import smallest_parameters

from .layers import (
    best_errors,
    choices,
    chosen,
    cost,
    errors,
    made_up,
    models,
    models_and_budgets,
    search_exact,
    tied,
)
from .test_frontier import TIED

Case = tuple[dict[str, Spectra], int]


@given(models_and_budgets(ties=False))
def test_no_combination_within_the_budget_is_better(case: Case) -> None:
    model, budget = case
    # Among layers with the very same error, which to improve first is a knapsack problem.
    assume(not tied(model))
    assert errors(model, search_exact(model, budget)) == best_errors(model, budget)


@given(models_and_budgets(ties=True))
def test_where_layers_tie_the_largest_error_is_the_smallest_and_rarest(case: Case) -> None:
    model, budget = case
    found, best = errors(model, search_exact(model, budget)), best_errors(model, budget)
    assert found[0] == best[0]
    assert Counter(found)[best[0]] == Counter(best)[best[0]]


@given(models_and_budgets(most=6))
def test_the_budget_is_kept_and_no_further_step_fits_into_it(case: Case) -> None:
    model, budget = case
    cuts = search_exact(model, budget)
    rest = budget - cost(model, cuts)
    assert rest >= 0
    for name, spectra in model.items():
        now = chosen(spectra, cuts[name])
        better = [c.num_parameters for c in choices(spectra) if c.error < now.error]
        assert all(count - now.num_parameters > rest for count in better)


@given(models_and_budgets(most=6), st.randoms(use_true_random=False))
def test_the_order_of_layers_changes_nothing(case: Case, random: object) -> None:
    model, budget = case
    shuffled = list(model.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert search_exact(dict(shuffled), budget) == search_exact(model, budget)


def test_of_twins_the_first_name_goes_first_in_any_order() -> None:
    twin = made_up(TIED, {1: [0.9, 0.5]})
    for names in ("ab", "ba"):
        cuts = search_exact(dict.fromkeys(names, twin), 12 + 24)
        assert cuts == {"a": Cut(num_slices=1, rank=2), "b": Cut(num_slices=1, rank=1)}


@given(models_and_budgets(most=6), st.integers(1, 50))
def test_a_larger_budget_never_makes_the_largest_error_larger(case: Case, more: int) -> None:
    model, budget = case
    before, after = (errors(model, search_exact(model, b)) for b in (budget, budget + more))
    assert after[0] <= before[0]


@given(models(most=6))
def test_at_the_smallest_budget_every_layer_is_at_its_smallest(model: dict[str, Spectra]) -> None:
    cuts = search_exact(model, smallest_parameters(model))
    assert cuts == {name: frontier(name, s).cut(0) for name, s in model.items()}


@given(models(most=6))
def test_where_everything_fits_dense_nothing_is_cut(model: dict[str, Spectra]) -> None:
    dense = sum(s.shape.num_parameters for s in model.values())
    assert set(search_exact(model, dense).values()) == {None}


def test_a_model_without_layers_has_no_cuts() -> None:
    assert search_exact({}, 0) == {}
