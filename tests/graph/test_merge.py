"""Joining the pairs of a rewritten model gives the original with W replaced by Ŵ; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alds_onnx.decompose.factorize import compose
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors
from alds_onnx.graph.tensors import make_tensor
from tests.graph.builders import (
    NOWHERE,
    Array,
    assert_close,
    bodies,
    nodes,
    normal,
    parse,
    replacements_of,
    run,
)
from tests.graph.test_rewrite_exact import (
    AXES_AND_BIAS,
    FLAGS,
    OLD_AND_NEW,
    PADS,
    C,
    F,
    conv_model,
    gemm_model,
    matmul_model,
    pads_of,
)
from tests.graph.test_rewrite_rest import (
    SHARED,
    function_model,
    if_model,
    rename,
    rich_model,
)


def composed(replacement: Replacement) -> tuple[str, TensorProto]:
    """Name and tensor of Ŵ, as the layer reads it."""
    layer = replacement.layers[0]
    matrix = compose(stored_factors(layer, replacement.factors))
    kind = layer.source.tensor.data_type
    return layer.weight_name, make_tensor(layer.weight_name, layer.layout.to_weight(matrix), kind)


def with_approximations(model: ModelProto, replacements: list[Replacement]) -> ModelProto:
    """The original with the numbers of W exchanged for those of Ŵ, and nothing else changed."""
    result = ModelProto()
    result.CopyFrom(model)
    tensors = dict(map(composed, replacements))
    for body in bodies(result):
        for tensor in getattr(body, "initializer", ()):
            if tensor.name in tensors:
                tensor.CopyFrom(tensors[tensor.name])
    return result


def in_order(model: ModelProto) -> bytes:
    """The model's bytes, initializers sorted by name; an empty name is as good as none."""
    result = ModelProto()
    result.CopyFrom(model)
    for body in bodies(result):
        for node in body.node:
            node.name = node.name or ""
        if isinstance(body, onnx.GraphProto):
            body.initializer.sort(key=lambda tensor: tensor.name)
    return result.SerializeToString(deterministic=True)


def check_round_trip(model: ModelProto, num_slices: int, rank: int = 2) -> ModelProto:
    """Rewrite and merge: the original, field for field, but for the numbers of its weights."""
    replacements = replacements_of(model, num_slices, rank)
    compressed = rewrite(model, replacements)
    before = compressed.SerializeToString(deterministic=True)
    merging = merge_pairs(compressed, NOWHERE)
    assert compressed.SerializeToString(deterministic=True) == before
    assert merging.left == ()
    assert len(merging.pairs) == sum(len(r.layers) for r in replacements)
    cuts = {layer.site: r.factors.cut for r in replacements for layer in r.layers}
    assert sorted(map(str, cuts.values())) == sorted(str(pair.cut) for pair in merging.pairs)
    assert in_order(merging.model) == in_order(with_approximations(model, replacements))
    return merging.model


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize(("axes", "bias"), AXES_AND_BIAS)
def test_conv(axes: int, bias: bool, pads: str, num_slices: int) -> None:
    strides, kernel = ", ".join(["2"] * axes), ", ".join(["3"] * axes)
    more = f"strides = [{strides}], kernel_shape = [{kernel}]"
    model, _ = conv_model(axes, f"<{pads_of(pads, axes)}, {more}>", bias=bias)
    check_round_trip(model, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_pointwise_and_dilated_convs(num_slices: int) -> None:
    check_round_trip(conv_model(2, "<strides = [2, 1]>", kernel=1)[0], num_slices)
    check_round_trip(conv_model(2, "<dilations = [2, 3]>")[0], num_slices)


def test_a_conv_that_says_that_it_has_one_group() -> None:
    check_round_trip(conv_model(2, "<group = 1>")[0], 1)
    model, feeds = conv_model(2, "<group = 1>")
    replacements = replacements_of(model, 4)
    merged = merge_pairs(rewrite(model, replacements), NOWHERE).model
    assert_close(run(merged, feeds), run(with_approximations(model, replacements), feeds))


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_conv_of_other_types(dtype: str, axes: int, num_slices: int) -> None:
    check_round_trip(conv_model(axes, "", dtype=dtype)[0], num_slices)


@pytest.mark.parametrize(("trans_a", "trans_b", "left"), FLAGS)
@pytest.mark.parametrize(("opset", "num_slices"), OLD_AND_NEW)
def test_gemm(opset: int, trans_a: int, trans_b: int, left: bool, num_slices: int) -> None:
    check_round_trip(gemm_model(trans_a, trans_b, left, opset=opset)[0], num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("known", [True, False], ids=["known", "free"])
@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=["rank2", "rank3", "rank4"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul(
    left: bool, batch: tuple[int, ...], opset: int, known: bool, num_slices: int
) -> None:
    check_round_trip(matmul_model(left, batch, opset=opset, known=known)[0], num_slices)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul_with_a_vector(left: bool) -> None:
    check_round_trip(matmul_model(left, (), vector=True)[0], 1)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_bfloat16(num_slices: int) -> None:
    weight = normal(C, F).astype(ml_dtypes.bfloat16)
    model = parse("g (bfloat16[3, 8] x) => (bfloat16[3, 12] y) { y = MatMul(x, W) }", {"W": weight})
    check_round_trip(model, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("graph", SHARED.values(), ids=SHARED.keys())
def test_layers_that_shared_a_weight_share_it_again(graph: str, num_slices: int) -> None:
    shape = (12, 8) if "transB" in graph else (8, 12)
    model = parse(
        f"g (float[3, 8] x, float[5, 8] z) => (float[3, 12] a, float[5, 12] b) {{ {graph} }}",
        {"W": normal(*shape)},
    )
    check_round_trip(model, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_a_rich_model_keeps_all_else(num_slices: int) -> None:
    model = rich_model()
    del model.graph.value_info[1]  # of the weight itself, which the rewrite has dropped
    del model.graph.quantization_annotation[0]
    check_round_trip(model, num_slices)


def only_numbers(model: ModelProto, num_slices: int, feeds: dict[str, Array]) -> ModelProto:
    """Where the weight comes back in another place: the merged model computes the same."""
    compressed = rewrite(model, replacements_of(model, num_slices))
    merging = merge_pairs(compressed, NOWHERE)
    assert merging.left == ()
    assert merging.pairs
    onnx.checker.check_model(merging.model, full_check=True)
    assert_close(run(merging.model, feeds), run(compressed, feeds))
    known = [node.op_type for node in nodes(model) if node.op_type != "Constant"]
    assert [n.op_type for n in nodes(merging.model) if n.op_type != "Constant"] == known
    return merging.model


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("cond", [True, False])
def test_branches_with_weights_of_both_graphs(cond: bool, num_slices: int) -> None:
    only_numbers(if_model(), num_slices, {"cond": np.array(cond), "x": normal(3, 8, seed=1)})


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_a_function_has_its_weight_in_a_constant(num_slices: int) -> None:
    merged = only_numbers(function_model(), num_slices, {"x": normal(3, 8, 5, seed=1)})
    assert not merged.graph.initializer
    assert [n.op_type for n in merged.functions[0].node] == ["Constant", "Conv", "Relu"]


@pytest.mark.parametrize("num_slices", [1, 2])
def test_a_weight_behind_other_nodes_comes_back_as_the_layer_read_it(num_slices: int) -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { w = Transpose(W) y = MatMul(x, w) }",
        {"W": normal(12, 8)},
    )
    merged = merge_pairs(rewrite(model, replacements_of(model, num_slices)), NOWHERE).model
    assert [(t.name, tuple(t.dims)) for t in merged.graph.initializer] == [("w", (8, 12))]


def test_a_name_that_is_taken_is_not_used_twice() -> None:
    model, feeds = matmul_model(False, ())
    compressed = rewrite(model, replacements_of(model, 2))
    compressed.graph.node.append(helper.make_node("Identity", ["y"], ["W"]))
    merged = merge_pairs(compressed, NOWHERE).model
    assert merged.graph.node[0].input[1] == "W_1"
    assert_close(run(merged, feeds), run(compressed, feeds))


@pytest.mark.parametrize("num_slices", [1, 2])
def test_pairs_within_pairs(num_slices: int) -> None:
    """Compressed, and its factors compressed again."""
    model, feeds = conv_model(2, "<pads = [1, 1, 1, 1]>")
    once = rewrite(model, replacements_of(model, num_slices, 6 // num_slices))
    twice = rewrite(once, replacements_of(once, 1, 1))
    assert len(nodes(twice, "Conv")) == (4 if num_slices == 1 else 3)
    merging = merge_pairs(twice, NOWHERE)
    assert merging.left == ()
    assert len(merging.pairs) == len(nodes(twice, "Conv")) - 1
    assert [t.name for t in merging.model.graph.initializer] == ["B", "W"]
    (conv,) = merging.model.graph.node
    assert conv == model.graph.node[0]
    assert_close(run(merging.model, feeds), run(twice, feeds))


def test_merged_and_cut_again_gives_the_same_factors() -> None:
    """Up to rounding, and to the sign of each rank."""
    model, _ = conv_model(2, "")
    (replacement,) = replacements_of(model, 2, 3)
    merged = merge_pairs(rewrite(model, [replacement]), NOWHERE).model
    (again,) = replacements_of(merged, 2, 3)
    first, second = replacement.factors, again.factors
    signs = np.sign(np.einsum("kfj,kfj->kj", first.U, second.U))
    rounding = 1e-5  # of float32 weights, in factors of norm about 1
    np.testing.assert_allclose(second.U * signs[:, None, :], first.U, atol=rounding)
    np.testing.assert_allclose(second.V * signs[:, :, None], first.V, atol=rounding)


MOBILE = (
    "g (float[1, 8, 9, 9] x) => (float[1, 12, 7, 7] y) { h = Conv<group = 8>(x, A) y = Conv(h, B) }"
)


def test_a_pair_of_the_original_is_none_of_ours() -> None:
    """MobileNet's: no bias, a grouped Conv, a 1x1 Conv. Without our names, or with some of them."""
    model = parse(MOBILE, {"A": normal(8, 1, 3, 3), "B": normal(12, 8, 1, 1)})
    merging = merge_pairs(model, NOWHERE)
    assert (merging.pairs, merging.left, merging.model) == ((), (), model)
    for names in ({"h": "y/encoded"}, {"A": "W/encoder", "B": "W/decoder"},
                  {"h": "y/encoded", "A": "W/encoder", "B": "V/decoder"}):  # fmt: skip
        rename(model, names)
        merging = merge_pairs(model, NOWHERE)
        assert merging.pairs == ()
        assert merging.model == model
        assert bool(merging.left) == ("h" in names)
        rename(model, {new: old for old, new in names.items()})


def _node(model: ModelProto, op: str, position: int) -> NodeProto:
    return nodes(model, op)[position]


def _read_code(m: ModelProto) -> None:
    m.graph.output.append(helper.make_tensor_value_info("conv/encoded", TensorProto.FLOAT, None))


def _read_factor(m: ModelProto) -> None:
    m.graph.node.append(helper.make_node("Identity", ["W/decoder"], ["also"]))


def _add_bias(m: ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(normal(4), "bias"))
    _node(m, "Conv", 0).input.append("bias")


def _stride(m: ModelProto) -> None:
    _node(m, "Conv", 1).attribute.append(helper.make_attribute("strides", [2, 2]))


def _pad(m: ModelProto) -> None:
    _node(m, "Conv", 1).attribute.append(helper.make_attribute("pads", [1, 1, 0, 0]))


def _same(m: ModelProto) -> None:
    _node(m, "Conv", 1).attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))


def _group(m: ModelProto) -> None:
    _node(m, "Conv", 1).attribute.append(helper.make_attribute("group", 2))


def _override(m: ModelProto) -> None:
    value = helper.make_tensor_value_info("W/encoder", TensorProto.FLOAT, None)
    m.graph.input.append(value)


def _retype(m: ModelProto) -> None:
    for tensor in m.graph.initializer:
        if tensor.name == "W/decoder":
            tensor.CopyFrom(
                numpy_helper.from_array(normal(F, 4, 1, 1).astype(np.float64), tensor.name)
            )


def _quantize(m: ModelProto) -> None:
    m.graph.node.insert(1, helper.make_node("QuantizeLinear", ["conv/encoded", "s", "z"], ["q"]))
    _node(m, "Conv", 1).input[0] = "q"


def _compute(m: ModelProto) -> None:
    m.graph.node.insert(0, helper.make_node("Neg", ["W/decoder"], ["n/decoder"]))
    _node(m, "Conv", 1).input[1] = "n/decoder"


def _foreign(m: ModelProto) -> None:
    _node(m, "Conv", 1).domain = "custom"


def _overflow(m: ModelProto) -> None:
    for tensor in m.graph.initializer:
        if tensor.name != "B":
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1e30), tensor.name))


DAMAGES: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "code read": (_read_code, "pattern"),
    "factor read": (_read_factor, "reads its factors too"),
    "bias": (_add_bias, "pattern"),
    "strides": (_stride, "strides, pads"),
    "pads": (_pad, "strides, pads"),
    "auto_pad": (_same, "strides, pads"),
    "group": (_group, "strides, pads"),
    "overridable": (_override, "graph input too"),
    "type": (_retype, "shapes or types"),
    "quantized": (_quantize, "QuantizeLinear reads its code"),
    "computed": (_compute, "not the names of a pair"),
    "domain": (_foreign, "other tools"),
    "overflow": (_overflow, "out of the range of FLOAT"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_others_have_changed_is_left_alone(
    damage: Callable[[ModelProto], None], reason: str
) -> None:
    model, _ = conv_model(2, "")
    model.graph.node[0].name = "conv"
    assert_left(rewrite(model, replacements_of(model, 2, 2)), damage, reason)


def assert_left(compressed: ModelProto, damage: Callable[[ModelProto], None], reason: str) -> None:
    """The one pair of a model is merged, and left alone for this reason after the damage."""
    assert len(merge_pairs(compressed, NOWHERE).pairs) == 1
    damage(compressed)
    merging = merge_pairs(compressed, NOWHERE)
    assert merging.pairs == ()
    assert merging.model == compressed
    (left,) = merging.left
    assert reason in left.reason


def _set_shape(m: ModelProto, position: int, shape: list[int]) -> None:
    constant = _node(m, "Constant", position)
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(shape, np.int64)))


SHAPES = [(False, ()), (False, (3,)), (True, ()), (True, (3,))]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(("left", "batch"), SHAPES)
def test_another_reshape_is_left_alone(left: bool, batch: tuple[int, ...], position: int) -> None:
    model, _ = matmul_model(left, batch, opset=17)
    compressed = rewrite(model, replacements_of(model, 2))
    assert len(merge_pairs(compressed, NOWHERE).pairs) == 1
    _set_shape(compressed, position, [1, 2, 3])
    merging = merge_pairs(compressed, NOWHERE)
    assert merging.pairs == ()
    assert [row.reason for row in merging.left] == [
        "its nodes are not those of a pattern that this version knows"
    ]


def test_a_reshape_to_fixed_sizes_is_left_alone() -> None:
    """It may have moved entries from one axis to another."""
    model, _ = matmul_model(False, (3,), opset=13)
    compressed = rewrite(model, replacements_of(model, 2))
    _set_shape(compressed, 0, [5, 3, 2, C // 2])
    _set_shape(compressed, 1, [5, 3, 2 * 2])
    assert merge_pairs(compressed, NOWHERE).pairs == ()


def test_notes_about_what_is_gone_go_too() -> None:
    model, _ = matmul_model(False, (), opset=17)
    compressed = onnx.shape_inference.infer_shapes(rewrite(model, replacements_of(model, 2)))
    assert len(compressed.graph.value_info) > 4
    assert not merge_pairs(compressed, NOWHERE).model.graph.value_info


def test_another_transpose_is_left_alone() -> None:
    model, _ = matmul_model(False, (3,), opset=17)
    compressed = rewrite(model, replacements_of(model, 2))
    _node(compressed, "Transpose", 1).attribute[0].ints[:] = [0, 3, 1, 2]
    assert merge_pairs(compressed, NOWHERE).pairs == ()


def test_factors_in_data_files(tmp_path: Path) -> None:
    model, feeds = conv_model(2, "")
    compressed = rewrite(model, replacements_of(model, 2))
    expected = run(compressed, feeds)
    onnx.save(
        compressed, tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0
    )
    loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    merging = merge_pairs(loaded, tmp_path)
    assert len(merging.pairs) == 1
    onnx.external_data_helper.load_external_data_for_model(merging.model, str(tmp_path))
    assert_close(run(merging.model, feeds), expected)
