"""Factors against the theorem of Eckart and Young, and the three names of their error."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, CutError, Factors, FloatArray, LayerShape
from alds_onnx.decompose.factorize import compose, cut_error, factorize
from alds_onnx.linalg import eigen as module
from alds_onnx.linalg.eigen import spectral_norm
from alds_onnx.linalg.slices import slices

from .matrices import (
    RESOLUTION,
    ROUNDING,
    Weight,
    columns_of_slices,
    random_matrix,
    singular_values,
    spectra,
    weights,
    weights_and_counts,
    weights_and_cuts,
)

SHAPE = LayerShape(out_features=6, in_channels=12, kernel=(2,))
# `spectral_norm` promises about seven digits.
SEVEN_DIGITS = 1e-7


def cut_to(weight: Weight, num_slices: int, rank: int) -> Factors:
    return factorize(weight.matrix, weight.shape, Cut(num_slices=num_slices, rank=rank))


def error_of(weight: Weight, num_slices: int, rank: int) -> CutError:
    curves = spectra(weight.matrix, weight.shape, (num_slices,))
    return cut_error(weight.matrix, cut_to(weight, num_slices, rank), curves)


@given(weights_and_counts())
def test_full_rank_reproduces_the_weight(case: tuple[Weight, int]) -> None:
    weight, k = case
    factors = cut_to(weight, k, weight.full_rank(k))
    # Relative to each slice: a small one beside large ones is as exact as they are.
    for got, part in zip(slices(compose(factors), k), slices(weight.matrix, k), strict=True):
        np.testing.assert_allclose(got, part, atol=RESOLUTION * np.abs(part).max(), rtol=0)


@given(weights_and_cuts())
def test_each_slice_is_as_near_as_its_rank_allows(case: tuple[Weight, int, int]) -> None:
    weight, k, rank = case
    got = columns_of_slices(compose(cut_to(weight, k, rank)), k)
    sigma = np.pad(singular_values(weight.matrix, k), ((0, 0), (0, 1)))
    for part, near, s in zip(columns_of_slices(weight.matrix, k), got, sigma, strict=True):
        assert np.linalg.matrix_rank(near, tol=RESOLUTION * s[0]) <= rank
        assert np.linalg.norm(part - near, 2) == pytest.approx(s[rank], abs=RESOLUTION * s[0])


def test_a_cut_that_is_not_the_best_is_noticed() -> None:
    matrix = random_matrix(SHAPE, 0)
    near = compose(factorize(matrix, SHAPE, Cut(num_slices=1, rank=3)))
    near += 1e-3 * random_matrix(SHAPE, 1)
    sigma = singular_values(matrix, 1)[0]
    assert np.linalg.norm(matrix - near, 2) != pytest.approx(sigma[3], abs=RESOLUTION * sigma[0])


@given(weights_and_cuts())
def test_factors_have_as_many_entries_as_the_cut_says(case: tuple[Weight, int, int]) -> None:
    weight, k, rank = case
    factors, shape = cut_to(weight, k, rank), weight.shape
    c_kh_kw = shape.in_channels * int(np.prod(shape.kernel))
    assert factors.U.size + factors.V.size == rank * (c_kh_kw + k * shape.out_features)
    assert factors.cut.num_parameters(shape) == factors.U.size + factors.V.size
    assert factors.U.shape == (k, shape.out_features, rank)
    assert factors.V.shape == (k, rank, c_kh_kw // k)


@given(weights_and_cuts())
def test_factors_are_balanced(case: tuple[Weight, int, int]) -> None:
    weight, k, rank = case
    factors = cut_to(weight, k, rank)
    sigma = singular_values(weight.matrix, k)  # (k, min(f, n/k))
    columns = np.square(factors.U).sum(axis=1)  # (k, j)
    rows = np.square(factors.V).sum(axis=2)
    largest = sigma[:, :1]
    np.testing.assert_allclose(columns, rows, rtol=ROUNDING, atol=0)
    assert (np.abs(columns - sigma[:, :rank]) <= RESOLUTION * largest).all()


@given(weights_and_counts())
def test_factors_are_smaller_than_the_root_of_the_norm(case: tuple[Weight, int]) -> None:
    """What keeps them in the range of half precision wherever the weight is."""
    weight, k = case
    factors = cut_to(weight, k, weight.full_rank(k))
    most = np.sqrt(np.linalg.norm(weight.matrix, 2)) * (1 + ROUNDING)
    assert max(np.abs(factors.U).max(), np.abs(factors.V).max()) <= most


@pytest.mark.parametrize("factor", [1e30, 1e-30, 1e-42, 1e200, 1e-200])
@pytest.mark.parametrize("num_slices", [2, 12])
def test_scaling_a_weight_scales_both_factors_by_the_root(factor: float, num_slices: int) -> None:
    cut = Cut(num_slices=num_slices, rank=2)
    matrix = random_matrix(SHAPE, 4)
    plain, scaled = (factorize(m, SHAPE, cut) for m in (matrix, matrix * factor))
    for name in ("U", "V"):
        grown = np.abs(getattr(scaled, name)) / np.sqrt(factor)  # singular vectors have free signs
        np.testing.assert_allclose(grown, np.abs(getattr(plain, name)), atol=RESOLUTION)
    errors = [
        cut_error(m, f, spectra(m, SHAPE, (num_slices,)))
        for m, f in ((matrix, plain), (matrix * factor, scaled))
    ]
    assert errors[0].relative == pytest.approx(errors[1].relative, abs=RESOLUTION)
    assert errors[0].spectral == pytest.approx(errors[1].spectral, abs=RESOLUTION)


def test_zeros_are_cut_to_zeros_without_error() -> None:
    weight = Weight(SHAPE, np.zeros((6, 24)))
    factors = cut_to(weight, 3, 2)
    assert not factors.U.any()
    assert not factors.V.any()
    assert error_of(weight, 3, 2) == CutError(relative=0, spectral=0, bound=0)


@pytest.mark.parametrize(("k", "rank"), [(1, 5), (2, 6), (12, 2)])
def test_a_weight_of_lower_rank_than_the_cut_is_reproduced(k: int, rank: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((6, 1)) @ generator.standard_normal((1, 24))
    factors = factorize(matrix, SHAPE, Cut(num_slices=k, rank=rank))
    np.testing.assert_allclose(compose(factors), matrix, atol=RESOLUTION)
    assert np.isfinite(factors.U).all()
    assert np.isfinite(factors.V).all()


def test_factors_are_read_only() -> None:
    factors = factorize(random_matrix(SHAPE, 0), SHAPE, Cut(num_slices=2, rank=1))
    for array in (factors.U, factors.V):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("small", [0, 1000])
@pytest.mark.parametrize("num_slices", [1, 2, 12])
def test_a_second_solver_takes_over_where_the_first_fails(
    num_slices: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SMALL", small)
    matrix, cut = random_matrix(SHAPE, 5), Cut(num_slices=num_slices, rank=2)
    expected = compose(factorize(matrix, SHAPE, cut))
    solve, failures = scipy.linalg.eigh, []

    def fail_unless_robust(gram: FloatArray, **options: Any) -> Any:
        if options.get("driver") == "ev":
            return solve(gram, **options)
        failures.append(gram.shape)
        raise np.linalg.LinAlgError("Internal Error.")

    monkeypatch.setattr(scipy.linalg, "eigh", fail_unless_robust)
    monkeypatch.setattr(np.linalg, "eigh", fail_unless_robust)
    found = compose(factorize(matrix, SHAPE, cut))
    assert len(failures) == num_slices
    np.testing.assert_allclose(found, expected, atol=RESOLUTION)


@given(weights_and_cuts())
def test_the_true_error_lies_between_the_relative_one_and_the_bound(
    case: tuple[Weight, int, int],
) -> None:
    weight, k, rank = case
    error = error_of(weight, k, rank)
    assert error.relative <= error.spectral + RESOLUTION
    assert error.spectral <= error.bound + RESOLUTION
    assert error.bound == pytest.approx(error.relative * k**0.5, rel=ROUNDING)


@given(weights_and_cuts())
def test_the_errors_are_what_their_names_say(case: tuple[Weight, int, int]) -> None:
    weight, k, rank = case
    error = error_of(weight, k, rank)
    norm = np.linalg.norm(weight.matrix, 2) or 1.0
    sigma = np.pad(singular_values(weight.matrix, k), ((0, 0), (0, 1)))
    assert error.relative == pytest.approx(sigma[:, rank].max() / norm, abs=RESOLUTION)
    # Ŵ by SVD, slice by slice
    near = []
    for part in columns_of_slices(weight.matrix, k):
        U, s, Vh = np.linalg.svd(part, full_matrices=False)
        near.append((U[:, :rank] * s[:rank]) @ Vh[:rank])
    true = np.linalg.norm(weight.matrix - np.hstack(near), 2) / norm
    if (sigma[:, rank - 1] - sigma[:, rank] > 1e-3 * norm).all():  # else there is more than one Ŵ
        assert error.spectral == pytest.approx(true, abs=RESOLUTION)


@given(weights_and_counts())
def test_all_errors_fall_with_the_rank(case: tuple[Weight, int]) -> None:
    weight, k = case
    errors = [error_of(weight, k, rank) for rank in range(1, weight.full_rank(k) + 1)]
    for before, after in pairwise(errors):
        assert after.relative <= before.relative
        assert after.bound <= before.bound
        assert after.spectral <= before.spectral + RESOLUTION
    assert errors[-1].relative == 0
    assert errors[-1].spectral <= RESOLUTION


@given(weights(), st.booleans(), st.sampled_from([1.0, 1e-42, 1e30, 1e300, 1e-300]))
def test_spectral_norm_is_the_largest_singular_value(
    weight: Weight, transpose: bool, factor: float
) -> None:
    matrix = weight.matrix.T if transpose else weight.matrix
    expected = np.linalg.norm(matrix, 2) * factor
    assert spectral_norm(matrix * factor) == pytest.approx(expected, rel=SEVEN_DIGITS)


@pytest.mark.parametrize("dims", [(0, 0), (0, 3), (3, 0), (3, 2)])
def test_spectral_norm_of_nothing_is_zero(dims: tuple[int, int]) -> None:
    assert spectral_norm(np.zeros(dims)) == 0


def large(name: str) -> FloatArray:
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((module._DENSE_NORM + 16, module._DENSE_NORM + 40))
    if name == "tall":
        return drawn.T
    if name == "tiny":
        return drawn * 1e-42
    if name == "columns sum to zero":
        return np.kron(np.eye(len(drawn) // 2), [[1, -1], [-1, 1]])
    if name == "one entry":
        return np.eye(1, drawn.size, 5).reshape(drawn.shape)
    if name == "nearly one size":
        U, s, Vh = np.linalg.svd(drawn, full_matrices=False)
        return (U * (1 - np.linspace(0, 1e-4, len(s)))) @ Vh
    if name == "one size":
        return np.linalg.qr(drawn.T)[0]
    return drawn


@pytest.mark.parametrize(
    "name",
    ["wide", "tall", "tiny", "columns sum to zero", "one entry", "one size", "nearly one size"],
)
def test_lanczos_and_the_dense_solver_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = large(name)
    iterations = []
    lanczos = scipy.sparse.linalg.eigsh
    monkeypatch.setattr(
        scipy.sparse.linalg, "eigsh", lambda *a, **o: iterations.append(1) or lanczos(*a, **o)
    )
    found = spectral_norm(matrix)
    assert found == spectral_norm(matrix)  # the same in every run
    assert len(iterations) == 2
    monkeypatch.setattr(module, "_DENSE_NORM", max(matrix.shape))
    assert found == pytest.approx(spectral_norm(matrix), rel=SEVEN_DIGITS)
    assert len(iterations) == 2
