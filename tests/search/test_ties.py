"""Equal singular values: the largest error is the same at many ranks, squared errors are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Spectra
from alds_onnx.decompose.factorize import compose, factorize
from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.search.alignment import FREE
from alds_onnx.search.choose import Candidates, LargestError
from alds_onnx.search.costs import PARAMETERS_ONLY
from alds_onnx.search.frontier import Point
from alds_onnx.search.minmax import minimize_maximum_error

from ..decompose.matrices import spectra

SIZE = 64
SHAPE = LayerShape(out_features=SIZE, in_channels=SIZE)


def permutation(seed: int) -> FloatArray:
    return np.eye(SIZE)[np.random.default_rng(seed).permutation(SIZE)]


def curves(matrix: FloatArray, slices: tuple[int, ...] = (1,)) -> Spectra:
    return spectra(matrix, SHAPE, slices)


def search(model: dict[str, Spectra], allowed: int) -> dict[str, Point]:
    return LargestError().search(Candidates(spectra=model), FREE, PARAMETERS_ONLY, allowed)


def squared_error(matrix: FloatArray, cut: Cut | None) -> float:
    """||W - Ŵ||_F² / ||W||_F², from the factors themselves."""
    if cut is None:
        return 0.0
    left = matrix - compose(factorize(matrix, SHAPE, cut))
    return float((left**2).sum() / (matrix**2).sum())


@given(st.integers(0, 9), st.integers(2 * SIZE, SIZE * SIZE - 1))
def test_one_permutation_gets_all_ranks_that_the_budget_allows(seed: int, allowed: int) -> None:
    (point,) = search({"a": curves(permutation(seed))}, allowed).values()
    assert point.cut is not None
    assert point.cost <= allowed < point.cost + 2 * SIZE
    assert squared_error(permutation(seed), point.cut) == pytest.approx(1 - point.cut.rank / SIZE)


@given(st.integers(0, 9), st.sampled_from([0.3, 0.5, 0.7]))
def test_slices_are_as_good_as_one_or_better(seed: int, part: float) -> None:
    matrix, allowed = permutation(seed), int(part * SIZE * SIZE)
    errors = [
        squared_error(matrix, search({"a": curves(matrix, slices)}, allowed)["a"].cut)
        for slices in ((1,), (1, 2, 4, 8, 16))
    ]
    assert errors[1] <= errors[0] + 1e-12


def test_with_a_tied_layer_the_sum_of_squared_errors_falls() -> None:
    """The largest error stays as it is; the rest of the budget goes where it lowers most."""
    generator = np.random.default_rng(0)
    falling = generator.normal(size=(SIZE, SIZE)) @ np.diag(0.9 ** np.arange(SIZE))
    matrices = {"tied": permutation(0), "falling": falling}
    model = {name: curves(matrix) for name, matrix in matrices.items()}
    frontiers = list(Candidates(spectra=model).frontiers(FREE).values())
    allowed = SIZE * SIZE

    def total(points: dict[str, Point]) -> float:
        return sum(squared_error(matrices[name], point.cut) for name, point in points.items())

    found = search(model, allowed)
    untied = {
        f.name: Point(f, i)
        for f, i in zip(frontiers, minimize_maximum_error(frontiers, allowed), strict=True)
    }
    assert max(point.error for point in found.values()) == 1.0
    assert max(point.error for point in untied.values()) == 1.0
    assert sum(point.cost for point in found.values()) <= allowed
    assert total(found) < 0.9 * total(untied)


def test_without_ties_the_choice_is_the_lexicographic_one() -> None:
    """A tie between two layers is none within a layer."""
    matrix = np.random.default_rng(1).normal(size=(SIZE, SIZE))
    model = {name: curves(matrix, (1, 2)) for name in "ab"}
    frontiers = Candidates(spectra=model).frontiers(FREE)
    found = search(model, SIZE * SIZE)
    assert all(
        point.frontier.cost.tolist() == frontiers["a"].cost.tolist() for point in found.values()
    )
