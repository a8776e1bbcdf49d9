"""Weights that depend on constants only, in the forms in which exports have them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.graph.constants.compute import NotComputedError, compute
from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.results import Status
from tests.graph.builders import (
    NOWHERE,
    Array,
    assert_close,
    layers_of,
    names_in,
    normal,
    only_layer,
    parse,
    replacements_of,
    run,
)

X = "g (float[3, 8] x) => (float[3, 12] y)"
FEEDS = {"x": normal(3, 8, seed=1)}


class Form(NamedTuple):
    """How a weight `V` of shape (8, 12) is made, and from what."""

    graph: str
    constants: dict[str, Array]
    opset: int = 17


W = normal(8, 12)
FORMS = {
    "weight normalization": Form(
        "n = ReduceL2<axes = [0], keepdims = 1>(W) u = Div(W, n) V = Mul(g, u)",
        {"W": W, "g": normal(1, 12)},
    ),
    "cast": Form("V = Cast<to = 1>(W)", {"W": W.astype(np.float16)}),
    "scale": Form("V = Mul(W, s)", {"W": W, "s": np.float32(3)}),
    "LoRA": Form(
        "D = MatMul(A, B) S = Mul(D, s) V = Add(W, S)",
        {"W": W, "A": normal(8, 2), "B": normal(2, 12), "s": np.float32(0.5)},
    ),
    "concat": Form("V = Concat<axis = 1>(Q, K)", {"Q": normal(8, 4), "K": normal(8, 8)}),
    "int8": Form(
        "V = DequantizeLinear<axis = 1>(Q, s, z)",
        {
            "Q": np.clip(normal(8, 12) * 40, -127, 127).astype(np.int8),
            "s": np.abs(normal(12)) + np.float32(0.1),
            "z": np.zeros(12, np.int8),
        },
    ),
    "where": Form(
        "Z = ConstantOfShape(d) V = Where(m, W, Z)",
        {"W": W, "d": np.array([8, 12]), "m": normal(8, 12) > -1},
    ),
    "computed, then moved": Form(
        "A = Abs(W) T = Transpose(A) V = Identity(T)", {"W": normal(12, 8)}
    ),
    "computed shape": Form(
        "d = Shape(m) V = Reshape(W, d)", {"W": normal(96), "m": np.zeros((8, 12), np.int64)}
    ),
    "pad and slice": Form(
        "P = Slice(W, b, e) V = Transpose(P)",
        {"W": normal(14, 8), "b": np.array([1]), "e": np.array([13])},
    ),
}


def model_of(form: Form) -> ModelProto:
    return parse(f"{X} {{ {form.graph} y = MatMul(x, V) }}", form.constants, opset=form.opset)


@pytest.mark.parametrize("name", FORMS)
def test_the_rewrite_is_the_product_of_the_factors_and_nothing_is_left(name: str) -> None:
    model = model_of(FORMS[name])
    done = replacements_of(model, 2, 3)
    assert len(done) == 1
    actual, dense = rewrite(model, done), with_composed_weights(model, done)
    onnx.checker.check_model(actual, full_check=True)
    assert_close(run(actual, FEEDS), run(dense, FEEDS))
    assert names_in(actual) & names_in(model) == {"x", "y"}
    # Onnxruntime quantizes the activation too where int8 weights meet it, and is less exact.
    matrix = read_matrix(ModelIndex(model), done[0].layers[0], NOWHERE).astype(np.float32)
    full = rewrite(model, replacements_of(model, 1, None))
    assert_close(run(full, FEEDS), [FEEDS["x"] @ matrix.T])


@pytest.mark.parametrize("name", FORMS)
def test_the_weight_is_what_onnxruntime_computes(name: str) -> None:
    model = model_of(FORMS[name])
    matrix = read_matrix(ModelIndex(model), next(layer for layer in layers_of(model)
                         if isinstance(layer, Layer)), NOWHERE)  # fmt: skip
    read = parse(f"g (float[8, 8] x) => (float[8, 12] y) {{ {FORMS[name].graph} "
                 "y = MatMul(x, V) }", FORMS[name].constants)  # fmt: skip
    (expected,) = run(read, {"x": np.eye(8, dtype=np.float32)})
    np.testing.assert_allclose(matrix.T, expected, rtol=1e-5, atol=1e-6)


def test_end_to_end_with_data_and_back() -> None:
    model = model_of(FORMS["weight normalization"])
    result = alds_onnx.compress(
        model, cr=0.2, calibration=[{"x": normal(3, 8, seed=i)} for i in range(40)], threads=1
    )
    assert result.plan.removed >= 0.2
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED
    again = alds_onnx.compress(model, plan=result.plan, threads=1)
    assert [row.cut for row in again.plan.layers] == [row.cut for row in result.plan.layers]
    merged = alds_onnx.merge(result.model, threads=1).model
    assert [node.op_type for node in merged.graph.node] == ["MatMul"]
    assert_close(run(merged, FEEDS), run(result.model, FEEDS))


def test_what_else_reads_the_small_constants_keeps_them() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { V = Mul(W, s) h = MatMul(x, V) y = Mul(h, s) }",
        {"W": W, "s": np.float32(3)},
    )
    actual = rewrite(model, replacements_of(model, 1, 3))
    assert {"W", "V", "s"} & names_in(actual) == {"s"}


def test_nodes_that_were_dead_before_stay() -> None:
    model = parse(f"{X} {{ V = Abs(W) unused = Neg(c) y = MatMul(x, V) }}",
                  {"W": W, "c": normal(5)})  # fmt: skip
    actual = rewrite(model, replacements_of(model, 1, 3))
    assert {"unused", "c"} <= names_in(actual)
    assert "V" not in names_in(actual)


def test_an_input_that_a_caller_may_give_stays() -> None:
    """The shape of a Reshape, whose default is read on the way to a weight."""
    model = parse(
        "g (float[3, 8] x, int64[2] s) => (float[3, 12] y) { V = Reshape(W, s) y = MatMul(x, V) }",
        {"W": normal(96), "s": np.array([8, 12])},
    )
    actual = rewrite(model, replacements_of(model, 1, 3))
    assert [value.name for value in actual.graph.input] == ["x", "s"]
    assert "s" in [tensor.name for tensor in actual.graph.initializer]


FUSED = """
g (float[3, 8] x) => (float[3, 8] q, float[3, 8] k, float[3, 8] v) {
    Wq, Wk, Wv = Split<axis = 1>(W, sizes)
    [q] q = MatMul(x, Wq)
    [k] k = MatMul(x, Wk)
    [v] v = MatMul(x, Wv)
}
"""


def fused() -> ModelProto:
    """One weight of three; the third is noise, so that it is cut least."""
    low = [normal(8, 1, seed=i) @ normal(1, 8, seed=i + 9) for i in range(2)]
    return parse(
        FUSED,
        {"W": np.concatenate([*low, normal(8, 8)], axis=1), "sizes": np.array([8, 8, 8])},
    )


def test_parts_of_one_constant_are_cut_one_by_one() -> None:
    model = fused()
    result = alds_onnx.compress(model, cr=0.45, exclude=["v"], threads=1)
    rows = {row.name: row for row in result.plan.layers}
    assert [rows[name].cut is not None for name in "qkv"] == [True, True, False]
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED
    assert not {"W", "sizes", "Wq", "Wk"} & names_in(result.model)
    kept = 8 * 8 + sum(rows[name].parameters_after for name in "qk")
    assert result.plan.parameters_after == kept
    assert_close(run(result.model, FEEDS)[2:], run(model, FEEDS)[2:])


def test_part_of_one_constant_that_another_node_reads_keeps_all() -> None:
    graph = FUSED.replace("[v] v = MatMul(x, Wv)", "v = Add(x, Wv)").replace("[3, 8]", "[8, 8]")
    model = parse(graph, {"W": normal(8, 24), "sizes": np.array([8, 8, 8])})
    reasons = [row.reason for row in layers_of(model) if not isinstance(row, Layer)]
    assert len(reasons) == 2
    assert all("also read by Add" in reason for reason in reasons)


SHARED = {
    "Identity": "V = Identity(W)",
    "two Transposes": "T = Transpose(W) V = Transpose(T)",
    "Reshapes": "F = Reshape(W, flat) V = Reshape(F, square)",
}


@pytest.mark.parametrize("way", SHARED)
def test_layers_share_through_nodes_that_move_entries(way: str) -> None:
    model = parse(
        f"g (float[3, 8] x) => (float[3, 8] y) {{ {SHARED[way]} h = MatMul(x, W) "
        "r = Relu(h) y = MatMul(r, V) }",
        {"W": normal(8, 8), "flat": np.array([4, 16]), "square": np.array([8, 8])},
    )
    (done,) = replacements_of(model, 2, 2)
    assert len(done.layers) == 2
    actual, dense = rewrite(model, [done]), with_composed_weights(model, [done])
    assert_close(run(actual, FEEDS), run(dense, FEEDS))
    assert "V" not in names_in(actual)


def test_layers_share_what_is_computed_once_and_across_scopes() -> None:
    model = parse(
        "g (bool c, float[3, 8] x) => (float[3, 8] y) { W = Abs(v) h = MatMul(x, W) y = If (c) <"
        "then_branch = t () => (float[3, 8] u) { V = Identity(W) u = MatMul(h, V) }, "
        "else_branch = e () => (float[3, 8] u) { u = Neg(h) }> }",
        {"v": normal(8, 8)},
    )
    (done,) = replacements_of(model, 1, 3)
    assert len(done.layers) == 2
    feeds = FEEDS | {"c": np.array(True)}
    actual, dense = rewrite(model, [done]), with_composed_weights(model, [done])
    onnx.checker.check_model(actual, full_check=True)
    assert_close(run(actual, feeds), run(dense, feeds))


def test_another_order_of_entries_is_another_weight() -> None:
    """Transpose(W) of a square W has its shape, but not its entries."""
    model = parse(
        "g (float[3, 8] x) => (float[3, 8] y) "
        "{ V = Transpose(W) h = MatMul(x, W) y = MatMul(h, V) }",
        {"W": normal(8, 8)},
    )
    assert not any(isinstance(row, Layer) for row in layers_of(model))


def test_a_size_that_is_too_large_is_not_tried() -> None:
    model = parse("g () => (float[100000, 100000] y) { y = Expand(c, s) }",
                  {"c": normal(100000), "s": np.array([100000, 100000])})  # fmt: skip
    index = ModelIndex(model)
    definition = index.resolve(0, "y")
    assert definition is not None
    with pytest.raises(NotComputedError, match="takes too much"):
        compute(index, definition, NOWHERE)


def test_a_shape_is_folded_without_numbers() -> None:
    layer = only_layer(model_of(FORMS["computed, then moved"]))
    assert layer.source.shape == (8, 12)
    assert layer.source.tensor.raw_data == b""
