"""Rows times the folded weight are the outputs of the node, as onnxruntime gives them."""

from __future__ import annotations

import numpy as np
import pytest

from alds_onnx.calibrate.statistics import sample_rows
from alds_onnx.graph.layers import read_matrix
from alds_onnx.graph.scopes import ModelIndex
from tests.graph.builders import NOWHERE, Array, normal, only_layer, parse, run

# Sums of some ten products in float32, in another order than onnxruntime's.
ROUNDING = 1e-4

CONVS = {
    "1d": ((9,), (3,), "group=1"),
    "1d strided": ((10,), (3,), "strides=[2], pads=[2,0]"),
    "2d": ((6, 7), (3, 2), "group=1"),
    "2d pads": ((6, 7), (3, 2), "pads=[1,0,2,1], strides=[2,1]"),
    "2d dilated": ((9, 9), (3, 3), "dilations=[2,3], pads=[2,1,0,3]"),
    "3d": ((5, 4, 6), (2, 3, 2), "pads=[0,1,1,1,0,0], strides=[1,2,3], dilations=[2,1,1]"),
    "upper": ((7, 8), (2, 3), 'auto_pad="SAME_UPPER", strides=[2,3]'),
    "lower": ((7, 8), (2, 3), 'auto_pad="SAME_LOWER", strides=[2,1]'),
    "valid": ((7, 8), (2, 3), 'auto_pad="VALID", strides=[2,3]'),
}


def outputs_of_rows(model, x: Array, count: int = 10**6) -> Array:
    layer, index = only_layer(model), ModelIndex(model)
    node = index.node(layer.site)
    rows = sample_rows(layer, node, x, count, np.random.default_rng(0))
    return rows @ read_matrix(index, layer, NOWHERE).T


@pytest.mark.parametrize("kind", CONVS)
def test_conv(kind: str) -> None:
    sizes, kernel, attributes = CONVS[kind]
    dims = ",".join(map(str, sizes))
    model = parse(
        f"m (float[2,4,{dims}] x) => (float y) {{ y = Conv<{attributes}>(x, w) }}",
        {"w": normal(8, 4, *kernel)},
    )
    x = normal(2, 4, *sizes)
    (y,) = run(model, {"x": x})
    wanted = np.moveaxis(y, 1, -1).reshape(-1, 8)  # (N, oh, ow, f) as rows
    np.testing.assert_allclose(outputs_of_rows(model, x), wanted, atol=ROUNDING)


MATRICES = {
    "gemm": ("Gemm(x, w)", (5, 8), (8, 16), False),
    "gemm B": ("Gemm<transB=1>(x, w)", (5, 8), (16, 8), False),
    "gemm A": ("Gemm<transA=1>(x, w)", (8, 5), (8, 16), False),
    "gemm left": ("Gemm(w, x)", (8, 5), (16, 8), True),
    "gemm left A": ("Gemm<transA=1>(w, x)", (8, 5), (8, 16), True),
    "gemm left B": ("Gemm<transB=1>(w, x)", (5, 8), (16, 8), True),
    "right 1": ("MatMul(x, w)", (8,), (8, 16), False),
    "right 2": ("MatMul(x, w)", (5, 8), (8, 16), False),
    "right 3": ("MatMul(x, w)", (3, 5, 8), (8, 16), False),
    "right 4": ("MatMul(x, w)", (2, 3, 5, 8), (8, 16), False),
    "left 1": ("MatMul(w, x)", (8,), (16, 8), False),
    "left 2": ("MatMul(w, x)", (8, 5), (16, 8), True),
    "left 3": ("MatMul(w, x)", (3, 8, 5), (16, 8), True),
    "left 4": ("MatMul(w, x)", (2, 3, 8, 5), (16, 8), True),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_gemm_and_matmul(kind: str) -> None:
    call, sizes, weight, columns = MATRICES[kind]
    dims = ",".join(map(str, sizes))
    model = parse(f"m (float[{dims}] x) => (float y) {{ y = {call} }}", {"w": normal(*weight)})
    x = normal(*sizes)
    (y,) = run(model, {"x": x})
    wanted = (np.moveaxis(y, -2, -1) if columns else y).reshape(-1, 16)
    np.testing.assert_allclose(outputs_of_rows(model, x), wanted, atol=ROUNDING)


@pytest.mark.parametrize("call", ["MatMul(x, w)", "Conv(x, w)"])
def test_the_same_generator_draws_the_same_positions(call: str) -> None:
    kernel = (1, 1) if "Conv" in call else ()
    shape = (2, 8, 6, 8)
    weight = normal(16, 8, *kernel) if kernel else normal(8, 16)
    model = parse(f"m (float[2,8,6,8] x) => (float y) {{ y = {call} }}", {"w": weight})
    layer, node = only_layer(model), model.graph.node[0]
    x = normal(*shape)
    first, second, other = (
        sample_rows(layer, node, a, 20, np.random.default_rng(seed))
        for a, seed in ((x, 1), (2 * x, 1), (x, 2))
    )
    assert first.shape == (20, 8)
    np.testing.assert_array_equal(2 * first, second)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == 20, "drawn without replacement"
