"""Models that onnx's checker lets pass although they contradict themselves, and such as do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import ModelProto, TensorProto

from alds_onnx import compress
from alds_onnx.errors import ModelError
from alds_onnx.graph.files import load
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.files.skeleton import skeleton
from alds_onnx.graph.files.validity import contradiction
from alds_onnx.graph.tensors import NUMBERS, every
from tests.graph.builders import Array, normal, parse, run

_X4 = "float[1, 8, 9, 9] x"


def conv(
    attributes: str = "",
    weight: tuple[int, ...] = (12, 8, 3, 3),
    bias: tuple[int, ...] = (12,),
    *,
    op: str = "Conv",
    x: str = _X4,
) -> ModelProto:
    text = f"g ({x}) => (float[n, f, h, w] y) {{ c = {op}{attributes}(x, W, b) y = Relu(c) }}"
    return parse(text, {"W": normal(*weight), "b": normal(*bias)})


def gemm(attributes: str, weight: tuple[int, ...], c: tuple[int, ...]) -> ModelProto:
    text = f"g (float[6, 16] x) => (float[m, n] y) {{ y = Gemm{attributes}(x, W, c) }}"
    return parse(text, {"W": normal(*weight), "c": normal(*c)})


def matmul(x: str, weight: tuple[int, ...], rest: str = "", **more: Array) -> ModelProto:
    """A MatMul from x to a, and what comes behind it."""
    body = f"a = MatMul(x, W) {rest or 'y = Relu(a)'}"
    return parse(
        f"g (float[{x}] x) => (float[m, n] y) {{ {body} }}", {"W": normal(*weight), **more}
    )


def behind(rest: str, **more: Array) -> ModelProto:
    return matmul("6, 16", (16, 20), rest, **more)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


BROKEN: dict[str, tuple[ModelProto, str]] = {
    "group over channels": (conv("<group=3>"), "group 3 take 24 channels, input 'x' has 8"),
    "fewer channels": (conv(weight=(12, 4, 3, 3)), "take 4 channels, input 'x' has 8"),
    "channels of a batch of any size": (
        conv(weight=(12, 4, 3, 3), x="float[N, 8, H, W0] x"), "input 'x' has 8"),
    "group of features": (conv("<group=4>", (10, 2, 3, 3), (10,)), "group 4 does not divide"),
    "group 0": (conv("<group=0>"), "group is 0"),
    "kernel_shape": (conv("<kernel_shape=[5, 5]>"), "kernel_shape is [5, 5]"),
    "kernel_shape of one axis": (conv("<kernel_shape=[3]>"), "kernel_shape is [3]"),
    "bias": (conv(bias=(11,)), "bias 'b' has shape [11]"),
    "bias with two axes": (conv(bias=(1, 12)), "bias 'b' has shape [1, 12]"),
    "auto_pad": (conv('<auto_pad="SOME">'), "auto_pad is 'SOME'"),
    "auto_pad and pads": (conv('<auto_pad="VALID", pads=[1, 1, 1, 1]>'), "both auto_pad VALID"),
    "kernel wider than the input": (conv(weight=(12, 8, 11, 11)), "reaches beyond input 'x'"),
    "dilated kernel": (conv("<dilations=[5, 5]>"), "reaches beyond input 'x'"),
    "strides": (conv("<strides=[0, 1]>"), "strides"),
    "pads": (conv("<pads=[1, 1]>"), "pads"),
    "rank": (conv(weight=(12, 8, 9)), "spatial dimensions"),
    "ConvTranspose's channels": (conv(op="ConvTranspose"), "take 12 channels, input 'x' has 8"),
    "ConvTranspose's bias": (
        conv("<group=2>", (8, 12, 3, 3), op="ConvTranspose"), "makes 24 channels"),
    "channels by inference": (
        parse(f"g ({_X4}) => (float[n, f, h, w] y) {{ a = Conv(x, V) b = Relu(a) y = Conv(b, W) }}",
              {"V": normal(16, 8, 3, 3), "W": normal(8, 24, 3, 3)}),
        "node 'y' (Conv): weight 'W' [8, 24, 3, 3] and group 1 take 24 channels, input 'b' has 16"),
    "channels behind a custom operator": (
        parse(f"g ({_X4}) => (float[n, f, h, w] y, float q) {{ q = my.Op(x) y = Conv(x, W) }}",
              {"W": normal(12, 4, 3, 3)}, imports=', "my": 1'),
        "input 'x' has 8"),
    "Gemm's inner size": (gemm("", (12, 16), (16,)), "inner sizes 16 and 12"),
    "Gemm's transA": (gemm("<transA=1>", (16, 12), (12,)), "inner sizes 6 and 16"),
    "Gemm's transB": (gemm("<transB=1>", (16, 12), (12,)), "inner sizes 16 and 12"),
    "Gemm's bias": (gemm("", (16, 12), (13,)), "'c' of shape [13] does not broadcast to [6, 12]"),
    "Gemm's bias of rows": (gemm("", (16, 12), (5, 1)), "does not broadcast"),
    "Gemm's bias with three axes": (gemm("", (16, 12), (1, 6, 12)), "does not broadcast"),
    "MatMul's inner size": (matmul("N, 16", (12, 20)), "[?, 16] by [12, 20]"),
    "MatMul's batch": (matmul("2, 6, 16", (3, 16, 20)), "node 'a' (MatMul)"),
    "MatMul by a vector": (matmul("6, 16", (15,)), "inner sizes 16 and 15"),
    "two types": (behind("y = Add(a, b)", b=normal(20, dtype="float64")), "node 'y' (Add)"),
    "broadcast": (behind("y = Add(a, b)", b=normal(21)), "node 'y' (Add)"),
    "Concat": (behind("y = Concat<axis=0>(a, b)", b=normal(2, 21)), "node 'y' (Concat)"),
    "axis": (behind("y = Softmax<axis=7>(a)"), "node 'y' (Softmax)"),
    "perm": (behind("y = Transpose<perm=[0, 0]>(a)"), "node 'y' (Transpose)"),
    "Reshape": (behind("y = Reshape(a, s)", s=ints(7, 20)), "it makes 140 elements of 120"),
    "Reshape's shape": (behind("y = Reshape(a, s)", s=ints(-1, -1)), "node 'y' (Reshape)"),
    "Gather by floats": (behind("y = Gather(a, i)", i=normal(2)), "node 'y' (Gather)"),
    "statistics": (behind("y = BatchNormalization(a, s, s, s, s)", s=normal(21) ** 2), "node 'y'"),
    "branch": (
        parse("g (bool c, float[6, 16] x) => (float[m, n] y) { y = If(c) <"
              "then_branch = t () => (float[m, n] p) { p = MatMul(x, W) }, "
              "else_branch = e () => (float[m, n] q) { q = MatMul(x, V) }> }",
              {"W": normal(16, 12), "V": normal(12, 16)}),
        "node 'y' (If): node 'q' (MatMul)"),
    "kernel_shape in a branch": (
        parse(f"g (bool c, {_X4}) => (float[n, f, h, w] y) {{ y = If(c) <"
              "then_branch = t () => (float[n, f, h, w] p) { p = Identity(x) }, "
              "else_branch = e () => (float[n, f, h, w] q) { q = Conv<kernel_shape=[1, 1]>(x, W) }"
              "> }", {"W": normal(12, 8, 3, 3)}),
        "node 'q' (Conv): kernel_shape is [1, 1]"),
}  # fmt: skip


def function_model(
    call: str = "y = local.f(a)", body: str = "q = Relu(p)", inputs: str = "p"
) -> ModelProto:
    header = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>\n'
    graph = f"g (float[6, 16] x) => (float[m, n] y) {{ a = MatMul(x, W) {call} }}\n"
    function = f'<domain: "local", opset_import: ["" : 17]>\nf ({inputs}) => (q) {{ {body} }}'
    model = onnx.parser.parse_model(header + graph + function)
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(16, 20), "W"))
    return model


BROKEN |= {
    "too many inputs of a function": (
        function_model("y = local.f(a, a)"), "2 inputs and 1 outputs, but the function"),
    "too many outputs of a function": (function_model("y, z = local.f(a)"), "1 inputs and 2 outp"),
    "an output that a function does not make": (
        function_model(body="r = Relu(p)"), "nothing makes output 'q' of function 'f'"),
    "inner size in a function": (
        function_model("y = local.f(a, W)", "q = MatMul(p, w)", "p, w"), "node 'q' (MatMul)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_contradictions_are_refused(name: str, tmp_path: Path) -> None:
    model, reason = BROKEN[name]
    onnx.checker.check_model(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert reason in message
    assert message.startswith(f"'{path}' contradicts itself: ")
    assert "\n" not in message
    with pytest.raises(Exception, match=r".+"):
        run(model, feeds_of(model))


def feeds_of(model: ModelProto) -> dict[str, Array]:
    """Zeros (False), of the sizes of inputs; 2 where they are free."""
    feeds = dict[str, Array]()
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [max(d.dim_value, 0) or 2 for d in tensor.shape.dim]
        feeds[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return feeds


@pytest.mark.parametrize(("imports", "refused"), [
    ([("", 17), ("", 13)], True), ([("", 17), ("ai.onnx", 13)], True),
    ([("", 17), ("my", 1), ("my", 2)], True), ([("", 17), ("ai.onnx", 17)], False),
    ([("", 17), ("", 17)], False), ([("", 17), ("my", 1), ("your", 2)], False),
])  # fmt: skip
def test_imports_of_one_domain(imports: list[tuple[str, int]], refused: bool) -> None:
    model = conv()
    model.ClearField("opset_import")
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in imports)
    found = contradiction(model)
    assert found.startswith("it imports domain") == refused
    assert bool(found) == refused


@pytest.mark.parametrize(("element_type", "shape", "reason"), [
    (TensorProto.DOUBLE, [12, 8, 3, 3], "is of type FLOAT"),
    (TensorProto.FLOAT, [8, 12, 3, 3], "has shape [12, 8, 3, 3]"),
    (TensorProto.FLOAT, [12, 8, 9], "has shape [12, 8, 3, 3]"),
    (99, [12, 8, 3, 3], "type 99"),
    (TensorProto.FLOAT, ["f", 8, 3, 3], ""),
    (TensorProto.FLOAT, [-1, 0, 3, 3], ""),
    (TensorProto.FLOAT, None, ""),
])  # fmt: skip
def test_inputs_with_an_initializer(
    element_type: int, shape: list[int | str] | None, reason: str
) -> None:
    model = conv()
    value = onnx.helper.make_tensor_value_info("W", element_type, shape)
    model.graph.input.append(value)
    assert reason in contradiction(model)
    assert bool(contradiction(model)) == bool(reason)


def with_declared(name: str, shape: list[int]) -> ModelProto:
    model = behind("y = Relu(a)")
    place = model.graph.output if name == "y" else model.graph.value_info
    if name == "y":
        model.graph.ClearField("output")
    place.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def free(size: int) -> ModelProto:
    model = conv()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size
    return model


def unknown_sizes() -> ModelProto:
    """ONNX's inference takes the unknown length of Resize's sizes for 0, and says so."""
    return parse("g (float[1, 8, 9, 9] x, int64[k] s) => (float[n, f, h, w] y) "
                 "{ a = Conv(x, W) y = Resize(a, , , s) }", {"W": normal(12, 8, 3, 3)})  # fmt: skip


def mean_variance() -> ModelProto:
    """ONNX's inference does not fill in the default of an attribute in this operator's body."""
    return parse(f"g ({_X4}) => (float[n, f, h, w] y) "
                 "{ a = Conv(x, W) y = MeanVarianceNormalization(a) }",
                 {"W": normal(12, 8, 3, 3)})  # fmt: skip


def never_run() -> ModelProto:
    """A branch for another number of channels."""
    return parse(f"g (bool c, {_X4}) => (float[n, f, h, w] y) {{ y = If(c) <"
                 "then_branch = t () => (float[n, f, h, w] p) { p = Conv(x, W) }, "
                 "else_branch = e () => (float[n, f, h, w] q) { q = Conv(x, V) }> }",
                 {"W": normal(12, 8, 3, 3), "V": normal(12, 3, 3, 3)})  # fmt: skip


def initializer_as_branch() -> ModelProto:
    return parse(
        "g (bool c, float[4, 30] x) => (float[m, n] y) { y = If(c) <"
        "then_branch = t () => (float[m, n] p) { p = Identity(x) }, "
        "else_branch = e () => (float[m, n] q) <float[1, 2] q = {1, 2}> { }> }"
    )


def custom_before_branch() -> ModelProto:
    """What the operator makes has no type that could be known in the branch."""
    return parse("g (bool c, float[4, 16] x) => (float[m, n] y) { z = my.Op(x) y = If(c) <"
                 "then_branch = t () => (float[m, n] p) { p = MatMul(z, W) }, "
                 "else_branch = e () => (float[m, n] q) { q = Identity(z) }> }",
                 {"W": normal(16, 20)}, imports=', "my": 1')  # fmt: skip


LEGAL: dict[str, Callable[[], ModelProto]] = {
    "as it should be": conv,
    "group": lambda: conv("<group=2>", (12, 4, 3, 3)),
    "pads that make room": lambda: conv("<pads=[1, 1, 1, 1]>", (12, 8, 11, 11)),
    "auto_pad that makes room": lambda: conv('<auto_pad="SAME_UPPER">', (12, 8, 11, 11)),
    "ConvTranspose": lambda: conv("<group=2>", (8, 6, 3, 3), op="ConvTranspose"),
    "free channels": lambda: conv(x="float[N, C, H, W0] x"),
    "channels -1": lambda: free(-1),
    "channels 0": lambda: free(0),
    "a row": lambda: gemm("", (16, 12), (1, 12)),
    "a column": lambda: gemm("<transB=1>", (12, 16), (6, 1)),
    "a scalar": lambda: gemm("", (16, 12), ()),
    "a vector": lambda: matmul("6, 16", (16,), "y = Unsqueeze(a, s)", s=ints(1)),
    "a wrong output shape": lambda: with_declared("y", [6, 99]),
    "a wrong shape between": lambda: with_declared("a", [6, 20, 1]),
    "unknown number of sizes": unknown_sizes,
    "a default within an operator": mean_variance,
    "a branch that never runs": never_run,
    "an initializer as a branch": initializer_as_branch,
    "a function": function_model,
    "a custom operator before a branch": custom_before_branch,
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_models_pass(name: str) -> None:
    model = LEGAL[name]()
    onnx.checker.check_model(model)
    assert contradiction(model) == ""


def test_operator_sets_of_the_future_pass() -> None:
    model = behind("y = Softmax<axis=7>(a)")
    assert contradiction(model)
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    assert contradiction(model) == ""


def test_shapes_in_other_files_are_not_read() -> None:
    """With the numbers elsewhere it is not known that the Reshape is impossible."""
    model = behind("y = Reshape(a, s)", s=ints(7, 20))
    assert contradiction(model)
    for tensor in every(TensorProto, model):
        for numbers in NUMBERS:
            tensor.ClearField(numbers)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="nowhere.bin")
    assert contradiction(model) == ""
    model.graph.node[0].input[1] = "s"  # shapes are known all the same
    assert "node 'a' (MatMul)" in contradiction(model)


def test_skeletons_hold_no_weights() -> None:
    model = parse("g (float[6, 400] x) => (float[m, n] y) "
                  "{ V = Constant<value = float[1] {0}>() a = MatMul(x, W) y = MatMul(a, V) }",
                  {"W": normal(400, 300)})  # fmt: skip
    model.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(normal(300, 200)))
    assert skeleton(model).ByteSize() < 1000
    assert contradiction(model) == ""
    model.graph.node[0].attribute[0].t.dims[:] = [200, 300]
    assert "[6, 300] by [200, 300]" in contradiction(model)


def with_broken_text(model: ModelProto, text: bytes) -> ModelProto:
    """Make a name of four letters no UTF-8."""
    data = model.SerializeToString()
    assert data.count(text) == 1
    broken = ModelProto()
    broken.ParseFromString(data.replace(text, b"\xf4" + text[1:]))
    return broken


def test_names_that_are_not_text() -> None:
    model = conv()
    model.graph.name = "main"
    assert contradiction(with_broken_text(model, b"main")) == ""
    value = model.graph.sparse_initializer.add(dims=[3])
    value.values.CopyFrom(onnx.numpy_helper.from_array(normal(2), "some"))
    value.indices.CopyFrom(onnx.numpy_helper.from_array(ints(0, 2), "at"))
    load_model(model)
    with pytest.raises(ModelError, match="cannot be checked: 'utf-8' codec"):
        load_model(with_broken_text(model, b"some"))


def test_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv("<group=3>").SerializeToString())
    with pytest.raises(ModelError):
        compress(path, cr=0.1).save(tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_long_contradictions_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "contradiction", lambda _: "n" * 1000)
    with pytest.raises(ModelError, match=r"\.\.\.: mend it, or export it again$"):
        load_model(conv())
