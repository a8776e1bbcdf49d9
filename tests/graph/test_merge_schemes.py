"""Every scheme, there and back: the original with W replaced by Ŵ, field for field."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alds_onnx.cuts import Cut, Scheme, distinct
from alds_onnx.decompose.factorize import compose, factorize
from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.merge import Merging, merge_pairs
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import ModelIndex
from tests.graph.builders import (
    NOWHERE,
    assert_close,
    layers_of,
    nodes,
    normal,
    only_layer,
    parse,
    run,
)
from tests.graph.test_merge import assert_left, in_order, with_approximations
from tests.graph.test_rewrite_rest import function_model
from tests.graph.test_rewrite_schemes import ATTRIBUTES, KERNELS, C, F, conv, cuts, replacement


def there_and_back(model: ModelProto, done: list[Replacement]) -> Merging:
    """The law; and what is said of the cuts."""
    merging = merge_pairs(rewrite(model, done), NOWHERE)
    assert merging.left == ()
    assert [pair.cut for pair in merging.pairs] == [r.factors.cut for r in done for _ in r.layers]
    assert in_order(merging.model) == in_order(with_approximations(model, done))
    return merging


def small_cuts(model: ModelProto, scheme: Scheme | None = None) -> list[Cut]:
    found = cuts(only_layer(model).shape, full=False)
    return [cut for cut in found if scheme in (None, cut.scheme)]


@pytest.mark.parametrize("names", ATTRIBUTES)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_scheme_and_attribute(kernel: tuple[int, ...], names: str) -> None:
    model, _ = conv(kernel, names, bias=kernel != (3, 2))
    for cut in small_cuts(model):
        there_and_back(model, [replacement(model, cut)])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_other_types(kernel: tuple[int, ...], dtype: str) -> None:
    model, _ = conv(kernel, "pads", dtype=dtype)
    for cut in small_cuts(model):
        there_and_back(model, [replacement(model, cut)])


@pytest.mark.parametrize("order", [1, -1])
def test_attributes_keep_their_order_and_those_of_a_default_stay(order: int) -> None:
    """As exporters write them: all, or none. One group is told only of one slice."""
    model, _ = conv((3, 2))
    values = {"dilations": [1, 1], "group": 1, "kernel_shape": [3, 2], "pads": [0] * 4}
    attributes = [helper.make_attribute(name, value) for name, value in values.items()]
    model.graph.node[0].attribute.extend(attributes[::order])
    for cut in small_cuts(model):
        if cut.num_slices == 1:
            there_and_back(model, [replacement(model, cut)])


@pytest.mark.parametrize("names", ["strides dilations pads", "SAME_LOWER strides"])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (3, 1, 2)], ids=str)
def test_the_merged_model_computes_the_same(kernel: tuple[int, ...], names: str) -> None:
    model, feeds = conv(kernel, names)
    for cut in small_cuts(model):
        compressed = rewrite(model, [replacement(model, cut)])
        merged = merge_pairs(compressed, NOWHERE).model
        assert len(merged.graph.node) == 1
        assert_close(run(merged, feeds), run(compressed, feeds))


@pytest.mark.parametrize("scheme", Scheme, ids=lambda s: s.value)
@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 1)], ids=str)
def test_schemes_that_are_equal_here(kernel: tuple[int, ...], scheme: Scheme) -> None:
    """A kernel of one entry may carry strides all the same. The first equal scheme is named."""
    model, feeds = conv(kernel, "strides pads")
    rank_out = 5 if scheme is Scheme.TUCKER2 else 0
    cut = Cut(num_slices=1, rank=2, scheme=scheme, rank_out=rank_out)
    compressed = rewrite(model, [replacement(model, cut)])
    merging = merge_pairs(compressed, NOWHERE)
    assert len(merging.pairs) == 1
    if scheme in (Scheme.ENCODE, Scheme.TUCKER2):
        assert list(merging.model.graph.node) == list(model.graph.node)
    assert_close(run(merging.model, feeds), run(compressed, feeds))


def test_layers_that_shared_a_weight_share_it_again() -> None:
    model = parse(
        "g (float[1, 8, 9, 9] x) => (float[1, 12, a, b] y, float[1, 12, c, d] z) "
        "{ y = Conv<strides = [2, 1]>(x, W) z = Conv<pads = [1, 0, 1, 2]>(x, W) }",
        {"W": normal(F, C, 3, 3)},
    )
    layers = tuple(layer for layer in layers_of(model) if isinstance(layer, Layer))
    matrix = read_matrix(ModelIndex(model), layers[0], NOWHERE)
    for cut in cuts(layers[0].shape, full=False):
        factors = factorize(matrix, layers[0].shape, cut)
        there_and_back(model, [Replacement(layers=layers, factors=factors)])


def cut_all(model: ModelProto, scheme: Scheme, rank: int = 2) -> ModelProto:
    """Every Conv cut by a scheme, or by the first of its equals."""
    index, done = ModelIndex(model), []
    for layer in layers_of(model):
        assert isinstance(layer, Layer)
        (first,) = distinct(layer.shape, [scheme])
        rank_out = rank if first is Scheme.TUCKER2 else 0
        cut = Cut(num_slices=1, rank=rank, scheme=first, rank_out=rank_out)
        matrix = read_matrix(index, layer, NOWHERE)
        done.append(Replacement(layers=(layer,), factors=factorize(matrix, layer.shape, cut)))
    return rewrite(model, done)


@pytest.mark.parametrize("inner", Scheme, ids=lambda s: s.value)
@pytest.mark.parametrize("outer", Scheme, ids=lambda s: s.value)
def test_pairs_within_pairs(outer: Scheme, inner: Scheme) -> None:
    model, feeds = conv((3, 2), "strides pads")
    once = cut_all(model, outer, rank=8)  # its factors are not tiny, and can be cut
    twice = cut_all(once, inner)
    merging = merge_pairs(twice, NOWHERE)
    assert merging.left == ()
    assert len(merging.pairs) == len(nodes(once)) + 1
    (dense,) = merging.model.graph.node
    assert dense == model.graph.node[0]
    assert_close(run(merging.model, feeds), run(twice, feeds))


def test_factors_in_constants_of_a_function() -> None:
    """Three of them."""
    compressed = cut_all(function_model(), Scheme.TUCKER2)
    function = compressed.functions[0]
    assert [node.op_type for node in function.node] == ["Constant"] * 3 + ["Conv"] * 3 + ["Relu"]
    merging = merge_pairs(compressed, NOWHERE)
    feeds = {"x": normal(3, 8, 5, seed=1)}
    assert_close(run(merging.model, feeds), run(compressed, feeds))
    assert [n.op_type for n in nodes(merging.model)][-3:] == ["Constant", "Conv", "Relu"]


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 2)], ids=str)
def test_merged_and_cut_again(kernel: tuple[int, ...]) -> None:
    """The same factors up to rounding and signs; Tucker-2 has other bases of the same spaces."""
    model, _ = conv(kernel)
    rounding = 1e-5  # of float32 weights, in factors of norm about 1
    for cut in small_cuts(model):
        first = replacement(model, cut)
        merged = merge_pairs(rewrite(model, [first]), NOWHERE).model
        one, two = first.factors, replacement(merged, cut).factors
        atol = rounding * np.linalg.norm(compose(one))
        np.testing.assert_allclose(compose(two), compose(one), atol=atol)
        if cut.scheme is not Scheme.TUCKER2:
            signs = np.sign(np.einsum("kfj,kfj->kj", one.U, two.U))
            np.testing.assert_allclose(two.U * signs[:, None, :], one.U, atol=rounding)
            np.testing.assert_allclose(two.V * signs[:, :, None], one.V, atol=rounding)


def _set(position: int, name: str, value: object) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        node: NodeProto = nodes(model, "Conv")[position]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return damage


def _bias(model: ModelProto) -> None:
    width = next(t.dims[0] for t in model.graph.initializer if t.name == "W/core")
    model.graph.initializer.append(numpy_helper.from_array(normal(width), "bias"))
    nodes(model, "Conv")[1].input.append("bias")


def _read_first_code(model: ModelProto) -> None:
    value = helper.make_tensor_value_info("conv/encoded", TensorProto.FLOAT, None)
    model.graph.output.append(value)


def _read_core(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["W/core"], ["also"]))


def _override_core(model: ModelProto) -> None:
    value = helper.make_tensor_value_info("W/core", TensorProto.FLOAT, None)
    model.graph.input.append(value)


def _change(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                array = change(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    return damage


def _overflow(model: ModelProto) -> None:
    for name in ("W/encoder", "W/core", "W/decoder"):
        _change(name, lambda a: a * np.float32(1e20))(model)


def _rename_core(model: ModelProto) -> None:
    nodes(model, "Conv")[1].input[1] = "V/core"
    next(t for t in model.graph.initializer if t.name == "W/core").name = "V/core"


def _doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array], axis=-1)


D, H, T = Scheme.DECODE, Scheme.SPLIT_HEIGHT, Scheme.TUCKER2
CLASH, SHAPES = "strides, pads, dilations or groups", "shapes or types"
DAMAGES: list[tuple[Scheme, Callable[[ModelProto], None], str]] = [
    (D, _set(0, "strides", [2, 1]), CLASH),
    (D, _set(0, "pads", [0, 1, 0, 1]), CLASH),
    (D, _set(0, "auto_pad", "SAME_UPPER"), CLASH),
    (D, _set(1, "group", 2), CLASH),
    (H, _set(0, "strides", [1, 2]), CLASH),
    (H, _set(1, "pads", [1, 0, 0, 0]), CLASH),
    (H, _set(0, "dilations", [1, 2]), CLASH),
    (H, _set(1, "auto_pad", "SAME_UPPER"), CLASH),
    (H, _set(0, "strides", [2]), CLASH),
    (H, _change("W/decoder", lambda a: np.repeat(a, 3, axis=2)), SHAPES),
    (H, _change("W/decoder", lambda a: a[:0]), SHAPES),
    (T, _set(0, "strides", [2, 2]), CLASH),
    (T, _set(2, "pads", [1, 1, 1, 1]), CLASH),
    (T, _set(2, "group", 2), CLASH),
    (T, _set(0, "group", 2), SHAPES),
    (T, _bias, "pattern"),
    (T, _read_first_code, "pattern"),
    (T, _read_core, "reads its factors too"),
    (T, _override_core, "graph input too"),
    (T, _rename_core, "not the names of a pair"),
    (T, _change("W/core", lambda a: a.astype(np.float64)), SHAPES),
    (T, _change("W/encoder", _doubled), SHAPES),
    (T, _change("W/encoder", lambda a: a[:1]), SHAPES),
    (D, _change("W/encoder", lambda a: a[:1]), SHAPES),
    (T, _overflow, "out of the range of FLOAT"),
]


@pytest.mark.parametrize(
    ("scheme", "damage", "reason"),
    DAMAGES,
    ids=[f"{s.value}{i}" for i, (s, _, _) in enumerate(DAMAGES)],
)
def test_what_others_have_changed_is_left_alone(
    scheme: Scheme, damage: Callable[[ModelProto], None], reason: str
) -> None:
    model, _ = conv((3, 2))
    compressed = rewrite(model, [replacement(model, small_cuts(model, scheme)[0])])
    assert_left(compressed, damage, reason)


def convolutions(*weights: tuple[int, ...]) -> ModelProto:
    """Two or three Convs with the names of a pair."""
    names = ["W/encoder", *["W/core"] * (len(weights) - 2), "W/decoder"]
    steps = ["x", *["conv/encoded", "conv/encoded_1"][: len(weights) - 1], "y"]
    spatial = len(weights[0]) - 2
    sizes, result = ", ".join(["9"] * spatial), ", ".join("abc"[:spatial])
    model = parse(
        f"g (float[1, {C}, {sizes}] x) => (float[1, {F}, {result}] y) {{ y = Identity(x) }}",
        {name: normal(*dims) for name, dims in zip(names, weights, strict=True)},
    )
    del model.graph.node[:]
    for name, before, after in zip(names, steps, steps[1:], strict=False):
        model.graph.node.append(helper.make_node("Conv", [before, name], [after]))
    onnx.checker.check_model(model, full_check=True)
    return model


def test_kernels_as_schemes_share_them_out() -> None:
    """So that the next test fails for its kernels only."""
    for weights in (
        ((2, C, 3, 1, 1), (F, 2, 1, 3, 2)),
        ((2, C, 1, 3, 2), (F, 2, 2, 1, 1)),
        ((2, C, 1, 1), (4, 2, 3, 2), (F, 4, 1, 1)),
    ):
        model = convolutions(*weights)
        merged = merge_pairs(model, NOWHERE).model
        feeds = {"x": normal(1, C, *[9] * (len(weights[0]) - 2))}
        assert len(merged.graph.node) == 1
        assert_close(run(merged, feeds), run(model, feeds))


@pytest.mark.parametrize("weights", [
    ((2, C, 1, 3, 1), (F, 2, 2, 1, 2)),  # the middle axis first
    ((2, C, 3, 1), (F, 2, 3, 1)),  # two kernels along one axis, which make a longer one
    ((2, C, 3, 1), (4, 2, 1, 2), (F, 4, 1, 1)),
    ((2, C, 1, 1), (4, 2, 1, 2), (F, 4, 3, 1)),
    ((2, C, 1, 1), (4, 2, 3, 2), (F, 4, 3, 2)),
])  # fmt: skip
def test_kernels_that_no_scheme_shares_out_like_this(weights: tuple[tuple[int, ...], ...]) -> None:
    model = convolutions(*weights)
    merging = merge_pairs(model, NOWHERE)
    assert (merging.pairs, merging.model) == ((), model)
    (left,) = merging.left
    assert SHAPES in left.reason


def test_groups_before_a_core() -> None:
    model = convolutions((2, C // 2, 1, 1), (4, 2, 3, 3), (F, 4, 1, 1))
    model.graph.node[0].attribute.append(helper.make_attribute("group", 2))
    (left,) = merge_pairs(model, NOWHERE).left
    assert CLASH in left.reason
