"""Einsum with a constant operand: its rows, its cuts, what they cost, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

import alds_onnx
from alds_onnx.calibrate.statistics import sample_rows
from alds_onnx.cuts import Cut
from alds_onnx.decompose.factorize import factorize
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.constants.holders import other_holders
from alds_onnx.graph.files.validity import contradiction
from alds_onnx.graph.layers import Layer, Skipped, read_matrix
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.rewrite import Replacement, rewrite, with_composed_weights
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
    normal,
    only_layer,
    parse,
    replacements_of,
    run,
)
from tests.graph.test_merge import assert_left
from tests.graph.test_merge_schemes import there_and_back
from tests.graph.test_rewrite_schemes import replacement

SIZES = {"b": 2, "t": 3, "u": 2, "h": 4, "i": 12, "o": 10, "k": 8, "r": 8}
#: What is summed may stand anywhere, on either side, in one letter or several.
EQUATIONS = (
    *("bti,hio->bhto", "bhto,hoi->bti", "bi,io->bo", "bi,oi->bo", "ij,jk->ik", "io,bi->bo"),
    *("bthi,iho->bto", "bihu,hio->buo", "bhto,ohi->bti", "bhto,oih->bti", "bti,oikh->bhtok"),
    *("bhi,ohki->bok", "bhiu,hoki->kbou", "hiku,bhui->bk", "i,io->o", "bi,rio->rob", "br,ro->ob"),
    *(
        "bti,hio",
        "ij,jk",
        "hio,bti",
        "...i,io->...o",
        "...i,io",
        "b...i,oi->o...b",
        "i...,io->...o",
    ),
    *(" b t i, h i o -> b h t o", "bti , hio->bhto", "b i,io->bo", "hio, bti ->b h t o"),
)
ELLIPSES = ((), (2,), (3, 2))


def dims_of(term: str, ellipsis: tuple[int, ...] = (3, 2)) -> tuple[int, ...]:
    letters = term.replace(" ", "").replace("...", "*")
    found = [ellipsis if a == "*" else (SIZES.get(a, 12),) for a in letters]
    return tuple(size for part in found for size in part)


def is_left(equation: str) -> bool:
    """Whether the weight is the first operand: the one without the rows' letters."""
    first = equation.split(",", maxsplit=1)[0].replace(" ", "")
    return first in ("io", "hio", "hiku")


def einsum(
    equation: str, ellipsis: tuple[int, ...] = (3, 2)
) -> tuple[ModelProto, dict[str, Array]]:
    terms = equation.split("->", maxsplit=1)[0].split(",")
    position = 0 if is_left(equation) else 1
    operands = ["W", "x"] if is_left(equation) else ["x", "W"]
    x_dims, weight = dims_of(terms[1 - position], ellipsis), normal(*dims_of(terms[position]))
    node = helper.make_node("Einsum", operands, ["y"], "layer", equation=equation)
    x = helper.make_tensor_value_info("x", 1, x_dims)
    graph = helper.make_graph([node], "g", [x], [ValueInfoProto(name="y")])
    graph.initializer.append(numpy_helper.from_array(weight, "W"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, {"x": normal(*x_dims, seed=1)}


def cut_of(model: ModelProto, rank: int = 2) -> Cut:
    shape = only_layer(model).shape
    return Cut(num_slices=1, rank=min(rank, shape.full_rank()))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_rows_times_the_matrix_are_the_outputs(equation: str) -> None:
    """Every output entry is one of row · matrix, and none is there more often than it should be."""
    model, feeds = einsum(equation)
    layer, (y,) = only_layer(model), run(model, feeds)
    node = model.graph.node[0]
    drawn = sample_rows(layer, node, feeds["x"], 10**6, np.random.default_rng(0))
    made = drawn @ read_matrix(ModelIndex(model), layer, NOWHERE).T
    np.testing.assert_allclose(np.sort(made.ravel()), np.sort(y.ravel()), atol=1e-4)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_it_is_exact_and_merged_again(equation: str) -> None:
    """At a low rank against Ŵ, at the full one against the original; then the way back."""
    for ellipsis in ELLIPSES if "..." in equation else ELLIPSES[-1:]:
        model, feeds = einsum(equation, ellipsis)
        full = only_layer(model).shape.full_rank()
        for rank in (1, 2, full):
            done = [replacement(model, cut_of(model, rank))]
            actual = rewrite(model, done)
            onnx.checker.check_model(_with_shape(actual, run(actual, feeds)[0]))
            expected = model if rank == full else with_composed_weights(model, done)
            assert_close(run(actual, feeds), run(expected, feeds))
            assert [node.op_type for node in actual.graph.node] == ["Einsum"] * 2
            last = actual.graph.node[-1]
            assert (last.name, list(last.output)) == ("layer", ["y"])
            there_and_back(model, done)


def _with_shape(model: ModelProto, y: Array) -> ModelProto:
    """The checker wants outputs to be declared."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, y.shape))
    return copy


@pytest.mark.parametrize("equation", EQUATIONS)
def test_what_it_costs_is_what_is_built(equation: str) -> None:
    """Multiply-accumulates: one for each combination of all letters; parameters: entries."""
    model, _ = einsum(equation)
    index, layer = ModelIndex(model), only_layer(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    letters = {axis for axis in equation if axis.isalpha()}
    rows = 3 * 2 if "..." in equation else 1
    assert work.macs == rows * np.prod([*map(int, dims_of("".join(letters)))])
    assert layer.slice_counts == (1,)
    cut = cut_of(model)
    new = ModelIndex(rewrite(model, [replacement(model, cut)]))
    parts = work_of_layers(new, known_shapes(new, infer(new.model))).values()
    assert len(parts) == len(new.model.graph.node)
    assert work.of_cut(layer.shape, cut) == sum(part.macs for part in parts)
    assert num_parameters(new) == cut.num_parameters(layer.shape)


def test_the_error_falls_with_the_rank() -> None:
    model, feeds = einsum("bhto,hoi->bti")
    (y,) = run(model, feeds)
    errors = []
    for rank in (1, 4, 8, 12):
        (z,) = run(rewrite(model, [replacement(model, cut_of(model, rank))]), feeds)
        errors.append(np.linalg.norm(y - z) / np.linalg.norm(y))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("equation", ["bti,hio->bhto", "bhto,hoi->bti"])
def test_an_axis_of_size_one_is_repeated(equation: str) -> None:
    """In the activation; its rows are those of an activation that has it in full."""
    model, feeds = einsum(equation)
    axis = equation.split(",", maxsplit=1)[0].index("i" if "bti" in equation[:3] else "h")
    x = feeds["x"].take([0], axis)
    layer, node = only_layer(model), model.graph.node[0]
    full = np.repeat(x, feeds["x"].shape[axis], axis)
    rows, expected = (
        sample_rows(layer, node, array, 10**6, np.random.default_rng(0)) for array in (x, full)
    )
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("equation", "dims", "reason"),
    [
        ("bhi,hio->bho", ((2, 4, 8), (4, 8, 16)), "batch of matrices, one for each 'h'"),
        ("bi,hio->bo", ((2, 8), (4, 8, 16)), "'h' is summed in one operand alone"),
        ("bhi,io->bo", ((2, 4, 8), (8, 16)), "'h' is summed in one operand alone"),
        ("bi,ii->b", ((2, 16), (16, 16)), "'i' stands twice in one operand"),
        ("bbi,io->bo", ((2, 2, 8), (8, 16)), "'b' stands twice in one operand"),
        ("...i,...io->...o", ((2, 8), (2, 8, 16)), "its weight has an ellipsis"),
        ("...i,io->o", ((2, 8), (8, 16)), "its output has no ellipsis"),
        ("b,io->bio", ((2,), (16, 16)), "it sums over no axis of its weight"),
        ("bhi,hoik->bok", ((2, 4, 4), (4, 4, 4, 4)), "take turns"),
        ("bi,io->bo", ((2, 4), (4, 8, 8)), "has 3 axes, not 2"),
        ("b1,1o->bo", ((2, 8), (8, 16)), "none of two operands"),
        ("bi,io,o->bo", ((2, 8), (8, 16)), "none of two operands"),
        ("bi,io->bz", ((2, 8), (8, 16)), "none of two operands"),
        ("bi,i->b", ((2, 256), (256,)), "even rank 1"),
    ],
)
def test_what_is_refused(equation: str, dims: tuple[tuple[int, ...], ...], reason: str) -> None:
    model, _ = einsum("bi,io->bo")
    model.graph.node[0].attribute[0].s = equation.encode()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, dims[0]))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(*dims[1]), "W"))
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert (row.op, row.dims) == ("Einsum", dims[1])
    assert reason in row.reason


def test_letters_that_are_all_taken() -> None:
    """Whose axes are as many as there are letters."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    model, _ = einsum("bi,io->bo")
    equation = f"{letters[:51]},{letters[50:]}->{letters[:50]}{letters[51]}"
    model.graph.node[0].attribute[0].s = equation.encode()
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert "leaves no letter free" in row.reason


@pytest.mark.parametrize(
    ("call", "reasons"),
    [
        ('y = Einsum<equation = "bi,io,o->bo">(x, W, v)', ["an Einsum of other than two operands"]),
        ('y = Einsum<equation = "ji,io->jo">(V, W)', ["both of its operands are constant"]),
        ('y = Einsum<equation = "io->oi">(W)', []),
    ],
)
def test_other_numbers_of_operands(call: str, reasons: list[str]) -> None:
    """They have a row with a reason, unless they only make a constant."""
    weights = {"W": normal(16, 12), "V": normal(8, 16), "v": normal(12)}
    read = {name: array for name, array in weights.items() if name in call.split(">(")[1]}
    model = parse(f"g (float[2, 16] x) => (float y) {{ {call} }}", read)
    index, rows = ModelIndex(model), layers_of(model)
    rows = (*rows, *other_holders(index, rows))
    assert [row.reason for row in rows if isinstance(row, Skipped)] == reasons
    assert len(rows) == len(reasons)


def test_two_activations_have_a_row_as_those_of_a_matmul_have() -> None:
    model = parse(
        "g (float[2, 3, 16] x) => (float[2, 3, 3] y, float[2, 3, 3] z) "
        '{ y = Einsum<equation = "bti,bsi->bts">(x, x) t = Transpose<perm = [0, 2, 1]>(x) '
        "z = MatMul(x, t) }"
    )
    scores, product = layers_of(model)
    assert isinstance(scores, Skipped)
    assert isinstance(product, Skipped)
    index = ModelIndex(model)
    work = work_of_layers(index, known_shapes(index, infer(model)))
    assert work[scores.site].macs == work[product.site].macs == 2 * 3 * 3 * 16


@pytest.mark.parametrize(
    ("equation", "other", "dims"),
    [
        ("bi,io->bo", "MatMul(x, W)", (16, 12)),
        ("...i,io", "MatMul(x, W)", (16, 12)),
        ("bi,oi->bo", "Gemm<transB = 1>(x, W)", (12, 16)),
        ("io,bi->bo", "MatMul(x, W)", (16, 12)),
    ],
)
def test_a_matrix_is_shared_with_products(equation: str, other: str, dims: tuple[int, int]) -> None:
    operands = "W, x" if equation == "io,bi->bo" else "x, W"
    model = parse(
        f"g (float[2, 16] x) => (float[2, 12] y, float[2, 12] z) "
        f'{{ y = Einsum<equation = "{equation}">({operands}) z = {other} }}',
        {"W": normal(*dims)},
    )
    feeds = {"x": normal(2, 16, seed=1)}
    (done,) = replacements_of(model)
    assert len(done.layers) == 2
    new = rewrite(model, [done])
    assert len(new.graph.initializer) == 2
    assert_close(run(new, feeds), run(with_composed_weights(model, [done]), feeds))
    there_and_back(model, [done])


def test_two_einsums_share_heads() -> None:
    """Where both sum over the same axes of the weight, whatever they call them."""
    model = parse(
        'g (float[2, 3, 12] x) => (float y, float z) { y = Einsum<equation = "bti,hio->bhto">(x, W)'
        ' z = Einsum<equation = "xyz,hzd->xydh">(x, W) }',
        {"W": normal(4, 12, 10)},
    )
    (done,) = replacements_of(model)
    assert len(done.layers) == 2
    feeds = {"x": normal(2, 3, 12, seed=1)}
    assert_close(
        run(rewrite(model, [done]), feeds), run(with_composed_weights(model, [done]), feeds)
    )
    there_and_back(model, [done])


def _equation(position: int, equation: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        model.graph.node[position].attribute[0].s = equation.encode()

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_equation(0, "bti,ir->brt"), "are not those of one"),
        (_equation(0, "bit,ir->btr"), "are not those of one"),
        (_equation(1, "bts,hso->bhto"), "are not those of one"),
        (_equation(1, "btr,hro->bto"), "are not those of one"),
        (_equation(1, "btr,hro,x->bhto"), "are not those of one"),
        (_equation(1, "btr,ro->bto"), "do not fit together"),
        (lambda m: m.graph.node[0].input.append("x"), "not those of a pattern"),
    ],
)
def test_what_others_have_changed_is_left_alone(
    damage: Callable[[ModelProto], None], reason: str
) -> None:
    model, _ = einsum("bti,hio->bhto")
    assert_left(rewrite(model, [replacement(model, cut_of(model))]), damage, reason)


def test_another_order_of_the_output_is_merged_too() -> None:
    model, feeds = einsum("bti,hio->bhto")
    compressed = rewrite(model, [replacement(model, cut_of(model))])
    _equation(1, "btr,hro->obht")(compressed)
    merged = merge_pairs(compressed, NOWHERE).model
    assert [node.attribute[0].s for node in merged.graph.node] == [b"bti,hio->obht"]
    assert_close(run(merged, feeds), run(compressed, feeds))


def test_pairs_within_pairs() -> None:
    """The factors of a large weight can be cut again."""
    model, feeds = einsum("bti,hio->bhto")
    once = rewrite(model, [_factors(model, only_layer(model), 8)])
    inner = [_factors(once, one, 3) for one in layers_of(once) if isinstance(one, Layer)]
    assert inner
    twice = rewrite(once, inner)
    merging = merge_pairs(twice, NOWHERE)
    assert merging.left == ()
    assert len(merging.pairs) == len(inner) + 1
    assert list(merging.model.graph.node) == list(model.graph.node)
    assert_close(run(merging.model, feeds), run(twice, feeds))


def _factors(model: ModelProto, layer: Layer, rank: int) -> Replacement:
    cut = Cut(num_slices=1, rank=rank)
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    return Replacement(layers=(layer,), factors=factorize(matrix, layer.shape, cut))


@pytest.mark.parametrize("equation", ["bti,hio->bhto", "...i,io->...o", "hio,bti->bhto"])
def test_what_the_model_says_of_it(equation: str) -> None:
    """The weight tells sizes of the input, and the layer stands alone."""
    model, feeds = einsum(equation)
    index, layer = ModelIndex(model), only_layer(model)
    axis = feeds["x"].ndim - 1
    assert sizes_from_weights(index) == ({} if is_left(equation) else {("x", axis): 12})
    place = isolate(index, layer, feeds["x"].shape)
    (cut_model,) = place.decomposed([cut_of(model)])
    assert len(cut_model.graph.node) == 2
    (y,) = run(model, feeds)
    for alone in (place.dense(), cut_model):
        assert run(alone, feeds)[0].shape == y.shape


@pytest.mark.parametrize(
    ("equation", "dims", "problem"),
    [
        ("bi,io->bo", (2, 11), "'i' has the sizes 11 and 12"),
        ("bi,io->bo", (2, 12, 3), "gives 'x' 2 axes"),
        ("bi,io->bo", (2, 12), ""),
        ("bi,io->bo", (2, 1), ""),
    ],
)
def test_operands_that_contradict_each_other(
    equation: str, dims: tuple[int, ...], problem: str
) -> None:
    model, _ = einsum(equation)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, dims))
    found = contradiction(model)
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize("calibrated", [False, True])
def test_compress_and_its_plan(calibrated: bool) -> None:
    """Heads of rank 4 and some noise: half is gone; the plan gives the same again."""
    model, feeds, cr = field_cases.einsum()
    data = [{"x": x[None]} for x in feeds["x"]] if calibrated else None
    result = alds_onnx.compress(model, cr=cr, calibration=data, threads=1)
    assert [(row.op, row.decision) for row in result.plan.layers] == [
        ("Einsum", Decision.DECOMPOSE)
    ] * 2
    (y,), (z,) = run(model, feeds), run(result.model, feeds)
    assert np.linalg.norm(y - z) <= 0.05 * np.linalg.norm(y)
    again = alds_onnx.compress(model, plan=result.plan, calibration=data, threads=1)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    merged = alds_onnx.merge(result.model).model
    assert list(merged.graph.node) == list(model.graph.node)


def test_its_weight_may_be_computed() -> None:
    """And stand behind other nodes: what only made the weight goes."""
    model = parse(
        "g (float[2, 3, 12] x) => (float y) { S = Mul(g, V) W = Reshape(S, s)"
        ' y = Einsum<equation = "bti,hio->bhto">(x, W) }',
        {"V": normal(4, 120), "g": normal(4, 1), "s": np.array([4, 12, 10])},
    )
    feeds = {"x": normal(2, 3, 12, seed=1)}
    (done,) = replacements_of(model)
    new = rewrite(model, [done])
    assert [node.op_type for node in new.graph.node] == ["Einsum"] * 2
    assert_close(run(new, feeds), run(with_composed_weights(model, [done]), feeds))
