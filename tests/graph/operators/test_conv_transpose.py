"""ConvTranspose: its rows, its cuts, what they cost, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import alds_onnx
from alds_onnx.calibrate.statistics import sample_rows
from alds_onnx.cuts import Scheme
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.layers import Skipped, read_matrix
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.rewrite import constant_bias, rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_shapes, sizes_from_weights
from alds_onnx.timing.layer_models import isolate
from alds_onnx.values import Decision
from tests.corpus import field_cases
from tests.graph.builders import (
    NOWHERE,
    Array,
    assert_close,
    layers_of,
    nodes,
    normal,
    only_layer,
    parse,
    replacements_of,
    run,
)
from tests.graph.test_merge import assert_left
from tests.graph.test_merge_schemes import CLASH, SHAPES, cut_all, small_cuts, there_and_back
from tests.graph.test_rewrite_schemes import KERNELS, attributes_of, cuts, replacement

F, C = 12, 8
SIZES = {1: (9,), 2: (5, 6), 3: (4, 3, 4)}
ATTRIBUTES = (
    *("", "strides", "dilations", "pads", "strides dilations pads"),
    *("strides output_padding", "strides dilations pads output_padding"),
    *("SAME_UPPER", "SAME_LOWER strides", "SAME_UPPER strides dilations", "VALID strides"),
)
# Sums of some hundred products in float32, in another order than onnxruntime's.
ROUNDING = 1e-4


def transposed(kernel: tuple[int, ...], names: str = "", *, bias: bool = True) -> ModelProto:
    axes = len(kernel)
    written = attributes_of(names.replace("output_padding", "").strip(), axes)
    if "output_padding" in names:  # less than the stride
        padding = [1, 0, 2][:axes]
        written = f"{written[:-1]}, output_padding = {padding}>"
    dims, result = ", ".join(map(str, (2, C, *SIZES[axes]))), ", ".join("abc"[:axes])
    constants = {"W": normal(C, F, *kernel)} | ({"B": normal(F)} if bias else {})
    return parse(
        f"g (float[{dims}] x) => (float[2, {F}, {result}] y) "
        f"{{ [up] y = ConvTranspose{written}({'x, W, B' if bias else 'x, W'}) }}",
        constants,
    )


def feeds_of(kernel: tuple[int, ...]) -> dict[str, Array]:
    return {"x": normal(2, C, *SIZES[len(kernel)], seed=1)}


@pytest.mark.parametrize("names", [*ATTRIBUTES, "strides wide"])
@pytest.mark.parametrize("kernel", [*KERNELS, (1, 1)], ids=str)
def test_rows_times_the_matrix_are_the_outputs(kernel: tuple[int, ...], names: str) -> None:
    """Also where pads are wider than the kernel."""
    model = transposed(kernel, names.removesuffix(" wide"))
    if names.endswith("wide"):
        pads = helper.make_attribute("pads", [n for n in (0, 1) for _ in kernel])
        model.graph.node[0].attribute.append(pads)
    feeds, layer = feeds_of(kernel), only_layer(model)
    (y,) = run(model, feeds)
    drawn = sample_rows(layer, model.graph.node[0], feeds["x"], 10**6, np.random.default_rng(0))
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    expected = np.moveaxis(y, 1, -1).reshape(-1, F) - normal(F)
    np.testing.assert_allclose(drawn @ matrix.T, expected, atol=ROUNDING)


@pytest.mark.parametrize("names", ATTRIBUTES)
@pytest.mark.parametrize("kernel", [*KERNELS, (1, 1)], ids=str)
def test_every_scheme_is_exact_and_merged_again(kernel: tuple[int, ...], names: str) -> None:
    """At a low rank against Ŵ, at the full one against the original; then the way back."""
    model, feeds = transposed(kernel, names, bias=kernel != (3, 2)), feeds_of(kernel)
    for full in (False, True):
        for cut in cuts(only_layer(model).shape, full=full):
            done = [replacement(model, cut)]
            actual = rewrite(model, done)
            onnx.checker.check_model(actual)
            expected = model if full else with_composed_weights(model, done)
            assert_close(run(actual, feeds), run(expected, feeds))
            last = actual.graph.node[-1]
            assert (last.name, list(last.output)) == ("up", ["y"])
            assert all(len(node.input) == 2 for node in actual.graph.node[:-1])
            there_and_back(model, done)


def test_each_stage_has_its_operator() -> None:
    """A kernel of one entry is a 1x1 Conv."""
    made = {}
    model = transposed((3, 2), "strides")
    for cut in small_cuts(model):
        new = rewrite(model, [replacement(model, cut)])
        made[cut.scheme] = [node.op_type for node in new.graph.node]
    up = "ConvTranspose"
    assert made == {
        Scheme.ENCODE: [up, "Conv"],
        Scheme.DECODE: ["Conv", up],
        Scheme.SPLIT_HEIGHT: [up, up],
        Scheme.SPLIT_WIDTH: [up, up],
        Scheme.TUCKER2: ["Conv", up, "Conv"],
    }


@pytest.mark.parametrize("names", ["", "strides pads", "strides output_padding"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_what_it_costs_is_what_is_built(kernel: tuple[int, ...], names: str) -> None:
    """Parameters and multiply-accumulates of the new nodes, counted node by node."""
    model = transposed(kernel, names, bias=False)
    index = ModelIndex(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    layer = only_layer(model)
    assert work.macs == 2 * np.prod(SIZES[len(kernel)]) * layer.shape.num_parameters
    for cut in small_cuts(model):
        new = ModelIndex(rewrite(model, [replacement(model, cut)]))
        parts = work_of_layers(new, known_shapes(new, infer(new.model))).values()
        assert len(parts) == len(new.model.graph.node)
        assert work.of_cut(layer.shape, cut) == sum(part.macs for part in parts)
        assert num_parameters(new) == cut.num_parameters(layer.shape)


@pytest.mark.parametrize(
    ("attributes", "dims", "reason"),
    [
        ("<group = 2>", (8, 6, 3, 3), "grouped convolution (group 2)"),
        ("<output_shape = [12, 14]>", (8, 12, 3, 3), "output_shape"),
        ("<kernel_shape = [3, 2]>", (8, 12, 3, 3), "contradicts"),
    ],
)
def test_what_is_refused(attributes: str, dims: tuple[int, ...], reason: str) -> None:
    call = f"y = ConvTranspose{attributes}(x, W)"
    model = parse(f"g (float[2, 8, 5, 6] x) => (float y) {{ {call} }}", {"W": normal(*dims)})
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert (row.op, row.dims) == ("ConvTranspose", dims)
    assert reason in row.reason


def test_a_weight_is_shared_with_the_same_operator_only() -> None:
    call = "y = ConvTranspose(x, W) z = ConvTranspose<strides = [2, 2]>(x, W)"
    inputs = "g (float[1, 8, 5, 6] x) => (float y, float z)"
    model = parse(f"{inputs} {{ {call} }}", {"W": normal(8, 8, 3, 3)})
    (done,) = replacements_of(model)
    assert len(done.layers) == 2
    there_and_back(model, [done])
    model = parse(f"{inputs} {{ {call} a = Conv(x, W) }}", {"W": normal(8, 8, 3, 3)})
    assert all(isinstance(row, Skipped) for row in layers_of(model))


def test_constants_in_functions_and_branches() -> None:
    model = parse(
        """
        g (bool c, float[2, 8, 5] x) => (float[2, 12, n] y) {
            y = If (c) <
                then_branch = t () => (float[2, 12, n] u) { u = custom.Up(x) },
                else_branch = e () => (float[2, 12, n] u) {
                    h = ConvTranspose(x, V) u = Neg(h)
                }
            >
        }
        <domain: "custom", opset_import: ["": 17]>
        Up (a) => (b) { c = ConvTranspose(a, W) b = Relu(c) }
        """,
        {"V": normal(8, 12, 3, seed=1)},
        imports=', "custom" : 1',
        ir=10,
    )
    value = numpy_helper.from_array(normal(8, 12, 3))
    constant = helper.make_node("Constant", [], ["W"], value=value)
    model.functions[0].node.insert(0, constant)
    done = replacements_of(model, 4)
    assert len(done) == 2
    new, dense = rewrite(model, done), with_composed_weights(model, done)
    merged = merge_pairs(new, NOWHERE).model
    assert len(nodes(merged, "ConvTranspose")) == 2
    assert not nodes(merged, "Conv")
    for choice in (True, False):
        feeds = {"c": np.array(choice), "x": normal(2, 8, 5, seed=2)}
        assert_close(run(new, feeds), run(dense, feeds))
        assert_close(run(merged, feeds), run(dense, feeds))


@pytest.mark.parametrize("inner", Scheme, ids=lambda s: s.value)
@pytest.mark.parametrize("outer", Scheme, ids=lambda s: s.value)
def test_pairs_within_pairs(outer: Scheme, inner: Scheme) -> None:
    model, feeds = transposed((3, 2), "strides pads"), feeds_of((3, 2))
    once = cut_all(model, outer, rank=8)  # its factors are not tiny, and can be cut
    twice = cut_all(once, inner)
    merging = merge_pairs(twice, NOWHERE)
    assert merging.left == ()
    assert len(merging.pairs) == len(nodes(once)) + 1
    (dense,) = merging.model.graph.node
    assert dense == model.graph.node[0]
    assert_close(run(merging.model, feeds), run(twice, feeds))


def _set(position: int, name: str, value: object) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        model.graph.node[position].attribute.append(helper.make_attribute(name, value))

    return damage


def _retype(position: int, op: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        model.graph.node[position].op_type = op

    return damage


@pytest.mark.parametrize(
    ("scheme", "damage", "reason"),
    [
        (Scheme.ENCODE, _set(1, "strides", [2, 2]), CLASH),
        (Scheme.ENCODE, _set(1, "pads", [1, 0, 0, 0]), CLASH),
        (Scheme.DECODE, _set(1, "group", 2), SHAPES),
        (Scheme.SPLIT_HEIGHT, _set(0, "output_padding", [0, 1]), CLASH),
        (Scheme.SPLIT_HEIGHT, _set(1, "output_padding", [1]), CLASH),
        (Scheme.SPLIT_HEIGHT, _retype(0, "Conv"), CLASH),
        (Scheme.SPLIT_WIDTH, _retype(1, "Conv"), SHAPES),
        (Scheme.TUCKER2, _set(2, "dilations", [2, 1]), CLASH),
        (Scheme.TUCKER2, _retype(2, "ConvInteger"), "other tools"),
    ],
)
def test_what_others_have_changed_is_left_alone(
    scheme: Scheme, damage: Callable[[ModelProto], None], reason: str
) -> None:
    """The rank is the number of inputs, so that some weights fit either operator."""
    assert_left(cut_all(transposed((3, 2)), scheme, rank=C), damage, reason)


def test_what_the_model_says_of_it() -> None:
    """Its bias may change, the weight tells the channels of the input, and it stands alone."""
    model = transposed((3, 3))
    index, layer = ModelIndex(model), only_layer(model)
    np.testing.assert_array_equal(constant_bias(index, layer, NOWHERE), normal(F))
    assert sizes_from_weights(index) == {("x", 1): C}
    place = isolate(index, layer, (2, C, *SIZES[2]))
    assert [node.op_type for node in place.skeleton.graph.node] == ["ConvTranspose"]
    for cut in small_cuts(model):
        (cut_model,) = place.decomposed([cut])
        (y,) = run(cut_model, {"x": np.zeros(place.shape, np.float32)})
        assert y.shape[:2] == (2, F)


@pytest.mark.parametrize("calibrated", [False, True])
def test_compress(calibrated: bool) -> None:
    """A layer of a U-Net of rank 8 and some noise: half is gone, and its outputs stay."""
    model, feeds, cr = field_cases.conv_transpose()
    data = [{"x": x[None]} for x in feeds["x"]] if calibrated else None
    result = alds_onnx.compress(model, cr=cr, calibration=data, threads=1)
    (row,) = result.plan.layers
    assert (row.op, row.decision) == ("ConvTranspose", Decision.DECOMPOSE)
    assert result.plan.parameters_after <= (1 - cr) * num_parameters(ModelIndex(model))
    (y,), (z,) = run(model, feeds), run(result.model, feeds)
    largest = 0.05  # the noise
    assert np.linalg.norm(y - z) <= largest * np.linalg.norm(y)
    merged = alds_onnx.merge(result.model).model
    assert merged.graph.node[0] == model.graph.node[0]


def test_doubles() -> None:
    """Which onnxruntime cannot run; so the way back is all that shows that they are right."""
    model = transposed((3,), "strides")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for cut in small_cuts(model):
        there_and_back(model, [replacement(model, cut)])
