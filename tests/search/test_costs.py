"""What choices cost, against the definition; searches over other costs and several budgets."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Cuts, LayerShape, Scheme, Spectra, Work
from alds_onnx.search.costs import (
    PARAMETERS,
    Ban,
    Cost,
    Macs,
    Mixture,
    Terms,
    cost_of,
    total_cost,
)
from alds_onnx.search.exact import search_exact
from alds_onnx.search.frontier import frontier
from alds_onnx.search.several import Room, search_within

from .layers import choices, errors, made_up, models, models_and_budgets

# Shares are whole numbers of 2^-40 of a budget.
ROUNDING = 1e-9

Solution = tuple[float, dict[str, "Cut | None"]]


def shapes_of(model: dict[str, Spectra]) -> dict[str, LayerShape]:
    return {name: spectra.shape for name, spectra in model.items()}


def uses_of(model: dict[str, Spectra], seed: int) -> dict[str, int]:
    generator = np.random.default_rng(seed)
    return {name: int(generator.integers(1, 50)) for name in sorted(model)}


def macs_of(model: dict[str, Spectra], uses: dict[str, int]) -> Macs:
    """Layers of one fold, whose entries are used so often each."""
    numbers = {name: uses[name] * spectra.shape.num_parameters for name, spectra in model.items()}
    return Macs(work={name: (Work(macs=macs),) for name, macs in numbers.items()})


def macs_by_hand(shape: LayerShape, uses: int, cut: Cut | None) -> int:
    """Entries of each factor, times the output positions that both of them make."""
    if cut is None:
        return uses * shape.out_features * shape.num_columns
    k, j, c = cut.num_slices, cut.rank, shape.in_channels
    encoder = k * j * (c // k) * shape.kernel_size
    return uses * (encoder + shape.out_features * k * j)


def everything(model: dict[str, Spectra]) -> list[dict[str, Cut | None]]:
    """All combinations of all choices."""
    options = [
        [Cut(num_slices=c.num_slices, rank=c.rank) if c.rank else None for c in choices(spectra)]
        for spectra in model.values()
    ]
    return [dict(zip(model, combination, strict=True)) for combination in product(*options)]


def solver(model: dict[str, Spectra]):
    def solve(room: Room) -> Solution:
        cuts = search_exact(model, room.allowed, terms=Terms(cost=room.cost))
        return errors(model, cuts)[0], cuts

    return solve


@given(models(), st.integers(0, 99))
def test_macs_are_entries_times_uses(model: dict[str, Spectra], seed: int) -> None:
    uses = uses_of(model, seed)
    cost = macs_of(model, uses)
    for name, spectra in model.items():
        cuts = [Cut(num_slices=c.num_slices, rank=c.rank) for c in choices(spectra) if c.rank]
        for cut in (None, *cuts):
            expected = macs_by_hand(spectra.shape, uses[name], cut)
            assert cost_of(cost, name, spectra.shape, cut) == expected


@given(models_and_budgets(), st.integers(0, 99), st.floats(0.1, 1))
def test_a_search_over_macs_finds_the_smallest_largest_error(
    drawn: tuple[dict[str, Spectra], int], seed: int, part: float
) -> None:
    model, shapes = drawn[0], shapes_of(drawn[0])
    cost = macs_of(model, uses_of(model, seed))
    totals = [total_cost(cost, shapes, cuts) for cuts in everything(model)]
    budget = min(totals) + int(part * (max(totals) - min(totals)))
    found = search_exact(model, budget, terms=Terms(cost=cost))
    best = min(
        errors(model, cuts)[0]
        for cuts, spent in zip(everything(model), totals, strict=True)
        if spent <= budget
    )
    assert total_cost(cost, shapes, found) <= budget
    assert errors(model, found)[0] == best


@given(models(most=2), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_several_budgets_are_all_kept(
    model: dict[str, Spectra], seed: int, first: float, second: float
) -> None:
    shapes, costs = shapes_of(model), (PARAMETERS, macs_of(model, uses_of(model, seed)))
    rooms = []
    for cost, part in zip(costs, (first, second), strict=True):
        totals = [total_cost(cost, shapes, cuts) for cuts in everything(model)]
        allowed = min(totals) + int(part * (max(totals) - min(totals)))
        rooms.append(Room(cost=cost, allowed=allowed, slack=0))
    found = search_within(rooms, shapes, solver(model), lambda solution: solution)
    assert found is not None
    for room in rooms:
        assert total_cost(room.cost, shapes, found[1]) <= room.allowed
    alone = [solver(model)(room)[0] for room in rooms]
    assert found[0] >= max(alone)


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
    rooms = [Room(cost=cost, allowed=dense // 4, slack=0) for cost in costs]
    assert search_within(rooms, {"a": shape}, solver(model), lambda found: found) is None


def test_one_budget_is_what_the_search_makes_of_it() -> None:
    shape = LayerShape(out_features=8, in_channels=8)
    room = Room(cost=PARAMETERS, allowed=20, slack=3)
    asked: list[Room] = []

    def solve(room: Room) -> Solution:
        asked.append(room)
        return 1.0, {"a": None}

    assert search_within([room], {"a": shape}, solve, lambda found: found) == (1.0, {"a": None})
    assert asked == [room]


@given(models(), st.lists(st.integers(1, 2000), min_size=2, max_size=2), st.floats(0, 1))
def test_a_mixture_is_the_weighted_sum_of_shares(
    model: dict[str, Spectra], allowed: list[int], weight: float
) -> None:
    parts = (PARAMETERS, macs_of(model, uses_of(model, 0)))
    mixture = Mixture(parts=parts, allowed=tuple(allowed), weights=(weight, 1 - weight))
    for name, spectra in model.items():
        for choice in choices(spectra):
            cut = Cut(num_slices=choice.num_slices, rank=choice.rank) if choice.rank else None
            own = [cost_of(part, name, spectra.shape, cut) for part in parts]
            expected = weight * own[0] / allowed[0] + (1 - weight) * own[1] / allowed[1]
            found = cost_of(mixture, name, spectra.shape, cut) / mixture.limit
            assert math.isclose(found, min(expected, 1 << 12), rel_tol=ROUNDING, abs_tol=ROUNDING)


def _falling(shape: LayerShape) -> Spectra:
    return made_up(shape, {1: [1 - 0.1 * i for i in range(1, 7)]})


@pytest.mark.parametrize(
    ("ban", "gone"),
    [
        (Ban(num_slices=1, above=1), {(1, 2), (1, 3)}),
        (Ban(num_slices=1, above=0, block=2), {(1, 2)}),
        (Ban(num_slices=1, above=1, block=2, aligned=False), {(1, 3)}),
        (Ban(num_slices=2, above=0), set()),
        (Ban(scheme=Scheme.DECODE, num_slices=1, above=0), set()),
    ],
)
def test_banned_cuts_are_not_chosen(ban: Ban, gone: set[tuple[int, int]]) -> None:
    shape = LayerShape(out_features=8, in_channels=8)
    spectra = _falling(shape)

    def points(terms: Terms) -> set[tuple[int, int]]:
        found = frontier("a", spectra, terms=terms)
        return set(zip(found.num_slices.tolist(), found.rank.tolist(), strict=True))

    free = points(Terms())
    assert gone <= free
    left = points(Terms(bans={"a": [ban], "b": [Ban(num_slices=1, above=0)]}))
    assert not left & gone
    assert free - gone <= left
