"""Stages are the factors, as convolutions that are applied one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Factors, FloatArray, LayerShape, Scheme, distinct
from alds_onnx.decompose.factorize import compose, factorize
from alds_onnx.decompose.stages import factors_of_stages, match, stage_weights, stages
from tests.schemes.test_structures import cuts, drawn, full, shape_of

# Some hundred sums of products in float64.
ROUNDING = 1e-10


def chained(weights: tuple[FloatArray, ...], groups: int) -> FloatArray:
    """The dense weight (f, c, *kernel) of convolutions in turn, of which only the first has groups.

    Where one has an axis of the kernel, the others have 1 there: kernels are multiplied entry by
    entry.
    """
    first, *others = weights
    out, width = first.shape[:2]
    dense = np.zeros((out, width * groups, *first.shape[2:]))
    for i in range(groups):
        rows = slice(i * out // groups, (i + 1) * out // groups)
        dense[rows, i * width : (i + 1) * width] = first[rows]
    for weight in others:
        axes = "xyz"[: weight.ndim - 2]
        kernel = np.broadcast_shapes(weight.shape[2:], dense.shape[2:])
        a = np.broadcast_to(weight, (*weight.shape[:2], *kernel))
        b = np.broadcast_to(dense, (*dense.shape[:2], *kernel))
        dense = np.einsum(f"ab{axes},bc{axes}->ac{axes}", a, b)
    return dense


@given(cuts(), st.integers(0, 20))
def test_stages_in_turn_are_the_composed_weight(case: tuple[LayerShape, Cut], seed: int) -> None:
    shape, cut = case
    factors = factorize(drawn(shape, seed), shape, cut)
    weights = stage_weights(factors)
    found = stages(shape, cut)
    assert [w.shape for w in weights] == [stage.weight_shape(shape) for stage in found]
    assert [stage.groups for stage in found[1:]] == [1] * (len(found) - 1)
    dense = chained(weights, found[0].groups).reshape(shape.out_features, -1)
    np.testing.assert_allclose(dense, compose(factors), rtol=0, atol=ROUNDING)


@given(cuts())
def test_every_axis_of_the_kernel_belongs_to_one_stage(case: tuple[LayerShape, Cut]) -> None:
    shape, cut = case
    found = stages(shape, cut)
    assert tuple(stage.axes for stage in found) == cut.scheme.structure.axes(shape)
    for axes in zip(*(stage.axes for stage in found), strict=True):
        assert sum(axes) == 1
    entries = [int(np.prod(stage.weight_shape(shape))) for stage in found]
    assert tuple(entries) == cut.parameters_of_factors(shape)


@given(cuts(), st.integers(0, 20))
def test_factors_come_back_from_their_stages(case: tuple[LayerShape, Cut], seed: int) -> None:
    shape, cut = case
    factors = factorize(drawn(shape, seed), shape, cut)
    back = factors_of_stages(shape, cut, stage_weights(factors))
    assert back.cut == cut
    for part, wanted in zip(back.parts, factors.parts, strict=True):
        np.testing.assert_array_equal(part, wanted)


@given(cuts())
def test_the_cut_comes_back_from_the_shapes_of_its_stages(case: tuple[LayerShape, Cut]) -> None:
    shape, cut = case
    weights = [stage.weight_shape(shape) for stage in stages(shape, cut)]
    assert match(weights, cut.num_slices) == (shape, cut)


@pytest.mark.parametrize("kernel", [(1, 1), (3,), (3, 3), (2, 1, 3)], ids=str)
def test_of_equal_schemes_the_first_is_found(kernel: tuple[int, ...]) -> None:
    shape = shape_of(kernel)
    for scheme in (s for s in Scheme if s.structure.sliced(shape)):
        cut = full(shape, scheme, 2)
        found = match([stage.weight_shape(shape) for stage in stages(shape, cut)], 2)
        assert found is not None
        assert found[1].scheme is distinct(shape, [scheme])[0]


@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        ([(4, 3, 3, 1), (5, 4, 1, 1), (5, 5, 1, 3)], 1),  # three stages that share a kernel
        ([(4, 3, 3, 3), (5, 6, 1, 1)], 1),  # numbers of channels that differ
        ([(5, 3, 3, 3), (5, 5, 1, 1)], 2),  # outputs that the groups do not divide
        ([(4, 3, 3, 3), (5, 4, 1)], 1),  # kernels of different ranks
        ([(4, 0, 3, 3), (5, 4, 1, 1)], 1),  # nothing at all
        ([(4, 3, 3, 3), (5, 4, 1, 1)], 0),
        ([(4, 3, 3, 3), (5, 4, 1, 1), (6, 5, 1, 1), (7, 6, 1, 1)], 1),  # four stages
    ],
)
def test_other_chains_are_none_of_ours(weights: list[tuple[int, ...]], groups: int) -> None:
    assert match(weights, groups) is None


@given(cuts())
def test_zeros_have_the_sizes_of_factors(case: tuple[LayerShape, Cut]) -> None:
    shape, cut = case
    zeros, factors = Factors.zeros(shape, cut), factorize(drawn(shape), shape, cut)
    assert [part.shape for part in zeros.parts] == [part.shape for part in factors.parts]
    assert not any(part.any() for part in zeros.parts)
    assert zeros.cut == cut
