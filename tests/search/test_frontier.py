"""Frontiers against a comparison of every choice with every other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Spectra
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.minmax import smallest_parameters

from .layers import Choice, choices, is_strictly_monotone, layers, made_up, models, undominated


def choices_of(found: Frontier) -> list[Choice]:
    columns = (found.cost, found.error, found.num_slices, found.rank)
    return [Choice(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


@given(layers())
def test_a_frontier_holds_the_undominated_choices(spectra: Spectra) -> None:
    assert choices_of(frontier("layer", spectra)) == undominated(spectra)


@given(layers())
def test_parameters_rise_and_errors_fall_to_the_dense_layer(spectra: Spectra) -> None:
    found = frontier("layer", spectra)
    assert is_strictly_monotone(found.cost.tolist())
    assert is_strictly_monotone((-found.error).tolist())
    assert found.cut(len(found) - 1) is None
    assert found.cost[-1] == spectra.shape.num_parameters
    assert found.error[-1] == 0


@given(layers(), st.floats(0, 1))
def test_cheapest_is_the_first_choice_at_or_below_the_threshold(
    spectra: Spectra, threshold: float
) -> None:
    found = frontier("layer", spectra)
    for limit in (threshold, *found.error.tolist()):
        expected = min(c.num_parameters for c in choices(spectra) if c.error <= limit)
        assert found.cost[found.cheapest(limit)] == expected


@given(layers())
def test_a_frontier_of_some_curves_is_that_of_a_layer_without_the_others(spectra: Spectra) -> None:
    for curve in spectra.curves:
        found = frontier("layer", replace(spectra, curves=(curve,)))
        alone = Spectra(shape=spectra.shape, norm=1.0, curves=(curve,))
        assert choices_of(found) == undominated(alone)


# With f = 4 and c = 8 each rank costs 12 at k = 1 and 24 at k = 4: rank 2 costs as much as rank 1.
TIED = LayerShape(out_features=4, in_channels=8)


@pytest.mark.parametrize(
    ("error_at_4", "winner"),
    [
        (0.5, Cut(num_slices=1, rank=2)),
        (0.4, Cut(num_slices=4, rank=1)),
        (0.6, Cut(num_slices=1, rank=2)),
    ],
)
def test_ties_go_to_the_smaller_number_of_slices(error_at_4: float, winner: Cut) -> None:
    spectra = made_up(TIED, {1: [0.9, 0.5, 0.2], 4: [error_at_4]})
    found = frontier("layer", spectra)
    index = found.cost.tolist().index(24)
    assert found.cut(index) == winner


def test_a_cut_that_loses_nothing_stands_in_for_the_dense_layer() -> None:
    found = frontier("layer", made_up(TIED, {1: [0.3, 0.0, 0.0]}))
    assert found.cut(len(found) - 1) == Cut(num_slices=1, rank=2)
    assert found.error.tolist() == [0.3, 0.0]


@given(models())
def test_the_smallest_model_has_the_cheapest_choice_of_each_layer(
    model: dict[str, Spectra],
) -> None:
    expected = sum(min(c.num_parameters for c in choices(s)) for s in model.values())
    assert smallest_parameters(model) == expected


def test_a_model_without_layers_has_no_parameters() -> None:
    assert smallest_parameters({}) == 0
