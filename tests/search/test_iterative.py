"""Algorithm 1 of the paper: its invariants, and the results of its two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Spectra
from alds_onnx.search.frontier import frontier
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.minmax import minimize_maximum_error, smallest_cost, smallest_parameters

from .layers import choices, chosen, cost, errors, made_up, models, models_and_budgets, search_exact

Case = tuple[dict[str, Spectra], int]
# 75 global steps for each search: fewer examples.
slow = settings(max_examples=10)


def search(model: dict[str, Spectra], budget: int, seed: int = 0) -> dict[str, Cut | None]:
    points = search_iterative(model, budget, np.random.default_rng(seed))
    return {name: point.cut for name, point in points.items()}


@slow
@given(models_and_budgets(most=6), st.integers(0, 10))
def test_the_budget_is_kept_with_cuts_that_save_parameters(case: Case, seed: int) -> None:
    model, budget = case
    cuts = search(model, budget, seed)
    assert cost(model, cuts) <= budget
    for name, spectra in model.items():
        assert chosen(spectra, cuts[name]) in choices(spectra)


@slow
@given(models_and_budgets(most=6), st.integers(0, 10))
def test_exact_is_at_least_as_good(case: Case, seed: int) -> None:
    model, budget = case
    assert (
        errors(model, search_exact(model, budget))[0]
        <= errors(model, search(model, budget, seed))[0]
    )


@slow
@given(models_and_budgets(most=6))
def test_it_is_as_good_as_each_of_its_fixed_starts(case: Case) -> None:
    model, budget = case
    found = errors(model, search(model, budget))[0]
    for wanted in (3, 5, 7, 9):
        frontiers = []
        for name, spectra in model.items():
            distances = [abs(curve.num_slices - wanted) for curve in spectra.curves]
            nearest = max(
                curve.num_slices
                for curve, distance in zip(spectra.curves, distances, strict=True)
                if distance == min(distances)
            )
            frontiers.append(frontier(name, replace(spectra, curves=(spectra.curve(nearest),))))
        if smallest_cost(frontiers) <= budget:
            indices = minimize_maximum_error(frontiers, budget)
            best = max(f.error[i] for f, i in zip(frontiers, indices, strict=True))
            assert found <= best


@slow
@given(models_and_budgets(most=6), st.randoms(use_true_random=False), st.integers(0, 10))
def test_the_order_of_layers_changes_nothing(case: Case, random: object, seed: int) -> None:
    model, budget = case
    shuffled = list(model.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert search(dict(shuffled), budget, seed) == search(model, budget, seed)


@slow
@given(models_and_budgets(most=6), st.integers(0, 10))
def test_the_same_seed_gives_the_same_cuts(case: Case, seed: int) -> None:
    model, budget = case
    assert search(model, budget, seed) == search(model, budget, seed)


@slow
@given(models(most=6))
def test_at_the_smallest_budget_every_layer_is_at_its_smallest(model: dict[str, Spectra]) -> None:
    smallest = smallest_parameters(model)
    cuts = search(model, smallest)
    assert cost(model, cuts) == smallest
    assert cuts == {name: frontier(name, s).cut(0) for name, s in model.items()}


@slow
@given(models(most=6))
def test_where_everything_fits_dense_nothing_is_cut(model: dict[str, Spectra]) -> None:
    dense = sum(s.shape.num_parameters for s in model.values())
    assert set(search(model, dense).values()) == {None}


def test_a_model_without_layers_has_no_cuts() -> None:
    assert search({}, 0) == {}


def test_a_layer_that_no_cut_makes_smaller_stays_dense() -> None:
    row = made_up(LayerShape(out_features=1, in_channels=4), {1: [], 2: [], 4: []})
    assert search({"row": row}, 4) == {"row": None}


class AlwaysTheSmallest:
    """Draws k = 1 in every random start, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def choice(self, counts: Sequence[int]) -> int:
        self.asked.append(tuple(counts))
        return counts[0]


def test_random_starts_are_drawn_by_name() -> None:
    model = {
        "b": made_up(LayerShape(out_features=4, in_channels=6), {1: [0.5], 3: [0.5]}),
        "a": made_up(LayerShape(out_features=4, in_channels=4), {1: [0.5], 2: [0.5]}),
    }
    drawn = AlwaysTheSmallest()
    search_iterative(model, 40, cast(np.random.Generator, drawn))
    assert drawn.asked == [(1, 2), (1, 3)] * 11


# Each rank costs 64 + 16·k: 128 at k = 4, 192 at k = 8, 320 at k = 16, 576 at k = 32. No start is
# at 16 or 32: only the local step, at what the layer has, leads there.
WIDE = LayerShape(out_features=16, in_channels=64)


@pytest.mark.parametrize(
    ("budget", "best"),
    [
        # At k = 1 rank 8 costs 640: enough for rank 2 at k = 16, and for rank 1 at k = 32.
        (640, Cut(num_slices=16, rank=2)),
        # Rank 4 costs 320: enough for rank 1 at k = 16.
        (320, Cut(num_slices=16, rank=1)),
    ],
)
def test_the_local_step_reads_the_error_of_the_rank_that_is_paid_for(
    budget: int, best: Cut
) -> None:
    flat = {1: [0.9] * 15, 4: [0.9] * 15, 8: [0.9] * 7}
    # At 640 parameters k = 16 has 0.1 and k = 32 has 0.5; one rank earlier 0.6 and 1.
    spectra = made_up(
        WIDE, flat | {1: list(np.linspace(0.95, 0.8, 15)), 16: [0.6, 0.1, 0.05], 32: [0.5]}
    )
    generator = cast(np.random.Generator, AlwaysTheSmallest())
    assert search_iterative({"wide": spectra}, budget, generator)["wide"].cut == best


def test_halving_the_slices_makes_any_start_affordable() -> None:
    # Only k = 1 fits: all four fixed starts are halved down to it.
    spectra = made_up(WIDE, {k: [0.5, 0.4] for k in (1, 2, 4, 8)})
    assert search({"a": spectra, "b": spectra}, 160) == dict.fromkeys(
        "ab", Cut(num_slices=1, rank=1)
    )


def test_a_local_step_that_the_budget_cannot_pay_is_the_last_one() -> None:
    # k = 1 pays rank 2 (160), k = 8 rank 1 (192) does not fit: the step must not go there.
    spectra = made_up(WIDE, {1: [0.9, 0.8, 0.7], 8: [0.1]})
    assert search({"wide": spectra}, 160) == {"wide": Cut(num_slices=1, rank=2)}
