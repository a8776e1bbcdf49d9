"""Every reason for which a node is skipped, how layers are described, and what rows are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alds_onnx.graph.find import find_layers, row_names
from alds_onnx.graph.layers import Skipped, read_matrix
from alds_onnx.graph.scopes import ModelIndex
from tests.graph.builders import NOWHERE, Array, layers_of, normal, only_layer, parse


@dataclass(frozen=True)
class Refused:
    """A model text whose one layer of interest, the first, is skipped for a reason."""

    graph: str
    reason: str
    constants: dict[str, Array] = field(default_factory=lambda: {"W": normal(8, 12)})
    opset: int = 17
    ir: int = 8
    imports: str = ""


X = "g (float[3, 8] x) => (float[3, 12] y)"
IMAGE = "g (float[1, 8, 6, 6] x) => (float[1, 12, n, m] y)"
FUNCTION = ' <domain: "f", opset_import: ["" : 17]> '

REFUSED = {
    "input": Refused(
        "g (float[3, 8] x, float[8, 12] V) => (float[3, 12] y) { y = MatMul(x, V) }",
        "its weight 'V' is an input, not a constant",
    ),
    "random": Refused(
        f"{X} {{ V = RandomNormalLike(W) y = MatMul(x, V) }}",
        "computed at run time by RandomNormalLike",
    ),
    "dropout in training": Refused(
        f"{X} {{ V = Dropout(W, s, t) y = MatMul(x, V) }}",
        "computed at run time by Dropout",
        {"W": normal(8, 12), "s": np.float32(0.5), "t": np.array(True)},
    ),
    "computed from an input": Refused(
        "g (float[3, 8] x, float[1] a) => (float[3, 12] y) { V = Mul(W, a) y = MatMul(x, V) }",
        "computed at run time by Mul",
    ),
    "computed from what a caller may replace": Refused(
        "g (float[3, 8] x, float[8, 12] W) => (float[3, 12] y) { V = Abs(W) y = MatMul(x, V) }",
        "computed from 'W', which a caller may replace",
    ),
    "computed from few numbers": Refused(
        f"{X} {{ V = Expand(c, s) y = MatMul(x, V) }}",
        "its weight is computed from only 12 numbers",
        {"c": normal(12)},
    ),
    "computed twice": Refused(
        "g (float[3, 8] x) => (float[3, 12] y, float[3, 12] z) "
        "{ V = Abs(W) y = MatMul(x, W) z = MatMul(x, V) }",
        "its weight is also read by MatMul, in another layout or form",
    ),
    "too large to compute": Refused(
        "g (float[3, 100000] x) => (float[3, 100000] y) { V = Expand(c, large) y = MatMul(x, V) }",
        "computed by Expand, which takes too much",
        {"c": normal(100000), "large": np.array([100000, 100000])},
    ),
    "other domain": Refused(
        f"{X} {{ V = custom.Identity(W) y = MatMul(x, V) }} "
        '<domain: "custom", opset_import: ["" : 17]> Identity (a) => (b) { b = Abs(a) }',
        "computed at run time by Identity",
        imports=', "custom" : 1',
    ),
    "quantized": Refused(
        f"{X} {{ V = DequantizeLinear(Q, s) q = QuantizeLinear(x, s) a = DequantizeLinear(q, s) "
        "y = MatMul(a, V) }",
        "its activation and its weight are quantized: compress the float model first",
        {"Q": np.ones((8, 12), np.int8), "s": np.float32(0.5)},
    ),
    "integers": Refused(
        "g (int32[3, 8] x) => (int32[3, 12] y) { y = MatMul(x, W) }",
        "its weight is of type INT32",
        {"W": np.ones((8, 12), np.int32)},
    ),
    "old opset": Refused(f"{X} {{ y = MatMul(x, W) }}", "opset 6 is older than 7", opset=6),
    "grouped": Refused(
        f"{IMAGE} {{ y = Conv<group = 2>(x, W) }}",
        "it is a grouped convolution (group 2)",
        {"W": normal(12, 4, 3, 3)},
    ),
    "depthwise": Refused(
        "g (float[1, 12, 6, 6] x) => (float[1, 12, n, m] y) { y = Conv<group = 12>(x, W) }",
        "it is a grouped convolution (group 12)",
        {"W": normal(12, 1, 3, 3)},
    ),
    "four spatial axes": Refused(
        "g (float[1, 8, 3, 3, 3, 3] x) => (float[1, 12, a, b, c, d] y) { y = Conv(x, W) }",
        "its weight has 6 axes, not 3 to 5",
        {"W": normal(12, 8, 1, 1, 1, 1)},
    ),
    "kernel shape": Refused(
        f"{IMAGE} {{ y = Conv<kernel_shape = [1, 1]>(x, W) }}",
        "its kernel_shape [1, 1] contradicts its weight [12, 8, 3, 3]",
        {"W": normal(12, 8, 3, 3)},
    ),
    "batched weight": Refused(
        "g (float[2, 3, 8] x) => (float[2, 3, 12] y) { y = MatMul(x, W) }",
        "its weight has 3 axes, not 2",
        {"W": normal(2, 8, 12)},
    ),
    "vector": Refused(
        "g (float[3, 80] x) => (float[3] y) { y = MatMul(x, W) }",
        "its weight has 1 axes, not 2",
        {"W": normal(80)},
    ),
    "both constant": Refused(
        f"{X} {{ v = MatMul(U, W) y = Add(v, v) }}",
        "both of its operands are constant",
        {"U": normal(3, 8), "W": normal(8, 12)},
    ),
    "tiny": Refused(
        "g (float[3, 8] x) => (float[3, 4] y) { y = MatMul(x, W) }",
        "its weight is tiny (32 parameters)",
        {"W": normal(8, 4)},
    ),
    "one output": Refused(
        "g (float[3, 80] x) => (float[3, 1] y) { y = MatMul(x, W) }",
        "even rank 1 has as many parameters as the weight",
        {"W": normal(80, 1)},
    ),
    "second reader": Refused(
        f"{X} {{ y0 = MatMul(x, W) v = ReduceSum(W) y = Add(y0, v) }}",
        "its weight is also read by ReduceSum",
    ),
    "second reader of the chain": Refused(
        f"{X} {{ V = Transpose(W) v = ReduceSum(V) y0 = MatMul(x, V) y = Add(y0, v) }}",
        "its weight is also read by ReduceSum",
        {"W": normal(12, 8)},
    ),
    "second reader of the base": Refused(
        f"{X} {{ V = Transpose(W) v = ReduceSum(W) y0 = MatMul(x, V) y = Add(y0, v) }}",
        "its weight is also read by ReduceSum",
        {"W": normal(12, 8)},
    ),
    "graph output": Refused(
        "g (float[3, 8] x) => (float[3, 12] y, float[8, 12] W) { y = MatMul(x, W) }",
        "its weight is also a graph output",
    ),
    "reader in a subgraph": Refused(
        "g (float[3, 8] x, bool c) => (float[3, 12] y, float[8, 12] z) { y = MatMul(x, W) "
        "z = If(c) <then_branch = t () => (float[8, 12] u) { u = Abs(W) }, "
        "else_branch = e () => (float[8, 12] u) { u = Neg(W) }> }",
        "its weight is also read by Abs",
    ),
    "another fold": Refused(
        "g (float[3, 8] x) => (float[3, 12] y, float[3, 8] z) "
        "{ y = MatMul(x, W) z = Gemm<transB = 1>(y, W) }",
        "its weight is also read by Gemm",
    ),
    "also its bias": Refused(
        "g (float[12, 12] x) => (float[12, 12] y) { y = Gemm(x, W, W) }",
        "its weight is also another operand of the same Gemm",
        {"W": normal(12, 12)},
    ),
    "sparse Constant": Refused(f"{X} {{ y = MatMul(x, sparse) }}", "not a dense tensor"),
    "sparse initializer": Refused(
        f"{X} {{ y = MatMul(x, sparse_weight) }}", "its weight is a sparse initializer"
    ),
    "floats": Refused(
        f"{X} {{ c = Constant<value_floats = [1.0]>() V = Expand(c, s) y = MatMul(x, V) }}",
        "its weight is computed from only 1 numbers",
    ),
    "reshaped at run time": Refused(
        "g (float[3, 8] x, int64[2] s) => (float[3, 12] y) { V = Reshape(W, s) y = MatMul(x, V) }",
        "cannot be followed through Reshape: its shape is not constant",
    ),
    "function argument": Refused(
        f"g (float[3, 8] x, float[8, 12] V) => (float[3, 12] y) {{ y = f.F(x, V) }} {FUNCTION}"
        "F (a, b) => (c) { c = MatMul(a, b) }",
        "its weight depends on an argument of the function",
        imports=', "f" : 1',
    ),
    "function attribute": Refused(
        f"{X} {{ y = f.F<alpha = 2.0>(x) }} {FUNCTION}"
        "F <alpha> (a) => (c) { W = Constant<value = float[8, 12] {NUMBERS}>() "
        "c = Gemm<alpha: float = @alpha>(a, W) }",
        "its attributes are arguments of the function",
        imports=', "f" : 1',
    ),
    "function attribute on the way": Refused(
        f"{X} {{ y = f.F<axis = 1>(x) }} {FUNCTION}"
        "F <axis> (a) => (c) { W = Constant<value = float[8, 12] {NUMBERS}>() "
        "V = Flatten<axis: int = @axis>(W) c = MatMul(a, V) }",
        "its weight depends on an argument of the function",
        imports=', "f" : 1',
    ),
    "function constant": Refused(
        f"{X} {{ y = f.F<value = float[8, 12] {{NUMBERS}}>(x) }} {FUNCTION}"
        "F <value> (a) => (c) { W = Constant<value: tensor = @value>() c = MatMul(a, W) }",
        "its weight depends on an argument of the function",
        imports=', "f" : 1',
    ),
}


def refused_model(case: Refused) -> ModelProto:
    numbers = ", ".join(str(round(float(n), 3)) for n in normal(96))
    used = {k: v for k, v in case.constants.items() if f"{k}" in case.graph}
    graph = case.graph.replace("{NUMBERS}", f"{{{numbers}}}").replace("NUMBERS", numbers)
    model = parse(graph, used, opset=case.opset, ir=case.ir, imports=case.imports)
    if "Expand(c, s)" in case.graph:
        model.graph.initializer.append(numpy_helper.from_array(np.array([8, 12]), "s"))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(normal(2), "sparse_weight"),
        numpy_helper.from_array(np.array([0, 3]), "sparse_indices"),
        [8, 12],
    )
    if "sparse_weight" in case.graph:
        model.graph.sparse_initializer.append(sparse)
    elif "sparse" in case.graph:
        node = helper.make_node("Constant", [], ["sparse"], sparse_value=sparse)
        model.graph.node.insert(0, node)
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_skipped(name: str) -> None:
    case = REFUSED[name]
    model = refused_model(case)
    onnx.checker.check_model(model)
    row = layers_of(model)[0]
    assert isinstance(row, Skipped)
    assert case.reason in row.reason
    assert "\n" not in row.reason


def test_skipped_rows_know_their_weight() -> None:
    row = layers_of(refused_model(REFUSED["grouped"]))[0]
    assert isinstance(row, Skipped)
    assert (row.name, row.op, row.weight_name, row.dims) == ("y", "Conv", "W", (12, 4, 3, 3))


def test_undefined_weight() -> None:
    """The checker refuses such a model; whoever asks without it gets a row all the same."""
    for graph in ("y = MatMul(x, V)", "V = Identity(U) y = MatMul(x, V)"):
        (row,) = layers_of(parse(f"{X} {{ {graph} }}"))
        assert isinstance(row, Skipped)
        assert "is not defined" in row.reason


def test_endless_chain() -> None:
    chain = " ".join(f"w{i + 1} = Identity(w{i})" for i in range(70))
    model = parse(f"{X} {{ {chain} y = MatMul(x, w70) }}", {"w0": normal(8, 12)})
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert row.reason == "its weight comes through too many nodes"


@pytest.mark.parametrize(
    "shape", [(), (7,), (-1, 7), (0, 0, 0, 0)], ids=["scalar", "flat", "free", "zeros"]
)
def test_impossible_reshape(shape: tuple[int, ...]) -> None:
    model = parse(
        f"{X} {{ V = Reshape(W, s) y = MatMul(x, V) }}",
        {"W": normal(8, 12), "s": np.array(shape, np.int64)},
    )
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert "cannot be followed through Reshape" in row.reason


def test_other_operators_have_no_row() -> None:
    model = parse(f"{X} {{ h = MatMul(x, W) y = Relu(h) }}", {"W": normal(8, 12)})
    model.graph.node.append(helper.make_node("MatMul", ["x", "W"], ["o"], domain="com.example"))
    index = ModelIndex(model)
    assert [row.name for row in find_layers(index, NOWHERE, {})] == ["h"]


@pytest.mark.parametrize(("graph", "weight", "position", "folded"), [
    ("y = Gemm(x, W)", (8, 12), 1, lambda w: w.T),
    ("y = Gemm<transB = 1>(x, W)", (12, 8), 1, lambda w: w),
    ("y = MatMul(x, W)", (8, 12), 1, lambda w: w.T),
    ("y = MatMul(W, x)", (12, 3), 0, lambda w: w),
    ("y = Gemm(W, x)", (12, 3), 0, lambda w: w),
    ("y = Gemm<transA = 1>(W, x)", (3, 12), 0, lambda w: w.T),
    ("t = Transpose(W) y = MatMul(x, t)", (12, 8), 1, lambda w: w),
])  # fmt: skip
def test_matrix(
    graph: str, weight: tuple[int, ...], position: int, folded: Callable[[Array], Array]
) -> None:
    """The folded matrix W has shape (f, c), however the node holds its weight."""
    array = normal(*weight) * 3
    padded = np.concatenate([array, array], axis=1) if position == 0 else array
    model = parse(f"g (float[3, 8] x) => (float[n, m] y) {{ {graph} }}", {"W": padded})
    layer = only_layer(model)
    assert layer.weight_input == position
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, folded(padded))


def test_conv_matrix() -> None:
    weight = normal(12, 8, 3, 2)
    model = parse(f"{IMAGE} {{ y = Conv(x, W) }}", {"W": weight})
    layer = only_layer(model)
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    np.testing.assert_array_equal(matrix, weight.reshape(12, 48))
    assert layer.shape.kernel == (3, 2)


def names_of(model: ModelProto) -> list[str]:
    index = ModelIndex(model)
    names = row_names(index)
    return [names[site] for site, _ in index.walk()]


@pytest.mark.parametrize(("graph", "names"), [
    ("[a] h = Relu(x) [b] y = Relu(h)", ["a", "b"]),
    ("h = Relu(x) [b] y = Relu(h)", ["h", "b"]),
    ("[a] h = Relu(x) [a] y = Relu(h)", ["h", "y"]),
    # An unnamed node's output is another node's name, the first or the last.
    ("h = Relu(x) [h] y = Relu(h)", ["h_1", "h"]),
    ("[y] h = Relu(x) y = Relu(h)", ["y", "y_1"]),
])  # fmt: skip
def test_row_names(graph: str, names: list[str]) -> None:
    model = parse(f"g (float[3] x) => (float[3] y) {{ {graph} }}")
    assert names_of(model) == names


def test_row_names_are_unique_in_functions_and_branches() -> None:
    branch = "() => (float[3] u) { u = Relu(x) }"
    graph = " ".join(
        f"[if] {y} = If(c) <then_branch = t {branch}, else_branch = e {branch}>" for y in "yz"
    )
    functions = " ".join(
        f'<domain: "{d}", opset_import: ["" : 17]> F (a) => (u) {{ u = Relu(a) }}' for d in "pq"
    )
    model = parse(
        f"g (float[3] x, bool c) => (float[3] y, float[3] z) {{ {graph} }} {functions}",
        imports=', "p" : 1, "q" : 1',
    )
    names = names_of(model)
    assert len(names) == 8
    assert len(set(names)) == 8
    assert names[-2:] == ["F/u", "F/u_1"]


def test_external_weights_are_read_from_the_folder(tmp_path: Path) -> None:
    model = parse(f"{X} {{ y = MatMul(x, W) }}", {"W": normal(8, 12)})
    (tmp_path / "w.bin").write_bytes(b"pad!" + model.graph.initializer[0].raw_data)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="offset", value="4")
    layer = only_layer(model, tmp_path)
    matrix = read_matrix(ModelIndex(model), layer, tmp_path)
    np.testing.assert_array_equal(matrix, normal(8, 12).T)
