"""Which biases may change, and that a changed one is what the model adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.rewrite import Dense, Replacement, constant_bias, rewrite, with_dense_weights
from alds_onnx.graph.scopes import ModelIndex
from tests.graph.builders import NOWHERE, layers_of, normal, parse, replacements_of, run

# Sums of a few products in float32, in another order.
ROUNDING = 1e-4
W, B = normal(16, 8), normal(16, seed=1)

TABLE = {
    "Gemm<transB=1>(x, w, b)": True,
    "Gemm<transB=1, alpha=1.0, beta=1.0>(x, w, b)": True,
    "Gemm<transB=1, alpha=2.0>(x, w, b)": False,
    "Gemm<transB=1, beta=0.5>(x, w, b)": False,
    "Gemm<transB=1>(x, w)": False,
    "Gemm<transB=1>(x, w, )": False,
    "Gemm<transB=1>(x, w, scalar)": False,
    "Gemm<transB=1>(x, w, z)": False,
    "Gemm<transB=1>(x, w, row)": True,
    "Gemm<transB=1>(x, w, shared)": False,
    "Gemm<transB=1>(x, w, bad)": False,
}


def model_of(call: str) -> onnx.ModelProto:
    constants = {
        "w": W,
        "b": B,
        "row": B[None],
        "shared": B,
        "scalar": B[:1],
        "bad": B * np.float32("nan"),
    }
    used = {n: a for n, a in constants.items() if n in call.replace("(", ",").replace(")", ",")}
    used["shared"] = B
    text = (
        f"m (float[N,8] x, float[16] z) => (float y, float o) {{ y = {call} o = Add(shared, z) }}"
    )
    return parse(text, {"w": W, **used})


@pytest.mark.parametrize(("call", "accepted"), TABLE.items())
def test_which_biases_may_change(call: str, accepted: bool) -> None:
    model = model_of(call)
    (layer,) = layers_of(model)
    assert isinstance(layer, Layer)
    found = constant_bias(ModelIndex(model), layer, NOWHERE)
    if accepted:
        np.testing.assert_array_equal(found, B.astype(np.float64))
    else:
        assert found is None


STORED = ["initializer", "Constant", "external", "float_data"]


def stored(how: str, folder: Path) -> onnx.ModelProto:
    text = "m (float[N,8] x) => (float[N,16] y) { y = Gemm<transB=1>(x, w, b) }"
    model = parse(text, {"w": W, "b": B})
    bias = model.graph.initializer[1]
    if how == "Constant":
        node = onnx.helper.make_node("Constant", [], ["b"], value=bias)
        model.graph.node.insert(0, node)
        del model.graph.initializer[1]
    elif how == "float_data":
        bias.ClearField("raw_data")
        bias.float_data.extend(B.tolist())
    elif how == "external":
        (folder / "bias.bin").write_bytes(B.tobytes())
        bias.ClearField("raw_data")
        bias.data_location = onnx.TensorProto.EXTERNAL
        bias.external_data.add(key="location", value="bias.bin")
    return model


@pytest.mark.parametrize("how", STORED)
def test_a_new_bias_is_added_wherever_the_old_one_was(how: str, tmp_path: Path) -> None:
    model = stored(how, tmp_path)
    before = model.SerializeToString()
    (layer,) = (r for r in layers_of(model, tmp_path) if isinstance(r, Layer))
    found = constant_bias(ModelIndex(model), layer, tmp_path)
    np.testing.assert_array_equal(found, B)
    new, x = B.astype(np.float64) + np.arange(16), normal(3, 8)
    matrix = 2 * W.astype(np.float64)
    (y,) = run(
        with_dense_weights(model, [Dense(layers=(layer,), matrix=matrix, bias=new)]), {"x": x}
    )
    np.testing.assert_allclose(y, x @ matrix.T + new, atol=ROUNDING)

    (cut,) = replacements_of(model, rank=None, folder=tmp_path)
    whole = Replacement(layers=cut.layers, factors=cut.factors, bias=new)
    (y,) = run(rewrite(model, [whole]), {"x": x})
    matrix = read_matrix(ModelIndex(model), layer, tmp_path)
    np.testing.assert_allclose(y, x @ matrix.T + new, atol=ROUNDING)
    assert model.SerializeToString() == before
