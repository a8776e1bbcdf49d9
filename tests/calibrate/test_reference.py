"""Distances from the original, of whole models and of single weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

from alds_onnx.calibrate.distance import Downstream, can_be_fed
from alds_onnx.calibrate.reference import reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.walk import Walk
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Dense, with_dense_weights
from alds_onnx.runtimes import Provider
from tests.graph.builders import Array, layers_of, normal, only_layer, parse, run

# The same operators in onnxruntime, fused differently.
ROUNDING = 1e-5

PLAIN = "m (float[N,8] x) => (float[N,16] y) { y = MatMul(x, w) }"
MANY = """m (float[N,8] x) => (float[N,16] y, float[N,12] early, int64[2] shape) {
    early = MatMul(x, a)
    h = Gemm<transB=1>(early, w, b)
    r = Relu(h)
    y = Add(r, h)
    shape = Shape(y)
}"""
TWICE = "m (float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }"
CONV = """m (float[N,4,6,6] x) => (float[N,5] y) {
    t = Relu(x) h = Conv<pads=[1,1,1,1]>(t, w, b) p = GlobalAveragePool(h) y = Flatten(p)
}"""


def runner(*shape: int) -> Runner:
    return Runner(
        batches=tuple({"x": normal(4, *shape, seed=s)} for s in range(3)),
        folder=Path("/nowhere"),
        threads=2,
        provider=Provider.CPU,
    )


def test_the_error_of_the_outputs_is_measured() -> None:
    model = parse(PLAIN, {"w": normal(8, 16)})
    original = reference(runner(8), model)
    assert original.distance_of(model) == 0.0
    weight = normal(8, 16).T.astype(np.float64)
    other = with_dense_weights(model, [Dense(layers=(only_layer(model),), matrix=0.7 * weight)])
    assert original.distance_of(other) == pytest.approx(0.09, rel=1e-4)
    assert original.distance(lambda batch: [None]) == 0.0


def test_outputs_of_other_shapes_have_no_distance() -> None:
    model = parse(PLAIN, {"w": normal(8, 16)})
    with pytest.raises(RunError, match="depend on the weights"):
        reference(runner(8), model).distance(lambda batch: [np.zeros((4, 3), np.float32)])


CASES: dict[str, tuple[str, dict[str, Array], tuple[int, ...]]] = {
    "plain": (PLAIN, {"w": normal(8, 16)}, (8,)),
    "many outputs": (
        MANY, {"a": normal(8, 12), "w": normal(16, 12), "b": normal(16)}, (8,)
    ),
    "shared": (TWICE, {"w": normal(8, 8)}, (8,)),
    "conv": (CONV, {"w": normal(5, 4, 3, 3), "b": normal(5)}, (4, 6, 6)),
}  # fmt: skip


def layers_reading_w(model: ModelProto) -> tuple[Layer, ...]:
    found = [x for x in layers_of(model) if isinstance(x, Layer) and x.weight_name == "w"]
    return tuple(found)


@pytest.mark.parametrize("name", CASES)
def test_fed_weights_give_what_the_whole_model_gives(name: str) -> None:
    graph, constants, shape = CASES[name]
    model, data = parse(graph, constants), runner(*shape)
    layers = layers_reading_w(model)
    assert can_be_fed(layers)
    f, n = layers[0].shape.out_features, layers[0].shape.num_columns
    matrix = normal(f, n, seed=7).astype(np.float64)
    bias = normal(f, seed=8).astype(np.float64) if "b" in constants else None
    whole = with_dense_weights(model, [Dense(layers=layers, matrix=matrix, bias=bias)])
    with Walk(data, model) as walk:
        downstream = Downstream(walk, model, layers, biased=bias is not None)
        for batch, feed in enumerate(data.batches):
            outputs = downstream.outputs(batch, matrix, bias)
            for made, expected in zip(outputs, run(whole, feed), strict=True):
                if made is None:  # it does not depend on the layer
                    assert name == "many outputs"
                else:
                    np.testing.assert_allclose(made, expected, rtol=ROUNDING, atol=ROUNDING)
        assert sum(made is None for made in outputs) == (name == "many outputs")


def test_a_layer_that_no_output_depends_on() -> None:
    graph = "m (float[N,8] x) => (float[N,8] y) { y = Relu(x) h = MatMul(x, w) }"
    model, data = parse(graph, {"w": normal(8, 16)}), runner(8)
    with Walk(data, model) as walk:
        downstream = Downstream(walk, model, (only_layer(model),), biased=False)
        assert downstream.outputs(0, np.zeros((16, 8)), None) == [None]


def test_layers_of_branches_cannot_be_fed() -> None:
    graph = """m (float[N,8] x, bool up) => (float[N,8] y) {
        y = If(up) <
            then_branch = t () => (float[N,8] p) { p = MatMul(x, w) },
            else_branch = e () => (float[N,8] q) { q = Relu(x) }
        >
    }"""
    assert not can_be_fed(layers_reading_w(parse(graph, {"w": normal(8, 8)})))
