"""Shapes, ranks and hints at input sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from alds_onnx.graph.scopes import Key, ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks, known_shapes, sizes_from_weights
from tests.graph.builders import normal, parse
from tests.graph.test_rewrite_rest import function_model, if_model


def test_shapes_and_ranks() -> None:
    model = parse(
        "g (float[N, 8] x) => (float[N, 12] y) { h = MatMul(x, W) y = Relu(h) }",
        {"W": normal(8, 12)},
    )
    index = ModelIndex(model)
    assert known_ranks(index, infer(model)) == {Key(0, n): 2 for n in "xhyW"}
    assert known_shapes(index, infer(model)) == {Key(0, "W"): (8, 12)}
    assert known_shapes(index, infer(model, {"x": (3, 8)}))[Key(0, "h")] == (3, 12)


def test_shape_of_a_reshape_is_followed() -> None:
    """Small integer tensors are not stripped: inference reads them."""
    model = parse(
        "g (float[2, 8] x) => (float[a, b, c] y) { y = Reshape(x, s) }", {"s": np.array([2, 2, 4])}
    )
    assert known_shapes(ModelIndex(model), infer(model))[Key(0, "y")] == (2, 2, 4)


def test_inference_leaves_the_model_and_drops_its_weights() -> None:
    model = if_model()
    big = numpy_helper.from_array(normal(30, 30))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["big"], value=big))
    model.graph.initializer.append(numpy_helper.from_array(normal(40, 40), "large"))
    before = model.SerializeToString(deterministic=True)
    inferred = infer(model)
    assert model.SerializeToString(deterministic=True) == before
    assert inferred.ByteSize() < 4 * (30 * 30 + 40 * 40)
    assert known_shapes(ModelIndex(model), inferred)[Key(0, "big")] == (30, 30)


def test_shapes_in_subgraphs() -> None:
    model = if_model()
    index = ModelIndex(model)
    shapes = known_shapes(index, infer(model))
    assert [shapes[Key(scope, "h")] for scope in (1, 2)] == [(3, 12), (3, 12)]


def test_functions_have_no_shapes() -> None:
    model = function_model()
    ranks = known_ranks(ModelIndex(model), infer(model))
    assert {key.scope for key in ranks} == {0}


def test_failed_inference_gives_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no inference")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    model = parse(
        "g (float[N, 8] x) => (float[N, 12] y) { h = MatMul(x, W) y = Relu(h) }",
        {"W": normal(8, 12)},
    )
    assert set(known_ranks(ModelIndex(model), infer(model))) == {Key(0, n) for n in "xyW"}


def test_contradictory_shapes_do_not_stop_it() -> None:
    model = parse(
        "g (float[3, 9] x) => (float[3, 12] y) { y = MatMul(x, W) }", {"W": normal(8, 12)}
    )
    assert known_shapes(ModelIndex(model), infer(model))[Key(0, "y")] == (3, 12)


@pytest.mark.parametrize(("graph", "weight", "hints"), [
    ("g (float[a, b, c, d] x) => (float[n, m, o, p] y) { y = Conv(x, W) }",
     (12, 8, 3, 3), {("x", 1): 8}),
    ("g (float[a, b, c, d] x) => (float[n, m, o, p] y) { y = Conv<group = 2>(x, W) }",
     (12, 4, 3, 3), {("x", 1): 8}),
    ("g (float[a, b] x) => (float[n, m] y) { y = Gemm(x, W) }", (8, 12), {("x", 1): 8}),
    ("g (float[a, b] x) => (float[n, m] y) { y = Gemm<transB = 1>(x, W) }",
     (12, 8), {("x", 1): 8}),
    ("g (float[a, b] x) => (float[n, m] y) { y = Gemm<transA = 1>(x, W) }",
     (8, 12), {("x", 0): 8}),
    ("g (float[a, b, c] x) => (float[n, m, o] y) { y = MatMul(x, W) }", (8, 12), {("x", 2): 8}),
    ("g (float[a, b] x) => (float[n, m] y) { h = Relu(x) y = MatMul(h, W) }", (8, 12), {}),
    ("g (float[a, b] x) => (float[n, m] y) { y = MatMul(W, x) }", (12, 8), {}),
    ("g (float[a, b] x, float[c, d] v) => (float[n, m] y) { y = MatMul(x, v) }", (8, 12), {}),
    ("g (float[a, b] x) => (float[n, m] y) { v = Abs(W) y = MatMul(x, v) }", (8, 12), {}),
])  # fmt: skip
@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant"])
def test_hints(
    graph: str, weight: tuple[int, ...], hints: dict[tuple[str, int], int], constant: bool
) -> None:
    assert sizes_from_weights(ModelIndex(with_weight(graph, weight, constant))) == hints


def with_weight(graph: str, weight: tuple[int, ...], constant: bool) -> ModelProto:
    if not constant:
        return parse(graph, {"W": normal(*weight)})
    model = parse(graph)
    value = numpy_helper.from_array(normal(*weight))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=value))
    return model


def test_no_hint_for_an_undefined_weight() -> None:
    model = parse("g (float[a, b] x) => (float[n, m] y) { y = MatMul(x, nothing) }")
    assert sizes_from_weights(ModelIndex(model)) == {}
