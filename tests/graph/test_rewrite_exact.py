"""The rewritten model computes what the original does with W replaced by Ŵ, whatever the node."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import ModelProto

from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from tests.graph.builders import (
    ONNX_TYPES,
    Array,
    assert_close,
    layers_of,
    names_in,
    nodes,
    normal,
    only_layer,
    parse,
    replacements_of,
    run,
)

C, F = 8, 12
BATCH = 2
SIZES = {1: (17,), 2: (9, 8), 3: (6, 5, 7)}
SYMBOLS = "abcd"


def check_exact(model: ModelProto, feeds: dict[str, Array], num_slices: int) -> None:
    """Checker, then numerics: against Ŵ at a low rank, against the original at the full one."""
    onnx.checker.check_model(model, full_check=True)
    for rank in (2, None):
        replacements = replacements_of(model, num_slices, rank)
        assert [r.factors.cut.num_slices for r in replacements] == [num_slices]
        actual = rewrite(model, replacements)
        onnx.checker.check_model(actual, full_check=True)
        assert names_in(actual) > names_in(model) - {"W"}
        assert actual.opset_import == model.opset_import
        assert actual.ir_version == model.ir_version
        assert actual.graph.output == model.graph.output
        assert actual.graph.input == model.graph.input
        expected = model if rank is None else with_composed_weights(model, replacements)
        assert_close(run(actual, feeds), run(expected, feeds))


def conv_model(
    axes: int, attributes: str, *, bias: bool = True, kernel: int = 3, dtype: str = "float32"
) -> tuple[ModelProto, dict[str, Array]]:
    kind, dims = ONNX_TYPES[dtype], ", ".join(map(str, (BATCH, C, *SIZES[axes])))
    result = ", ".join(SYMBOLS[:axes])
    weights = {"W": normal(F, C, *[kernel] * axes, dtype=dtype)}
    if bias:
        weights["B"] = normal(F, dtype=dtype)
    inputs = "x, W, B" if bias else "x, W"
    model = parse(
        f"g ({kind}[{dims}] x) => ({kind}[{BATCH}, {F}, {result}] y) "
        f"{{ [conv] y = Conv{attributes}({inputs}) }}",
        weights,
        opset=13,
    )
    return model, {"x": normal(BATCH, C, *SIZES[axes], dtype=dtype, seed=1)}


def pads_of(name: str, axes: int) -> str:
    if name.isupper():
        return f'auto_pad = "{name}"'
    before, after = {"none": (0, 0), "symmetric": (1, 1), "asymmetric": (0, 2)}[name]
    return f"pads = [{', '.join([str(before)] * axes + [str(after)] * axes)}]"


PADS = ("none", "symmetric", "asymmetric", "SAME_UPPER", "SAME_LOWER", "VALID")


AXES_AND_BIAS = [
    pytest.param(axes, bias, id=f"{axes}D-{'bias' if bias else 'no-bias'}")
    for axes, bias in ((1, True), (2, True), (2, False), (3, False))
]


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize(("axes", "bias"), AXES_AND_BIAS)
def test_conv(axes: int, bias: bool, pads: str, stride: int, num_slices: int) -> None:
    strides = ", ".join([str(stride)] * axes)
    model, feeds = conv_model(axes, f"<{pads_of(pads, axes)}, strides = [{strides}]>", bias=bias)
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("pads", ["none", "symmetric", "asymmetric", "VALID"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_with_dilations(axes: int, pads: str, num_slices: int) -> None:
    """Without SAME_UPPER and SAME_LOWER: onnxruntime does not run these with dilations."""
    dilations = ", ".join(["2"] * axes)
    model, feeds = conv_model(axes, f"<{pads_of(pads, axes)}, dilations = [{dilations}]>")
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("attributes", ["", "<group = 1>", "<kernel_shape = KERNEL, group = 1>"])
def test_conv_in_half_precision(attributes: str, axes: int, num_slices: int) -> None:
    kernel = str([3] * axes)
    model, feeds = conv_model(axes, attributes.replace("KERNEL", kernel), dtype="float16")
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 2])
def test_conv_in_double_precision(axes: int, num_slices: int) -> None:
    """In ONNX's reference evaluator: onnxruntime's CPU provider has no such Conv."""
    model, feeds = conv_model(axes, f"<{pads_of('asymmetric', axes)}>", dtype="float64")
    replacements = replacements_of(model, num_slices)
    actual, dense = rewrite(model, replacements), with_composed_weights(model, replacements)
    onnx.checker.check_model(actual, full_check=True)
    evaluate = [onnx.reference.ReferenceEvaluator(m).run(None, feeds) for m in (actual, dense)]
    assert_close(*evaluate)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_pointwise_conv_with_strides(num_slices: int) -> None:
    model, feeds = conv_model(2, "<strides = [2, 1]>", kernel=1)
    check_exact(model, feeds, num_slices)


def test_conv_with_an_omitted_bias() -> None:
    model, feeds = conv_model(2, "", bias=False)
    model.graph.node[0].input.append("")
    check_exact(model, feeds, 2)


M = 5
#: Shapes of C that broadcast to (M, F).
C_SHAPES = ((), (1,), (F,), (1, F), (M, 1), (M, F), (1, 1))


def gemm_model(
    trans_a: int,
    trans_b: int,
    left: bool,
    *,
    bias: tuple[int, ...] | None = (F,),
    scales: str = ", alpha = 0.5, beta = 2.0",
    dtype: str = "float32",
    opset: int = 13,
) -> tuple[ModelProto, dict[str, Array]]:
    """Y (M, F) with the weight on the right, (F, M) with it on the left."""
    kind = ONNX_TYPES[dtype]
    rows, columns = (F, M) if left else (M, F)
    a, b = (rows, C)[:: -1 if trans_a else 1], (C, columns)[:: -1 if trans_b else 1]
    weight, data = (a, b) if left else (b, a)
    constants = {"W": normal(*weight, dtype=dtype)}
    if bias is not None:
        constants["B"] = normal(*(bias[::-1] if left else bias), dtype=dtype, seed=2)
    operands = ("W, x" if left else "x, W") + (", B" if bias is not None else "")
    model = parse(
        f"g ({kind}[{data[0]}, {data[1]}] x) => ({kind}[{rows}, {columns}] y) "
        f"{{ y = Gemm<transA = {trans_a}, transB = {trans_b}{scales}>({operands}) }}",
        constants,
        opset=opset,
    )
    return model, {"x": normal(*data, dtype=dtype, seed=1)}


FLAGS = [pytest.param(a, b, side, id=f"{a}{b}-{'left' if side else 'right'}")
         for a, b, side in product((0, 1), (0, 1), (False, True))]  # fmt: skip


OLD_AND_NEW = [(7, 1), *product([9, 11, 13, 17], [1, 2, 4])]


@pytest.mark.parametrize(("trans_a", "trans_b", "left"), FLAGS)
@pytest.mark.parametrize(("opset", "num_slices"), OLD_AND_NEW)
def test_gemm(opset: int, trans_a: int, trans_b: int, left: bool, num_slices: int) -> None:
    model, feeds = gemm_model(trans_a, trans_b, left, opset=opset, bias=(M, F))
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize("bias", C_SHAPES, ids=str)
@pytest.mark.parametrize(("trans_a", "trans_b", "left"), FLAGS)
def test_gemm_broadcasts_its_bias(
    trans_a: int, trans_b: int, left: bool, bias: tuple[int, ...]
) -> None:
    if left and bias == (F,):
        bias = (F, M)[1:]  # along the columns of Y, which are M here
    model, feeds = gemm_model(trans_a, trans_b, left, bias=bias)
    check_exact(model, feeds, 2)


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("bias", [None, (F,)], ids=["no-bias", "bias"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scales", ["", ", alpha = 0.25", ", beta = 3.0", ", alpha=-1.0, beta=0.0"])
def test_gemm_scales(
    scales: str, dtype: str, bias: tuple[int, ...] | None, num_slices: int
) -> None:
    model, feeds = gemm_model(0, 1, False, bias=bias, scales=scales, dtype=dtype)
    check_exact(model, feeds, num_slices)


def test_gemm_with_an_omitted_bias() -> None:
    model, feeds = gemm_model(0, 0, False, bias=None)
    model.graph.node[0].input.append("")
    check_exact(model, feeds, 2)


def test_gemm_whose_bias_is_its_activation() -> None:
    model = parse(
        "g (float[16, 16] x) => (float[16, 16] y) { y = Gemm(x, W, x) }", {"W": normal(16, 16)}
    )
    check_exact(model, {"x": normal(16, 16, seed=1)}, 4)


def matmul_model(
    left: bool,
    batch: tuple[int, ...],
    *,
    dtype: str = "float32",
    opset: int = 13,
    vector: bool = False,
    known: bool = True,
) -> tuple[ModelProto, dict[str, Array]]:
    """Y (.., M, F) with the weight on the right, (.., F, M) with it on the left."""
    kind = ONNX_TYPES[dtype]
    data = (C,) if vector else (*batch, C, M) if left else (*batch, M, C)
    result = (F,) if vector else (*batch, F, M) if left else (*batch, M, F)
    declared = data if known else [f"n{axis}" for axis in range(len(data))]
    operands = "W, x" if left else "x, W"
    model = parse(
        f"g ({kind}[{', '.join(map(str, declared))}] x) => "
        f"({kind}[{', '.join(map(str, result))}] y) {{ y = MatMul({operands}) }}",
        {"W": normal(*(F, C) if left else (C, F), dtype=dtype)},
        opset=opset,
    )
    return model, {"x": normal(*data, dtype=dtype, seed=1)}


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=["rank2", "rank3", "rank4"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul(left: bool, batch: tuple[int, ...], dtype: str, num_slices: int) -> None:
    model, feeds = matmul_model(left, batch, dtype=dtype)
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize(("opset", "num_slices"), OLD_AND_NEW)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul_of_every_opset(left: bool, opset: int, num_slices: int) -> None:
    model, feeds = matmul_model(left, (3,), opset=opset)
    check_exact(model, feeds, num_slices)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul_with_a_vector(left: bool) -> None:
    model, feeds = matmul_model(left, (), vector=True)
    assert only_layer(model).slice_counts == (1,)
    check_exact(model, feeds, 1)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("opset", [7, 8])
def test_no_slices_without_integer_constants(opset: int, op: str) -> None:
    """The shape of a Reshape cannot be a Constant before opset 9."""
    model, _ = gemm_model(0, 0, False, bias=None, scales="", opset=opset)
    if op == "MatMul":
        model, _ = matmul_model(False, (), opset=opset)
    assert only_layer(model).slice_counts == (1,)


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, M])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_matmul_with_free_sizes(
    left: bool, batch: tuple[int, ...], rows: int, num_slices: int
) -> None:
    """No rows at all are what a detector's head gets where nothing was detected."""
    model, feeds = matmul_model(left, batch, known=False)
    feeds = {"x": feeds["x"][..., :rows] if left else feeds["x"][..., :rows, :]}
    replacements = replacements_of(model, num_slices)
    assert replacements[0].factors.cut.num_slices == num_slices
    actual, dense = rewrite(model, replacements), with_composed_weights(model, replacements)
    assert_close(run(actual, feeds), run(dense, feeds))


def test_unknown_rank_has_one_slice() -> None:
    """The rank of a Reshape to a computed shape is not known before the run."""
    model = parse(
        "g (float[4, 8] x, int64[n] s) => (float[a, b, c] y) "
        "{ r = Reshape(x, s) y = MatMul(r, W) }",
        {"W": normal(C, F)},
    )
    layer = only_layer(model)
    assert layer.activation_rank is None
    assert not layer.is_sliceable
    assert layer.slice_counts == (1,)
    replacements = replacements_of(model, 1)
    feeds = {"x": normal(4, 8), "s": np.array([2, 2, 8])}
    actual, dense = rewrite(model, replacements), with_composed_weights(model, replacements)
    assert_close(run(actual, feeds), run(dense, feeds))


@pytest.mark.parametrize("graph", [
    "a = MatMul(x, W) b = MatMul(v, W)",
    "b = MatMul(v, W) a = MatMul(x, W)",
])  # fmt: skip
def test_layers_that_share_have_the_fewest_slices(graph: str) -> None:
    """A vector allows one slice only, so the matrix that shares its factors has one as well."""
    model = parse(f"g (float[3, 8] x, float[8] v) => (float[3, 12] a, float[12] b) {{ {graph} }}",
                  {"W": normal(C, F)})  # fmt: skip
    found = layers_of(model)
    assert [layer.slice_counts for layer in found if isinstance(layer, Layer)] == [(1,), (1,)]
    replacements = replacements_of(model, 2)
    feeds = {"x": normal(3, 8), "v": normal(8)}
    actual, dense = rewrite(model, replacements), with_composed_weights(model, replacements)
    assert_close(run(actual, feeds), run(dense, feeds))


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_bfloat16_is_written_as_such(num_slices: int) -> None:
    """Not run: onnxruntime has no such MatMul on a CPU."""
    weight = normal(C, F).astype(ml_dtypes.bfloat16)
    model = parse("g (bfloat16[3, 8] x) => (bfloat16[3, 12] y) { y = MatMul(x, W) }", {"W": weight})
    actual = rewrite(model, replacements_of(model, num_slices))
    onnx.checker.check_model(actual, full_check=True)
    assert {t.data_type for t in actual.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_the_last_node_keeps_name_output_and_attributes() -> None:
    """So that what a runtime fuses behind the layer still fuses."""
    model, _ = gemm_model(1, 0, False)
    model.graph.node[0].name, model.graph.node[0].doc_string = "fc", "a note"
    (old,) = model.graph.node
    (*_, new) = nodes(rewrite(model, replacements_of(model, 2)))
    assert (new.name, new.doc_string, new.output) == (old.name, old.doc_string, old.output)
    assert new.attribute == old.attribute


def test_weights_of_every_storage_read_alike() -> None:
    """raw_data or float_data: the same numbers, the same factors."""
    model, _ = matmul_model(False, ())
    typed = ModelProto()
    typed.CopyFrom(model)
    weight = typed.graph.initializer[0]
    weight.float_data.extend(normal(C, F).ravel())
    weight.ClearField("raw_data")
    one, other = (rewrite(m, replacements_of(m)) for m in (model, typed))
    assert one == other


def test_same_input_same_bytes() -> None:
    model, _ = conv_model(2, "")
    first, second = (rewrite(model, replacements_of(model, 2)) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_nothing_to_replace_is_a_copy() -> None:
    model, _ = conv_model(2, "")
    same = rewrite(model, [])
    assert same == model
    assert same is not model


EMPTY = [
    ("y = MatMul(x, W)", (12, F), "N, 12", [(0, 12)]),
    ("y = MatMul(x, W)", (12, F), "B, N, 12", [(0, 3, 12), (3, 0, 12), (0, 0, 12)]),
    ("y = MatMul(x, W)", (12, F), "A, B, N, 12", [(0, 2, 3, 12), (2, 0, 3, 12), (2, 3, 0, 12)]),
    ("y = MatMul(W, x)", (F, 12), "12, N", [(12, 0)]),
    ("y = MatMul(W, x)", (F, 12), "B, 12, N", [(3, 12, 0)]),  # it has no product of no matrices
    ("y = Gemm(x, W)", (12, F), "N, 12", [(0, 12)]),
    ("y = Gemm<transA = 1>(x, W)", (12, F), "12, N", [(12, 0)]),
]


@pytest.mark.parametrize("is_free", [True, False])
@pytest.mark.parametrize("num_slices", [1, 3])
@pytest.mark.parametrize(("body", "weight", "dims", "shapes"), EMPTY)
def test_activations_without_entries(
    body: str,
    weight: tuple[int, int],
    dims: str,
    shapes: list[tuple[int, ...]],
    num_slices: int,
    is_free: bool,
) -> None:
    """Where the original gives an output without entries, so does the rewritten model."""
    result = ", ".join(f"y{i}" for i in range(dims.count(",") + 1))
    for shape in shapes:
        known = dims if is_free else ", ".join(map(str, shape))
        text = f"g (float[{known}] x) => (float[{result}] y) {{ {body} }}"
        model = parse(text, {"W": normal(*weight)})
        actual = rewrite(model, replacements_of(model, num_slices))
        feeds = {"x": normal(*shape)}
        (expected,) = run(model, feeds)
        assert expected.size == 0
        assert_close(run(actual, feeds), [expected])


@pytest.mark.parametrize("opset", [9, 14, 15, 18])
@pytest.mark.parametrize("leading", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("is_free", [True, False])
def test_slices_of_columns(opset: int, leading: tuple[int, ...], is_free: bool) -> None:
    """From opset 15 on the batch becomes rows, before its axes stay."""
    names = [f"d{i}" for i in range(len(leading))]
    dims = ", ".join(names if is_free else map(str, leading))
    result = ", ".join([*names, "f"])
    text = f"g (float[{dims}, 12] x) => (float[{result}] y) {{ y = MatMul(x, W) }}"
    model = parse(text, {"W": normal(12, F)}, opset=opset)
    check_exact(model, {"x": normal(*leading, 12)}, 3)
    actual = rewrite(model, replacements_of(model, 3))
    assert bool(nodes(actual, "Shape")) == (opset >= 15 and len(leading) > 1)
    (decoder,) = (layer for layer in layers_of(actual) if layer.name == "y")
    assert isinstance(decoder, Layer)
    assert decoder.activation_rank == len(leading) + 1
