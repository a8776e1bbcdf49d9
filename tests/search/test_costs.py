"""What choices cost, against the definition; searches over other costs."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Scheme, Spectra, Work
from alds_onnx.search.costs import (
    PARAMETERS,
    CostModel,
    ExcludedRanks,
    Macs,
    Mixture,
    cost_of,
    total_cost,
)
from alds_onnx.search.frontier import frontier

from .layers import choices, errors, made_up, models, models_and_budgets, search_exact

# Shares are whole numbers of 2^-40 of a budget.
ROUNDING = 1e-9


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
    found = search_exact(model, budget, cost_model=CostModel(cost=cost))
    best = min(
        errors(model, cuts)[0]
        for cuts, spent in zip(everything(model), totals, strict=True)
        if spent <= budget
    )
    assert total_cost(cost, shapes, found) <= budget
    assert errors(model, found)[0] == best


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
        (ExcludedRanks(num_slices=1, above=1), {(1, 2), (1, 3)}),
        (ExcludedRanks(num_slices=1, above=0, block=2), {(1, 2)}),
        (ExcludedRanks(num_slices=1, above=1, block=2, aligned=False), {(1, 3)}),
        (ExcludedRanks(num_slices=2, above=0), set()),
        (ExcludedRanks(scheme=Scheme.DECODE, num_slices=1, above=0), set()),
    ],
)
def test_banned_cuts_are_not_chosen(ban: ExcludedRanks, gone: set[tuple[int, int]]) -> None:
    shape = LayerShape(out_features=8, in_channels=8)
    spectra = _falling(shape)

    def points(cost_model: CostModel) -> set[tuple[int, int]]:
        found = frontier("a", spectra, cost_model=cost_model)
        return set(zip(found.num_slices.tolist(), found.rank.tolist(), strict=True))

    free = points(CostModel())
    assert gone <= free
    left = points(CostModel(excluded={"a": [ban], "b": [ExcludedRanks(num_slices=1, above=0)]}))
    assert not left & gone
    assert free - gone <= left
