"""What is not decomposed stays equal field for field; sharing, scopes, names, ways of a weight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alds_onnx.graph.layers import Layer, Skipped
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from tests.graph.builders import (
    Array,
    assert_close,
    assert_rest_equal,
    bodies,
    layers_of,
    names_in,
    nodes,
    normal,
    parse,
    replacements_of,
    run,
)


def check(
    model: ModelProto, feeds: dict[str, Array], touched: set[str], num_slices: int = 1
) -> ModelProto:
    """Rewrite; checker, numerics, and equality of the rest."""
    onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString(deterministic=True)
    replacements = replacements_of(model, num_slices)
    actual = rewrite(model, replacements)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(actual, full_check=True)
    dense = with_composed_weights(model, replacements)
    onnx.checker.check_model(dense, full_check=True)
    assert_close(run(actual, feeds), run(dense, feeds))
    assert_rest_equal(model, actual, touched)
    return actual


def rich_model() -> ModelProto:
    """A model with everything that an import and export of a graph library loses."""
    model = parse(
        """
        g (float[2, 8, 6, 6] x, float[12] scale) => (float[2, 12, 6, 6] y, float[2, 12, 6, 6] z)
        <float[2, 12, 6, 6] c, float[12, 8, 3, 3] W> {
            [conv] c = Conv<pads = [1, 1, 1, 1]>(x, W, B)
            [relu] y = Relu(c)
            z = custom.Double(c)
            [unused] w = Mul(scale, scale)
        }
        <domain: "custom", opset_import: ["": 17]>
        Double (a) => (b) { b = Add(a, a) }
        """,
        {
            "W": normal(12, 8, 3, 3),
            "B": normal(12),
            "scale": normal(12),
            "left over": normal(3),
        },
        imports=', "custom" : 1',
        ir=10,
    )
    model.doc_string, model.producer_name, model.domain = "a model", "by hand", "org.example"
    model.producer_version, model.model_version = "1.2", 7
    model.metadata_props.add(key="character", value="a\nb\n")
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="graph", value="1")
    for node in model.graph.node:
        node.doc_string = f"the node {node.name}"
        node.metadata_props.add(key="source", value=node.name)
    model.functions[0].doc_string = "doubles"
    model.functions[0].metadata_props.add(key="f", value="2")
    model.graph.initializer[1].doc_string = "a bias"
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(normal(2), "sparse"),
            numpy_helper.from_array(np.array([0, 3]), "sparse indices"),
            [4],
        )
    )
    for name in ("W", "c"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return model


RICH_FEEDS = {"x": normal(2, 8, 6, 6, seed=1)}


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_a_rich_model_keeps_all_else(num_slices: int) -> None:
    actual = check(rich_model(), RICH_FEEDS, {"W", "c"}, num_slices)
    assert "W" not in names_in(actual)
    assert "W" not in {value.name for value in actual.graph.value_info}
    assert {value.name for value in actual.graph.value_info} == {"c"}
    assert [a.tensor_name for a in actual.graph.quantization_annotation] == ["c"]
    (conv,) = [node for node in actual.graph.node if node.name == "conv"]
    assert [(p.key, p.value) for p in conv.metadata_props] == [("source", "conv")]


def _rename_metadata(m: ModelProto) -> None:
    m.metadata_props[0].value = "ab"


def _drop_doc(m: ModelProto) -> None:
    m.graph.node[-1].ClearField("doc_string")


def _drop_input(m: ModelProto) -> None:
    del m.graph.input[1]


def _swap_nodes(m: ModelProto) -> None:
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(m.graph.node[-1])
    second.CopyFrom(m.graph.node[-2])
    m.graph.node[-2].CopyFrom(first)
    m.graph.node[-1].CopyFrom(second)


def _change_bias(m: ModelProto) -> None:
    m.graph.initializer[0].raw_data = bytes(48)


def _drop_function_metadata(m: ModelProto) -> None:
    del m.functions[0].metadata_props[:]


def _drop_value_info(m: ModelProto) -> None:
    m.graph.value_info.add(name="y")


def _drop_sparse(m: ModelProto) -> None:
    del m.graph.sparse_initializer[:]


@pytest.mark.parametrize("damage", [
    _rename_metadata, _drop_doc, _drop_input, _swap_nodes, _change_bias, _drop_function_metadata,
    _drop_value_info, _drop_sparse,
])  # fmt: skip
def test_the_comparison_sees(damage: Callable[[ModelProto], None]) -> None:
    model = rich_model()
    actual = rewrite(model, replacements_of(model))
    assert_rest_equal(model, actual, {"W", "c"})
    damage(actual)
    with pytest.raises(AssertionError):
        assert_rest_equal(model, actual, {"W", "c"})


@pytest.mark.parametrize("factor", [1 + 1e-3, -1.0, 100.0])
def test_the_numeric_comparison_sees_a_scale(factor: float) -> None:
    y = normal(3, 4)
    assert_close([y], [y])
    with pytest.raises(AssertionError):
        assert_close([y * np.float32(factor)], [y])


@pytest.mark.parametrize("other", [normal(4, 3), normal(3, 4).astype(np.float64)])
def test_the_numeric_comparison_sees_shape_and_type(other: Array) -> None:
    with pytest.raises(AssertionError):
        assert_close([other], [normal(3, 4)])


def test_taken_names_are_avoided() -> None:
    """Names of the factors, of the new tensors and of the new nodes, also in a subgraph."""
    model = parse(
        """
        g (float[3, 8] x, bool cond) => (float[3, 12] y, float[3, 12] z) {
            ["y/encode"] h = Relu(x)
            y = MatMul(h, W)
            ["W/encoder_1"] z = If (cond) <
                then_branch = t () => (float[3, 12] u) { u = Mul("W/decoder", "y/encoded") }
              , else_branch = e () => (float[3, 12] "y/shape") { "y/shape" = Identity(y) }
            >
        }
        """.replace('"y/encode"', "encode_").replace('"W/encoder_1"', "if_")
        .replace('"W/decoder"', "decoder_").replace('"y/encoded"', "y")
        .replace('"y/shape"', "shape_"),
        {"W": normal(8, 12), "W/encoder": normal(2), "decoder_": normal(3, 12)},
    )  # fmt: skip
    renames = {"encode_": "y/encode", "if_": "W/encoder_1", "decoder_": "W/decoder",
               "shape_": "y/shape"}  # fmt: skip
    rename(model, renames)
    feeds = {"x": normal(3, 8, seed=1), "cond": np.array(True)}
    actual = check(model, feeds, {"W", "y"}, 2)
    made = [name for body in bodies(actual) for node in body.node for name in node.output]
    named = [tensor.name for tensor in actual.graph.initializer]
    assert len(set(made + named)) == len(made + named)
    named_nodes = [node.name for node in nodes(actual) if node.name]
    assert len(set(named_nodes)) == len(named_nodes)
    assert {"W/encoder", "W/decoder", "W/decoder_1", "W/encoder_2"} <= set(named)


def rename(model: ModelProto, names: dict[str, str]) -> None:
    """The parser knows no names with a slash."""
    for body in bodies(model):
        for tensor in getattr(body, "initializer", ()):
            tensor.name = names.get(tensor.name, tensor.name)
        for value in getattr(body, "output", ()):
            value.name = names.get(value.name, value.name)
        for node in body.node:
            node.name = names.get(node.name, node.name)
            for fields in (node.input, node.output):
                for i, name in enumerate(fields):
                    fields[i] = names.get(name, name)


def test_unnamed_nodes_and_unicode() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { h = MatMul(x, w) y = MatMul(h, v) }",
        {"w": normal(8, 12), "v": normal(12, 12)},
    )
    rename(model, {"w": "Gewicht ö/权重", "h": "层"})
    actual = check(model, {"x": normal(3, 8, seed=1)}, {"Gewicht ö/权重", "v", "层", "y"}, 2)
    assert [node.name for node in nodes(actual, "MatMul")][1::2] == ["", ""]


SHARED = {
    "MatMul twice": "a = MatMul(x, W) b = MatMul(z, W)",
    "Gemm and MatMul": "a = MatMul(x, W) b = Gemm(z, W)",
    "transposed twice": "a = Gemm<transB = 1>(x, W) b = Gemm<transB = 1>(z, W)",
}


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("graph", SHARED.values(), ids=SHARED.keys())
def test_nodes_that_share_a_weight_share_its_factors(graph: str, num_slices: int) -> None:
    shape = (12, 8) if "transB" in graph else (8, 12)
    model = parse(
        f"g (float[3, 8] x, float[5, 8] z) => (float[3, 12] a, float[5, 12] b) {{ {graph} }}",
        {"W": normal(*shape)},
    )
    feeds = {"x": normal(3, 8, seed=1), "z": normal(5, 8, seed=2)}
    actual = check(model, feeds, {"W", "a", "b"}, num_slices)
    assert [t.name for t in actual.graph.initializer] == ["W/encoder", "W/decoder"]


def test_convs_share() -> None:
    model = parse(
        "g (float[1, 8, 5, 5] x) => (float[1, 8, n, m] y) "
        "{ h = Conv<pads = [1, 1, 1, 1]>(x, W) y = Conv<strides = [2, 2]>(h, W) }",
        {"W": normal(8, 8, 3, 3)},
    )
    actual = check(model, {"x": normal(1, 8, 5, 5, seed=1)}, {"W", "h", "y"}, 2)
    assert len(actual.graph.initializer) == 2


@pytest.mark.parametrize("graph", [
    "a = MatMul(x, W) b = Gemm<transB = 1>(z, W)",
    "a = Gemm<transB = 1>(x, W) b = Gemm<transB = 1, transA = 1>(z, W)",
    "a = MatMul(W, x) b = Gemm<transB = 1>(z, W)",
    "a = MatMul(x, W) b = MatMul(W, z)",
])  # fmt: skip
def test_other_layouts_do_not_share(graph: str) -> None:
    """The factors of both would be needed twice, in two layouts."""
    model = parse(f"g (float[12, 12] x, float[12, 12] z) => (float[12, 12] a, float[12, 12] b) "
                  f"{{ {graph} }}", {"W": normal(12, 12)})  # fmt: skip
    found = layers_of(model)
    assert len(found) == 2
    for row in found:
        assert isinstance(row, Skipped)
        assert "also read by" in row.reason


def test_overridable_weight_is_no_longer_an_input() -> None:
    model = parse(
        "g (float[3, 8] x, float[8, 12] W) => (float[3, 12] y) { y = MatMul(x, W) }",
        {"W": normal(8, 12)},
    )
    (layer,) = layers_of(model)
    assert isinstance(layer, Layer)
    assert layer.source.overridable
    actual = check(model, {"x": normal(3, 8, seed=1)}, {"W", "y"}, 2)
    assert [value.name for value in actual.graph.input] == ["x"]


@pytest.mark.parametrize("op", ["y = MatMul(x, W)", "y = Gemm<transB = 0>(x, W, B)"])
def test_ir_3_has_factors_in_constants(op: str) -> None:
    """There every initializer is a graph input as well, and new inputs may not appear."""
    model = parse(
        f"g (float[3, 8] x, float[8, 12] W, float[12] B) => (float[3, 12] y) {{ {op} }}",
        {"W": normal(8, 12), "B": normal(12)},
        ir=3,
        opset=8,
    )
    actual = check(model, {"x": normal(3, 8, seed=1)}, {"W", "y"})
    assert [value.name for value in actual.graph.input] == ["x", "B"]
    assert [tensor.name for tensor in actual.graph.initializer] == ["B"]
    assert [node.output[0] for node in actual.graph.node[:2]] == ["W/encoder", "W/decoder"]


def test_constant_node_weight_goes() -> None:
    model = constant_model()
    actual = check(model, {"x": normal(3, 8, seed=1)}, {"W", "y"}, 2)
    assert "W" not in names_in(actual)
    assert [t.name for t in actual.graph.initializer] == ["W/encoder", "W/decoder"]


def constant_model() -> ModelProto:
    model = parse("g (float[3, 8] x) => (float[3, 12] y) { y = MatMul(x, W) }")
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(normal(8, 12)))
    model.graph.node.insert(0, constant)
    return model


WAYS: dict[str, tuple[str, tuple[int, ...], dict[str, Array], int]] = {
    "Identity": ("w = Identity(W)", (8, 12), {}, 17),
    "Transpose": ("w = Transpose(W)", (12, 8), {}, 17),
    "Transpose perm": ("w = Transpose<perm = [1, 0]>(W)", (12, 8), {}, 17),
    "Reshape": ("w = Reshape(W, s)", (4, 24), {"s": np.array([8, -1])}, 17),
    "Reshape zero": ("w = Reshape(W, s)", (8, 3, 4), {"s": np.array([0, 12])}, 17),
    "Reshape allowzero": (
        "w = Reshape<allowzero = 1>(W, s)",
        (8, 3, 4),
        {"s": np.array([8, 12])},
        17,
    ),
    "Flatten": ("w = Flatten(W)", (8, 3, 4), {}, 17),
    "Flatten axis": ("w = Flatten<axis = -1>(W)", (2, 4, 12), {}, 17),
    "Squeeze": ("w = Squeeze(W)", (1, 8, 12), {}, 17),
    "Squeeze axes": ("w = Squeeze(W, s)", (8, 1, 12), {"s": np.array([1])}, 17),
    "Squeeze attribute": ("w = Squeeze<axes = [0]>(W)", (1, 8, 12), {}, 11),
    "Unsqueeze": ("v = Unsqueeze(W, s) w = Squeeze(v, s)", (8, 12), {"s": np.array([-1])}, 17),
    "Unsqueeze attribute": (
        "v = Unsqueeze<axes = [0]>(W) w = Squeeze<axes = [0]>(v)",
        (8, 12),
        {},
        11,
    ),
    "several": (
        "v = Identity(W) u = Transpose<perm = [2, 1, 0]>(v) w = Reshape(u, s)",
        (3, 4, 8),
        {"s": np.array([8, 12])},
        17,
    ),
}


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_through_other_nodes(way: str, constant: bool, num_slices: int) -> None:
    graph, shape, others, opset = WAYS[way]
    weights = {} if constant else {"W": normal(*shape)}
    model = parse(
        f"g (float[3, 8] x) => (float[3, 12] y) {{ {graph} y = MatMul(x, w) }}",
        {**weights, **others},
        opset=opset,
    )
    if constant:
        value = numpy_helper.from_array(normal(*shape))
        model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=value))
    actual = check(model, {"x": normal(3, 8, seed=1)}, {"W", "w", "v", "u", "s", "y"}, num_slices)
    assert {"W", "w", "v", "u", "s"} & names_in(actual) == set()


def test_full_rank_through_a_transpose_is_the_original() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { w = Transpose(W) y = MatMul(x, w) }",
        {"W": normal(12, 8)},
    )
    feeds = {"x": normal(3, 8, seed=1)}
    assert_close(run(rewrite(model, replacements_of(model, 2, None)), feeds), run(model, feeds))


def test_shape_that_another_node_reads_stays() -> None:
    model = parse(
        "g (float[3, 8] x, float[96] a) => (float[3, 12] y, float[8, 12] b) "
        "{ s = Constant<value = int64[2] {8, 12}>() w = Reshape(W, s) y = MatMul(x, w) "
        "b = Reshape(a, s) }",
        {"W": normal(96)},
    )
    feeds = {"x": normal(3, 8, seed=1), "a": normal(96)}
    assert "s" in names_in(check(model, feeds, {"W", "w", "y"}, 2))


def if_model() -> ModelProto:
    """Branches with weights of their own and of the graph around, and the same names in both."""
    model = parse(
        """
        g (bool cond, float[3, 8] x) => (float[3, 12] y) {
            y = If (cond) <
                then_branch = t () => (float[3, 12] u) {
                    h = MatMul(x, shared)
                    u = Gemm(h, own, bias)
                },
                else_branch = e () => (float[3, 12] u) {
                    h = MatMul(x, shared)
                    u = Gemm(h, own)
                }
            >
        }
        """,
        {"shared": normal(8, 12), "bias": normal(12)},
    )
    for seed, attribute in enumerate(model.graph.node[0].attribute):
        own = numpy_helper.from_array(normal(12, 12, seed=seed), "own")
        attribute.g.initializer.append(own)
    return model


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("cond", [True, False])
def test_if(cond: bool, num_slices: int) -> None:
    model = if_model()
    feeds = {"cond": np.array(cond), "x": normal(3, 8, seed=1)}
    actual = check(model, feeds, {"shared", "own", "h", "u"}, num_slices)
    assert [t.name for t in actual.graph.initializer if "shared" in t.name] == [
        "shared/encoder",
        "shared/decoder",
    ]
    for attribute in actual.graph.node[0].attribute:
        assert len(attribute.g.initializer) == 2
    full = rewrite(model, replacements_of(model, num_slices, None))
    assert_close(run(full, feeds), run(model, feeds))


def test_rows_of_both_branches_have_names_of_their_own() -> None:
    assert {row.name for row in layers_of(if_model())} == {
        f"y.{branch}/{name}" for branch in ("else_branch", "then_branch") for name in "hu"
    }


@pytest.mark.parametrize("num_slices", [1, 2])
def test_loop(num_slices: int) -> None:
    model = parse(
        """
        g (int64 n, float[3, 8] x) => (float[3, 8] y) {
            go = Constant<value = bool {1}>()
            y = Loop (n, go, x) <
                body = b (int64 i, bool c, float[3, 8] s) => (bool d, float[3, 8] r) {
                    d = Identity(c)
                    h = MatMul(s, outer)
                    t = Tanh(h)
                    r = MatMul(t, inner)
                }
            >
        }
        """,
        {"outer": normal(8, 12)},
    )
    loop = model.graph.node[1].attribute[0].g
    loop.initializer.append(numpy_helper.from_array(normal(12, 8), "inner"))
    feeds = {"n": np.array(3), "x": normal(3, 8, seed=1)}
    actual = check(model, feeds, {"outer", "inner", "h", "r"}, num_slices)
    assert len(nodes(actual, "MatMul")) == 4


@pytest.mark.parametrize("num_slices", [1, 2])
def test_scan(num_slices: int) -> None:
    model = parse(
        """
        g (float[2, 8] x, float[5, 2, 8] seq) => (float[2, 8] last, float[5, 2, 8] all) {
            last, all = Scan <num_scan_inputs = 1,
                body = b (float[2, 8] s, float[2, 8] e) => (float[2, 8] r, float[2, 8] o) {
                    h = Add(s, e)
                    r = MatMul(h, W)
                    o = Identity(r)
                }
            > (x, seq)
        }
        """,
        {"W": normal(8, 8) / 8},
    )
    feeds = {"x": normal(2, 8, seed=1), "seq": normal(5, 2, 8, seed=2)}
    check(model, feeds, {"W", "r"}, num_slices)


def function_model() -> ModelProto:
    model = parse(
        """
        g (float[3, 8, 5] x) => (float[3, 12, 3] y, float[3, 12, 3] z) {
            y = custom.Block(x)
            z = custom.Block(x)
        }
        <domain: "custom", opset_import: ["": 17]>
        Block (a) => (b) { c = Conv(a, W) b = Relu(c) }
        """,
        imports=', "custom" : 1',
        ir=10,
    )
    value = numpy_helper.from_array(normal(12, 8, 3))
    constant = helper.make_node("Constant", [], ["W"], value=value)
    model.functions[0].node.insert(0, constant)
    for name in ("W", "c"):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.functions[0].value_info.append(info)
    return model


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_function_body(num_slices: int) -> None:
    model = function_model()
    actual = check(model, {"x": normal(3, 8, 5, seed=1)}, {"W", "c"}, num_slices)
    assert not actual.graph.initializer
    assert [n.op_type for n in actual.functions[0].node] == [
        "Constant", "Constant", "Conv", "Conv", "Relu",
    ]  # fmt: skip
    assert [value.name for value in actual.functions[0].value_info] == ["c"]


def test_scopes_have_the_same_numbers_in_a_copy() -> None:
    """Layers are found in one model and replaced in its copy."""
    for model in (if_model(), function_model(), rich_model()):
        copy = ModelProto()
        copy.CopyFrom(model)
        one, other = ModelIndex(model), ModelIndex(copy)
        assert [n.output for _, n in one.walk()] == [n.output for _, n in other.walk()]


def test_weights_in_a_branch_of_ir_3() -> None:
    model = if_model()
    model.ir_version = 3
    model.opset_import[0].version = 8
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        )
    for attribute in model.graph.node[0].attribute:
        own = attribute.g.initializer.pop()
        constant = helper.make_node("Constant", [], ["own"], value=own)
        attribute.g.node.insert(0, constant)
        for node in attribute.g.node:
            if node.op_type == "Gemm" and len(node.input) == 2:
                node.input.append("bias")
    feeds = {"cond": np.array(True), "x": normal(3, 8, seed=1)}
    actual = check(model, feeds, {"shared", "own", "h", "u"})
    assert {t.name for t in actual.graph.initializer} == {"bias"}
