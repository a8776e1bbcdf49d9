"""Operators that onnxruntime makes of ONNX's: FusedConv, FusedGemm and FusedMatMul."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import alds_onnx
from alds_onnx.cuts import Cut, Scheme
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.files.validity import contradiction
from alds_onnx.graph.layers import Skipped
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.operators import OPERATORS, operator_of
from alds_onnx.graph.rewrite import constant_bias, rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks, known_shapes, sizes_from_weights
from alds_onnx.timing.layer_models import isolate
from alds_onnx.values import Decision
from tests.corpus import field_cases
from tests.graph.builders import (
    NOWHERE,
    Array,
    assert_close,
    layers_of,
    normal,
    only_layer,
    parse,
    replacements_of,
    run,
)
from tests.graph.test_merge import assert_left
from tests.graph.test_merge_schemes import CLASH, cut_all, there_and_back
from tests.graph.test_rewrite_schemes import attributes_of, cuts, replacement

F, C = 12, 8
FUSED = ', "com.microsoft" : 1'
ACTIVATIONS = (
    *("", 'activation = "Relu"', 'activation = "Tanh"'),
    *(
        'activation = "LeakyRelu", activation_params = [0.3]',
        'activation = "Clip", activation_params = [-0.5, 0.5]',
    ),
)
BY_AXIS = ("", "strides pads", "strides dilations pads", "SAME_UPPER strides")
#: Whether there is a bias, and whether something is added.
OPERANDS = {(True, False): "x, W, B", (True, True): "x, W, B, z", (False, True): 'x, W, "", z'}


def fused_conv(
    activation: str, by_axis: str = "", *, bias: bool = True, added: bool = False
) -> tuple[ModelProto, dict[str, Array]]:
    axes = attributes_of(by_axis, 2).strip("<>")
    attributes = ", ".join(filter(None, (activation, axes)))
    inputs = ["x", "W", "B" if bias else "", "z"] if added else ["x", "W", "B"][: 2 + bias]
    constants = {"W": normal(F, C, 3, 2)} | ({"B": normal(F)} if bias else {})
    call = f"y = com.microsoft.FusedConv<{attributes}>(x, W)".replace("<>", "")
    sizes = run(
        parse(
            f"g (float[2, {C}, 9, 11] x) => (float[2, {F}, a, b] y) "
            f"{{ y = Conv{attributes_of(by_axis, 2)}(x, W) }}",
            {"W": constants["W"]},
        ),
        {"x": normal(2, C, 9, 11, seed=1)},
    )[0].shape
    dims = ", ".join(map(str, sizes))
    model = parse(
        f"g (float[2, {C}, 9, 11] x, float[{dims}] z) => (float[{dims}] y) {{ [conv] {call} }}",
        constants,
        imports=FUSED,
    )
    model.graph.node[0].input[:] = inputs
    feeds = {"x": normal(2, C, 9, 11, seed=1), "z": normal(*sizes, seed=2)}
    return model, feeds


@pytest.mark.parametrize("by_axis", BY_AXIS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_convolution_is_exact_and_merged_again(activation: str, by_axis: str) -> None:
    """With all schemes: at a low rank against Ŵ, at the full one against the original."""
    for bias, added in ((True, False), (True, True), (False, True)):
        model, feeds = fused_conv(activation, by_axis, bias=bias, added=added)
        for full in (False, True):
            for cut in cuts(only_layer(model).shape, full=full):
                done = [replacement(model, cut)]
                new = rewrite(model, done)
                onnx.checker.check_model(new)
                expected = model if full else with_composed_weights(model, done)
                assert_close(run(new, feeds), run(expected, feeds))
                (*first, last) = new.graph.node
                assert {(node.domain, node.op_type) for node in first} == {("", "Conv")}
                assert (last.domain, last.op_type) == ("com.microsoft", "FusedConv")
                assert not any(a.name.startswith("act") for n in first for a in n.attribute)
                assert new.opset_import == model.opset_import
                there_and_back(model, done)


GEMMS = {
    'FusedGemm<activation = "Relu", transB = 1>(x, W, B)': (6, 16),
    'FusedGemm<activation = "LeakyRelu", activation_alpha = 0.2, alpha = 0.5>(x, V, B)': (6, 16),
    'FusedGemm<activation = "Tanh", transA = 1, beta = 0.5>(x, V, B)': (16, 6),
    'FusedGemm<activation = "Relu">(x, V)': (6, 16),
    "FusedMatMul<alpha = 0.5>(x, V)": (2, 3, 16),
    "FusedMatMul<transB = 1>(x, W)": (2, 3, 16),
    "FusedMatMul<transA = 1, alpha = 2.0>(x, V)": (2, 16, 3),
    "FusedMatMul<transA = 1, transB = 1>(x, W)": (16, 6),
    "FusedMatMul<transA = 1>(x, V) ": (16,),
    "FusedMatMul<alpha = 3.0>(W, x)": (2, 16, 3),
    "FusedMatMul<transA = 1>(V, x)": (2, 16, 3),
    "FusedMatMul<transB = 1>(W, x)": (2, 3, 16),
}


def product(call: str) -> tuple[ModelProto, dict[str, Array]]:
    dims = ", ".join(map(str, GEMMS[call]))
    constants = {"W": normal(12, 16), "V": normal(16, 12), "B": normal(12)}
    read = {name: array for name, array in constants.items() if name in call.split(">(")[1]}
    text = f"g (float[{dims}] x) => (float y) {{ [layer] y = com.microsoft.{call} }}"
    model = parse(text, read, imports=FUSED)
    feeds = {"x": normal(*GEMMS[call], seed=1)}
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (y,) = run(model, feeds)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, y.shape))
    return model, feeds


@pytest.mark.parametrize("call", GEMMS)
def test_a_product_is_exact_and_merged_again(call: str) -> None:
    model, feeds = product(call)
    for slices in (1, 4):
        for rank in (2, None):
            done = replacements_of(model, slices, rank)
            new = rewrite(model, done)
            onnx.checker.check_model(new)
            expected = with_composed_weights(model, done) if rank else model
            assert_close(run(new, feeds), run(expected, feeds))
            (*first, last) = new.graph.node
            assert {node.domain for node in first} == {""}
            assert (last.domain, last.op_type) == ("com.microsoft", call.split("<", maxsplit=1)[0])
            assert last.attribute == model.graph.node[0].attribute
            there_and_back(model, done)


@pytest.mark.parametrize("call", GEMMS)
def test_what_a_product_costs_is_what_is_built(call: str) -> None:
    model, feeds = product(call)
    index, layer = ModelIndex(model), only_layer(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    rows = feeds["x"].size // 16
    assert work.macs == rows * 16 * 12
    assert work.of_cut(layer.shape, Cut(num_slices=1, rank=2)) == rows * 2 * (16 + 12)
    expected = {} if model.graph.node[0].input[0] != "x" else {("x", _axis(call)): 16}
    assert sizes_from_weights(index) == expected


def _axis(call: str) -> int:
    dims = GEMMS[call]
    return max(0, len(dims) - 2) if "transA" in call else len(dims) - 1


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("FusedMatMul<transBatchA = 1>(x, W)", "transBatchA"),
        ("FusedMatMul<transBatchB = 1>(x, W)", "transBatchB"),
        ("FusedConv<group = 2>(x, V)", "grouped convolution"),
        ('FusedGemm<activation = "Relu">(W, W)', "both of its operands"),
    ],
)
def test_what_is_refused(call: str, reason: str) -> None:
    model = parse(
        f"g (float[4, 12, 6, 6] x) => (float y) {{ y = com.microsoft.{call} }}",
        {"W": normal(12, 12), "V": normal(16, 6, 3, 3)},
        imports=FUSED,
    )
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert row.op == f"com.microsoft.{call.split('<', maxsplit=1)[0]}"
    assert reason in row.reason


def test_a_function_of_the_model_may_have_the_name() -> None:
    """Then it is what counts, whatever it computes."""
    model = parse(
        """
        g (float[6, 16] x) => (float[6, 12] y) { y = com.microsoft.FusedMatMul(x, V) }
        <domain: "com.microsoft", opset_import: ["": 17]>
        FusedMatMul (a, b) => (c) { d = MatMul(a, b) c = Sin(d) }
        """,
        {"V": normal(16, 12)},
        imports=FUSED,
    )
    row, _ = layers_of(model)
    assert isinstance(row, Skipped)
    assert "function of this name" in row.reason
    assert infer(model).graph.node[0].op_type == "FusedMatMul"


@pytest.mark.parametrize("domain", ["com.example", "com.microsoft.nchwc"])
@pytest.mark.parametrize("op", ["FusedConv", "FusedGemm", "FusedMatMul", "Conv", "Einsum"])
def test_other_domains_are_others(domain: str, op: str) -> None:
    node = helper.make_node(op, ["x", "W"], ["y"], domain=domain)
    assert operator_of(node) is None
    assert operator_of(helper.make_node(f"com.microsoft.{op}", ["x", "W"], ["y"])) is None
    assert operator_of(helper.make_node("Conv", ["x", "W"], ["y"], domain="com.microsoft")) is None
    for known in OPERATORS.values():
        made = helper.make_node(known.op_type, ["x", "W"], ["y"], domain=known.domain)
        assert operator_of(made) is known


def _set(position: int, name: str, value: object) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        model.graph.node[position].attribute.append(helper.make_attribute(name, value))

    return damage


def _move(position: int, domain: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        model.graph.node[position].domain = domain

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_set(1, "dilations", [2, 2]), CLASH),
        (_move(0, "com.microsoft"), "not those of a pattern"),
        (_move(1, ""), "other tools"),
        (_move(1, "com.example"), "other tools"),
    ],
)
def test_what_others_have_changed_is_left_alone(
    damage: Callable[[ModelProto], None], reason: str
) -> None:
    model, _ = fused_conv('activation = "Relu"', "strides pads")
    assert_left(cut_all(model, Scheme.ENCODE), damage, reason)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("extra", [{}, {"dilations": [1, 1], "group": 1, "kernel_shape": [3, 2]}])
def test_the_order_of_attributes_of_a_convolution_stays(
    extra: dict[str, object], order: int
) -> None:
    """Onnxruntime saves them in any order."""
    model, feeds = fused_conv('activation = "Relu"', "strides pads")
    attributes = [helper.make_attribute(name, value) for name, value in extra.items()]
    attributes = [*attributes, *model.graph.node[0].attribute][::order]
    attributes = [*attributes[2:], *attributes[:2]]
    model.graph.node[0].ClearField("attribute")
    model.graph.node[0].attribute.extend(attributes)
    for cut in cuts(only_layer(model).shape, full=False):
        if cut.num_slices == 1 or not extra:  # one group is told only of one slice
            done = [replacement(model, cut)]
            there_and_back(model, done)
            assert_close(
                run(rewrite(model, done), feeds), run(with_composed_weights(model, done), feeds)
            )


def test_the_order_of_attributes_of_a_product_stays() -> None:
    model, _ = product("FusedMatMul<transA = 1, alpha = 2.0>(x, V)")
    model.graph.node[0].attribute.reverse()
    there_and_back(model, replacements_of(model))


def test_what_is_downstream_has_a_shape() -> None:
    """Although ONNX knows none of these operators: so slices can be written, and work is known."""
    model = parse(
        """
        g (float[6, 16] x) => (float[6, 12] y) {
            a = com.microsoft.FusedGemm<activation = "Relu">(x, V)
            b = com.microsoft.FusedMatMul<alpha = 2.0>(a, W)
            y = MatMul(b, W)
        }
        """,
        {"V": normal(16, 12), "W": normal(12, 12)},
        imports=FUSED,
    )
    index = ModelIndex(model)
    inferred = infer(model)
    assert {key.name: rank for key, rank in known_ranks(index, inferred).items()} == dict.fromkeys(
        "xabyVW", 2
    )
    assert [node.op_type for node in model.graph.node][:2] == ["FusedGemm", "FusedMatMul"]
    macs = [work.macs for work in work_of_layers(index, known_shapes(index, inferred)).values()]
    assert macs == [6 * 16 * 12, 6 * 12 * 12, 6 * 12 * 12]


def test_convolutions_share_a_weight_with_fused_ones() -> None:
    model = parse(
        "g (float[1, 8, 9, 9] x) => (float[1, 12, a, b] y, float[1, 12, c, d] z) "
        '{ y = Conv(x, W) z = com.microsoft.FusedConv<activation = "Relu">(x, W) }',
        {"W": normal(F, C, 3, 3)},
        imports=FUSED,
    )
    feeds = {"x": normal(1, 8, 9, 9, seed=1)}
    (done,) = replacements_of(model)
    assert len(done.layers) == 2
    new = rewrite(model, [done])
    assert_close(run(new, feeds), run(with_composed_weights(model, [done]), feeds))
    there_and_back(model, [done])


def test_operands_that_contradict_each_other() -> None:
    model, _ = fused_conv('activation = "Relu"')
    assert contradiction(model) == ""
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(F, C + 1, 3, 2), "W"))
    assert f"take {C + 1} channels" in contradiction(model)
    model, _ = product("FusedMatMul<transB = 1>(x, W)")
    assert contradiction(model) == ""
    model.graph.node[0].attribute[0].i = 0
    assert "inner sizes 16 and 12" in contradiction(model)


def test_what_the_model_says_of_it() -> None:
    """Its bias may change, and it stands alone, activation included."""
    model, _ = fused_conv('activation = "Relu"', added=True)
    index, layer = ModelIndex(model), only_layer(model)
    np.testing.assert_array_equal(constant_bias(index, layer, NOWHERE), normal(F))
    place = isolate(index, layer, (2, C, 9, 11))
    assert "FusedConv" in [node.op_type for node in place.skeleton.graph.node]
    models = [place.dense(), *place.decomposed(cuts(layer.shape, full=False))]
    for one in models:
        (y,) = run(one, {"x": np.zeros(place.shape, np.float32)})
        assert y.shape[:2] == (2, F)
    for call in GEMMS:
        model, feeds = product(call)
        place = isolate(ModelIndex(model), only_layer(model), feeds["x"].shape)
        (alone,) = place.decomposed([Cut(num_slices=1, rank=2)])
        run(alone, {"x": feeds["x"]})


@pytest.mark.parametrize("calibrated", [False, True])
def test_compress_and_its_plan(calibrated: bool) -> None:
    """A model that onnxruntime saved: half is gone; the plan gives the same again."""
    model, feeds, cr = field_cases.fused_conv()
    data = [{"x": x[None]} for x in feeds["x"]] if calibrated else None
    result = alds_onnx.compress(model, cr=cr, calibration=data, threads=1)
    (row,) = result.plan.layers
    assert (row.op, row.decision) == ("com.microsoft.FusedConv", Decision.DECOMPOSE)
    assert row.macs_before == 64 * 64 * 9 * 64
    assert result.plan.parameters_after <= (1 - cr) * num_parameters(ModelIndex(model))
    (y,), (z,) = run(model, feeds), run(result.model, feeds)
    assert np.linalg.norm(y - z) <= 0.05 * np.linalg.norm(y)
    again = alds_onnx.compress(model, plan=result.plan, calibration=data, threads=1)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    merged = alds_onnx.merge(result.model).model
    assert list(merged.graph.node) == list(model.graph.node)


def test_pairs_within_pairs() -> None:
    """The factors are Convs but for the last one."""
    model, feeds = fused_conv('activation = "Relu"', "strides pads")
    once = cut_all(model, Scheme.ENCODE, rank=8)
    twice = cut_all(once, Scheme.ENCODE)
    merging = merge_pairs(twice, NOWHERE)
    assert merging.left == ()
    assert list(merging.model.graph.node) == list(model.graph.node)
    assert_close(run(merging.model, feeds), run(twice, feeds))
