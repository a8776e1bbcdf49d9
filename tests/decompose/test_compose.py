"""Slicing and composing only move numbers around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Factors, LayerShape
from alds_onnx.decompose.factorize import compose
from alds_onnx.linalg.slices import slices

from .matrices import ROUNDING, Weight, columns_of_slices, weights_and_counts


@given(weights_and_counts())
def test_slices_are_the_columns_in_order_without_a_copy(case: tuple[Weight, int]) -> None:
    weight, k = case
    parts = slices(weight.matrix, k)
    np.testing.assert_array_equal(parts, np.stack(columns_of_slices(weight.matrix, k)))
    assert np.shares_memory(parts, weight.matrix)


@given(weights_and_counts(), st.integers(1, 3), st.integers(0, 100))
def test_composing_puts_the_products_side_by_side(
    case: tuple[Weight, int], rank: int, seed: int
) -> None:
    weight, k = case
    generator = np.random.default_rng(seed)
    U = generator.standard_normal((k, weight.shape.out_features, rank))
    V = generator.standard_normal((k, rank, weight.shape.num_columns // k))
    factors = Factors(shape=weight.shape, U=U, V=V)
    expected = np.hstack([U[i] @ V[i] for i in range(k)])
    np.testing.assert_allclose(compose(factors), expected, rtol=ROUNDING, atol=ROUNDING)
    assert factors.cut == Cut(num_slices=k, rank=rank)


@given(weights_and_counts())
def test_composing_undoes_slicing(case: tuple[Weight, int]) -> None:
    weight, k = case
    V = slices(weight.matrix, k)
    identity = np.broadcast_to(np.eye(weight.shape.out_features), (k, *[V.shape[1]] * 2))
    factors = Factors(shape=weight.shape, U=identity, V=V)
    np.testing.assert_array_equal(compose(factors), weight.matrix)


@pytest.mark.parametrize(("f", "c"), [(0, 4), (4, 0)])
def test_empty_weights_compose_to_empty_weights(f: int, c: int) -> None:
    factors = Factors(
        shape=LayerShape(out_features=f, in_channels=c),
        U=np.zeros((2, f, 1)),
        V=np.zeros((2, 1, c // 2)),
    )
    assert compose(factors).shape == (f, c)
