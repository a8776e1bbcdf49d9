"""Small models of several kinds, and calibration data for them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from alds_onnx.calibrate.reader import Feed
from tests.graph.builders import Array, normal, parse, run

CR = 0.4

DENSE = "m (float[N,24] x) => (float[N,16] y) { h = Gemm(x, w1, b1) a = Relu(h) y = MatMul(a, w2) }"
CONV = """m (float[N,8,6,6] x) => (float[N,10] y) {
    h = Conv<pads=[1,1,1,1]>(x, w1, b1) a = Relu(h)
    g = Conv<strides=[2,2]>(a, w2) r = Relu(g)
    p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w3, b3)
}"""
SHARED = "m (float[N,24] x) => (float[N,24] y) { h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w1) }"
BRANCH = """m (float[N,24] x) => (float[N,16] y) {
    h = MatMul(x, w1) a = Relu(h) s = ReduceSum<keepdims=0>(x)
    zero = Constant<value = float {0.0}>() up = Greater(s, zero)
    y = If(up) <
        then_branch = t () => (float[N,16] p) { p = MatMul(a, w2) },
        else_branch = e () => (float[N,16] q) { q = MatMul(a, w3) }
    >
}"""


def models() -> dict[str, ModelProto]:
    return {
        "dense": parse(DENSE, {"w1": normal(24, 32), "b1": normal(32), "w2": normal(32, 16)}),
        "conv": parse(
            CONV,
            {
                "w1": normal(16, 8, 3, 3),
                "b1": normal(16),
                "w2": normal(24, 16, 3, 3),
                "w3": normal(24, 10),
                "b3": normal(10),
            },
        ),
        "shared": parse(SHARED, {"w1": normal(24, 24)}),
        "branch": parse(
            BRANCH, {"w1": normal(24, 32), "w2": normal(32, 16), "w3": normal(32, 16, seed=1)}
        ),
    }


def feeds(kind: str, count: int = 6, seed: int = 0) -> list[Feed]:
    """Make correlated inputs, like real ones; ranks chosen by data exploit the correlation."""
    shape = (8, 6, 6) if kind == "conv" else (24,)
    mix = normal(4, int(np.prod(shape)), seed=99)
    return [
        {"x": (normal(32, 4, seed=seed + i) @ mix).reshape(32, *shape) + np.float32(0.5)}
        for i in range(count)
    ]


def relative_error(before: ModelProto, after: ModelProto, data: list[Feed]) -> float:
    def outputs(model: ModelProto) -> Array:
        return np.concatenate([run(model, feed)[0] for feed in data])

    y, z = outputs(before), outputs(after)
    return float(np.linalg.norm(y - z) / np.linalg.norm(y))
