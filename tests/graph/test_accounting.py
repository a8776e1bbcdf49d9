"""Parameters, bytes and multiply-accumulates, against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alds_onnx.graph.accounting import model_bytes, num_parameters, work_of_layers
from alds_onnx.graph.rewrite import rewrite
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_shapes
from tests.graph.builders import Array, normal, parse, replacements_of
from tests.graph.test_rewrite_rest import function_model, if_model

IDENTITY = "g (float[3] x) => (float[3] y) { y = Relu(x) }"


def count(model: ModelProto) -> int:
    return num_parameters(ModelIndex(model))


@pytest.mark.parametrize(("array", "expected"), [
    (normal(3, 4), 12),
    (normal(3, 4, dtype="float64"), 12),
    (normal(3, 4, dtype="float16"), 12),
    (normal(3, 4).astype(ml_dtypes.bfloat16), 12),
    (normal(3, 4).astype(ml_dtypes.float8_e4m3fn), 12),
    (normal(3, 4).astype(ml_dtypes.float4_e2m1fn), 12),
    (np.float32(1), 1),
    (normal(0, 4), 0),
    (np.ones((3, 4), np.int64), 0),
    (np.ones((3, 4), np.int8), 0),
    (np.ones((3, 4), bool), 0),
])  # fmt: skip
def test_initializer(array: Array, expected: int) -> None:
    assert count(parse(IDENTITY, {"W": array})) == expected


def sparse(*names: str) -> object:
    values, indices = (
        numpy_helper.from_array(normal(2), names[0]),
        numpy_helper.from_array(np.array([0, 3]), names[1]),
    )
    return helper.make_sparse_tensor(values, indices, [8])


@pytest.mark.parametrize(("attributes", "expected"), [
    ({"value": numpy_helper.from_array(normal(3, 4))}, 12),
    ({"value": numpy_helper.from_array(np.ones((3, 4), np.int64))}, 0),
    ({"value_float": 1.0}, 1),
    ({"value_floats": [1.0, 2.0, 3.0]}, 3),
    ({"value_int": 1}, 0),
    ({"value_ints": [1, 2]}, 0),
    ({"sparse_value": sparse("", "")}, 2),
])  # fmt: skip
@pytest.mark.parametrize("domain", ["", "ai.onnx", "com.example"])
def test_constant_node(attributes: dict[str, object], expected: int, domain: str) -> None:
    model = parse(IDENTITY)
    node = helper.make_node("Constant", [], ["W"], domain=domain, **attributes)
    model.graph.node.insert(0, node)
    assert count(model) == (0 if domain == "com.example" else expected)


def test_sparse_initializer_counts_what_is_stored() -> None:
    model = parse(IDENTITY)
    model.graph.sparse_initializer.append(sparse("s", "i"))
    assert count(model) == 2


def test_other_tensor_attributes_are_no_parameters() -> None:
    model = parse(IDENTITY)
    value = numpy_helper.from_array(normal(1))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["x"], ["z"], value=value))
    assert count(model) == 0


def test_subgraphs_and_functions() -> None:
    assert count(if_model()) == 8 * 12 + 12 + 2 * 12 * 12
    assert count(function_model()) == 12 * 8 * 3  # called twice, there once


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_factors_cost_what_the_plan_says(num_slices: int) -> None:
    """rank·(k·f + c·kh·kw) in place of f·c·kh·kw."""
    model = parse(
        "g (float[1, 8, 6, 6] x) => (float[1, 12, 4, 4] y) { y = Conv(x, W, B) }",
        {"W": normal(12, 8, 3, 3), "B": normal(12)},
    )
    after = rewrite(model, replacements_of(model, num_slices, 2))
    assert count(after) == 2 * (num_slices * 12 + 8 * 9) + 12


def test_bytes_count_external_data(tmp_path: Path) -> None:
    model = parse(IDENTITY, {"W": normal(3, 4, dtype="float16")})
    inline = model_bytes(model)
    assert inline == len(model.SerializeToString())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    assert model_bytes(model) == len(model.SerializeToString()) + 24


MACS = {
    "Conv": (
        "g (float[2, 8, 9, 9] x) => (float[2, 12, n, m] y) { y = Conv(x, W) }",
        (12, 8, 3, 3),
        2 * 12 * 7 * 7 * 8 * 9,
    ),
    "strided, padded": (
        "g (float[1, 8, 9, 9] x) => (float[1, 12, n, m] y) "
        "{ y = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, W) }",
        (12, 8, 3, 3),
        12 * 5 * 5 * 8 * 9,
    ),
    "grouped": (
        "g (float[1, 8, 9, 9] x) => (float[1, 12, n, m] y) { y = Conv<group = 4>(x, W) }",
        (12, 2, 3, 3),
        12 * 7 * 7 * 2 * 9,
    ),
    "Conv1D": (
        "g (float[1, 8, 9] x) => (float[1, 12, n] y) { y = Conv(x, W) }",
        (12, 8, 3),
        12 * 7 * 8 * 3,
    ),
    "Gemm": ("g (float[5, 8] x) => (float[n, m] y) { y = Gemm(x, W) }", (8, 12), 5 * 12 * 8),
    "Gemm transA": (
        "g (float[8, 5] x) => (float[n, m] y) { y = Gemm<transA = 1>(x, W) }",
        (8, 12),
        5 * 12 * 8,
    ),
    "Gemm transB": (
        "g (float[5, 8] x) => (float[n, m] y) { y = Gemm<transB = 1>(x, W) }",
        (12, 8),
        5 * 12 * 8,
    ),
    "MatMul": ("g (float[5, 8] x) => (float[n, m] y) { y = MatMul(x, W) }", (8, 12), 5 * 12 * 8),
    "batched": (
        "g (float[2, 3, 5, 8] x) => (float[a, b, c, d] y) { y = MatMul(x, W) }",
        (8, 12),
        2 * 3 * 5 * 12 * 8,
    ),
    "batched weight": (
        "g (float[3, 5, 8] x) => (float[a, b, c] y) { y = MatMul(x, W) }",
        (3, 8, 12),
        3 * 5 * 12 * 8,
    ),
    "weight on the left": (
        "g (float[8, 5] x) => (float[n, m] y) { y = MatMul(W, x) }",
        (12, 8),
        12 * 5 * 8,
    ),
    "vector": ("g (float[8] x) => (float[n] y) { y = MatMul(x, W) }", (8, 12), 12 * 8),
    "inner product": ("g (float[8] x) => (float y) { y = MatMul(x, W) }", (8,), 8),
    "free batch": ("g (float[N, 8] x) => (float[N, m] y) { y = MatMul(x, W) }", (8, 12), None),
}


def macs_of_layers(index: ModelIndex, inferred: ModelProto) -> list[int]:
    return [work.macs for work in work_of_layers(index, known_shapes(index, inferred)).values()]


@pytest.mark.parametrize("name", MACS)
def test_macs(name: str) -> None:
    graph, weight, expected = MACS[name]
    model = parse(graph, {"W": normal(*weight)})
    index = ModelIndex(model)
    known = [] if expected is None else [expected]
    assert macs_of_layers(index, infer(model)) == known


def test_macs_with_given_input_sizes() -> None:
    model = parse("g (float[N, 8] x) => (float[N, m] y) { y = MatMul(x, W) }", {"W": normal(8, 12)})
    index = ModelIndex(model)
    inferred = infer(model, {"x": (7, 8)})
    assert macs_of_layers(index, inferred) == [7 * 12 * 8]


def test_macs_skip_other_nodes_and_reach_subgraphs() -> None:
    model = if_model()
    index = ModelIndex(model)
    found = macs_of_layers(index, infer(model))
    assert len(found) == 4
    assert set(found) == {3 * 12 * 8, 3 * 12 * 12}
