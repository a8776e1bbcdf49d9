"""Gather: tables of embeddings, alone and tied to the head; what they cost, and the way back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import alds_onnx
from alds_onnx.calibrate.statistics import outputs_of, sample_rows, sums_of, with_floor
from alds_onnx.cuts import Cut
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.layers import Skipped, read_matrix
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_shapes
from alds_onnx.settings import Measuring
from alds_onnx.values import Decision
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
from tests.graph.test_merge_schemes import there_and_back

V, D = 40, 12
#: Ids count from the end where they are negative; there may be a single one.
IDS: dict[str, Array] = {
    "matrix": np.array([[0, 39, 7], [-1, -40, 7]]),
    "vector": np.array([3, 3, 12]),
    "scalar": np.array(5),
    "none": np.zeros((2, 0), np.int64),
}
#: Heads that multiply by the transposed table.
HEADS = {
    "MatMul": "Et = Transpose<perm = [1, 0]>(E) y = MatMul(r, Et)",
    "Identity": "F = Identity(E) Et = Transpose<perm = [1, 0]>(F) y = MatMul(r, Et)",
    "Gemm": "y = Gemm<transB = 1, alpha = 0.5>(r, E, b)",
    "left": "rt = Transpose<perm = [1, 0]>(r) y = MatMul(E, rt)",
}


def lookup(
    ids: Array, axis: int | None = None, *, dtype: str = "float32", integers: str = "int64"
) -> ModelProto:
    node = helper.make_node(
        "Gather", ["E", "i"], ["y"], "embed", **({} if axis is None else {"axis": axis})
    )
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (integers, dtype)]
    shapes = ids.shape, (*ids.shape, D)
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip("iy", kinds, shapes, strict=True)
    ]
    table = numpy_helper.from_array(normal(V, D, dtype=dtype), "E")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tied(head: str) -> ModelProto:
    return parse(
        "g (int64[n] i) => (float[a, b] y) "
        f"{{ [embed] e = Gather(E, i) r = Relu(e) {HEADS[head]} }}",
        {"E": normal(V, D)} | ({"b": normal(V)} if head == "Gemm" else {}),
    )


@pytest.mark.parametrize("name", ["matrix", "vector", "scalar"])
def test_rows_of_the_matrix_are_the_outputs(name: str) -> None:
    model, ids = lookup(IDS[name]), IDS[name]
    layer, (y,) = only_layer(model), run(model, {"i": ids})
    assert (layer.shape.out_features, layer.shape.num_columns) == (D, V)
    drawn = sample_rows(layer, model.graph.node[0], ids, 10**6, np.random.default_rng(0))
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    np.testing.assert_array_equal(outputs_of(layer, drawn, matrix.T), y.reshape(-1, D))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("axis", [None, 0, -2])
@pytest.mark.parametrize("name", IDS)
def test_the_rewrite_is_exact_and_merged_again(name: str, axis: int | None, dtype: str) -> None:
    """At a low rank against Ŵ, at the full one against the original; then the way back."""
    model, feeds = lookup(IDS[name], axis, dtype=dtype), {"i": IDS[name]}
    for rank in (2, None):
        done = replacements_of(model, rank=rank)
        actual = rewrite(model, done)
        onnx.checker.check_model(actual)
        assert [node.op_type for node in actual.graph.node] == ["Gather", "MatMul"]
        expected = model if rank is None else with_composed_weights(model, done)
        assert_close(run(actual, feeds), run(expected, feeds))
        there_and_back(model, done)


def test_ids_of_32_bits() -> None:
    ids = np.array([[1, -2]], np.int32)
    model = lookup(ids, integers="int32")
    done = replacements_of(model, rank=3)
    feeds = {"i": ids}
    assert_close(run(rewrite(model, done), feeds), run(with_composed_weights(model, done), feeds))


def test_what_it_costs_is_what_is_built() -> None:
    """Nothing as it is; the MatMul of a cut multiplies every row that is looked up."""
    model = lookup(IDS["matrix"])
    index, cut, layer = ModelIndex(model), Cut(num_slices=1, rank=3), only_layer(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    assert work.macs == 0
    new = ModelIndex(rewrite(model, replacements_of(model, rank=3)))
    parts = work_of_layers(new, known_shapes(new, infer(new.model))).values()
    assert work.of_cut(layer.shape, cut) == sum(part.macs for part in parts) == 6 * 3 * D
    assert num_parameters(new) == cut.num_parameters(layer.shape) == 3 * (V + D)


@pytest.mark.parametrize(
    ("graph", "dims", "reason"),
    [
        ("y = Gather<axis = 1>(E, i)", (V, D), "axis 1"),
        ("y = Gather<axis = -1>(E, i)", (V, D), "axis -1"),
        ("y = Gather(E, i)", (V, D, 2), "3 axes"),
        ("y = Gather(E, i)", (V * D,), "1 axes"),
        ("y = Gather(E, i)", (1, V * D), "even rank 1"),
        ("y = Gather(E, i) z = Add(E, E)", (V, D), "read by Add"),
    ],
)
def test_what_is_refused(graph: str, dims: tuple[int, ...], reason: str) -> None:
    model = parse(f"g (int64[3] i) => (float y) {{ {graph} }}", {"E": normal(*dims)})
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert reason in row.reason


@pytest.mark.parametrize(
    "graph",
    [
        "s = Shape(E) y = Gather(s, i)",
        "k = Constant<value = int64[2] {0, 1}>() t = Gather(E, k) y = Gather(t, i)",
        "y = Gather(n, i)",
        "y = Gather(x, i)",
    ],
)
def test_what_is_no_table_has_no_row(graph: str) -> None:
    """Sizes, rows that are picked from a constant once, short lists, and activations."""
    constants = {"E": normal(V, 2), "n": normal(8, 8)}
    model = parse(f"g (float[9, 9] x, int64[3] i) => (float y) {{ {graph} }}", constants)
    assert layers_of(model) == ()


def test_a_table_of_integers_stays() -> None:
    table = np.arange(V * D).reshape(V, D)
    model = parse("g (int64[3] i) => (int64[3, 12] y) { y = Gather(E, i) }", {"E": table})
    assert layers_of(model) == ()


@pytest.mark.parametrize("head", HEADS)
def test_a_tied_head_shares_the_factors(head: str) -> None:
    model, feeds = tied(head), {"i": np.array([0, 3, -1, 39])}
    for rank in (2, None):
        (done,) = replacements_of(model, rank=rank)
        assert [layer.op for layer in done.layers] == [
            "Gather",
            head if head == "Gemm" else "MatMul",
        ]
        new = rewrite(model, [done])
        onnx.checker.check_model(new)
        bias = V if head == "Gemm" else 0
        assert num_parameters(ModelIndex(new)) == done.factors.cut.rank * (V + D) + bias
        expected = model if rank is None else with_composed_weights(model, [done])
        assert_close(run(new, feeds), run(expected, feeds))
        back = merge_pairs(new, NOWHERE)
        assert back.left == ()
        assert len(back.pairs) == 2
        assert num_parameters(ModelIndex(back.model)) == V * D + bias
        assert_close(run(back.model, feeds), run(expected, feeds))
        assert not {node.op_type for node in back.model.graph.node} - {
            *("Gather", "Relu", "Transpose", "MatMul", "Gemm")
        }


def test_two_lookups_share_a_table() -> None:
    graph = "e = Gather(E, i) f = Gather(E, k) y = Add(e, f)"
    model = parse(f"g (int64[3] i, int64[3] k) => (float y) {{ {graph} }}", {"E": normal(V, D)})
    done = replacements_of(model, rank=3)
    feeds = {"i": np.array([0, 1, 2]), "k": np.array([5, 6, 7])}
    assert_close(run(rewrite(model, done), feeds), run(with_composed_weights(model, done), feeds))
    there_and_back(model, done)


def test_a_head_that_reads_the_table_as_it_is_keeps_both_whole() -> None:
    """Its factors would be in another order."""
    graph = "e = Gather(E, i) r = MatMul(x, E) y = Add(e, r)"
    model = parse(f"g (int64[3] i, float[3, 40] x) => (float y) {{ {graph} }}", {"E": normal(V, D)})
    assert all(isinstance(row, Skipped) for row in layers_of(model))


# With data


def test_rows_that_were_never_seen_count_a_little() -> None:
    """Second moments are sums over rows with weights of c / m + 1/25."""
    table, generator = normal(V, D), np.random.default_rng(0)
    ids = generator.integers(0, V // 2, 1000)
    seen = sums_of(table[ids], table[ids])
    moments = with_floor(seen, sums_of(table, table)).moments(centred=False)
    counts = np.bincount(ids, minlength=V)
    weights = counts / counts.mean() + 1 / 25
    expected = (table.T * weights) @ table / weights.sum()
    for found in (moments.inputs, moments.cross):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert moments.power == pytest.approx(np.trace(expected), rel=1e-5)


def embedding(rows: int = 200, width: int = 32) -> tuple[ModelProto, dict[str, Array]]:
    """A table of which some rows are read often, and lie in few directions of their own."""
    generator = np.random.default_rng(3)
    often = generator.standard_normal((20, 4)) @ generator.standard_normal((4, width))
    table = 3 * generator.standard_normal((rows, width))
    table[:20] = often
    model = parse(
        f"g (int64[n, 8] i) => (float[n, 8, {width}] y) {{ [embed] y = Gather(E, i) }}",
        {"E": table.astype(np.float32)},
    )
    return model, {"i": generator.integers(0, 20, (64, 8))}


def test_data_keeps_the_rows_that_are_read() -> None:
    model, feeds = embedding()
    errors = {}
    for with_data in (False, True):
        result = alds_onnx.compress(
            model, cr=0.5, calibration=[feeds] if with_data else None, threads=1
        )
        (row,) = result.plan.layers
        assert row.decision is Decision.DECOMPOSE
        assert result.plan.removed >= 0.5
        wanted, found = run(model, feeds)[0], run(result.model, feeds)[0]
        errors[with_data] = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert errors[True] < 0.3 * errors[False]


def test_the_floor_keeps_something_of_the_other_rows() -> None:
    model, feeds = embedding()
    unseen = {"i": np.arange(20, 180).reshape(-1, 8)}
    result = alds_onnx.compress(model, cr=0.5, calibration=[feeds], threads=1)
    wanted, found = run(model, unseen)[0], run(result.model, unseen)[0]
    assert np.linalg.norm(found - wanted) < 0.9 * np.linalg.norm(wanted)


def test_a_large_table_takes_no_large_moments() -> None:
    """One-hot vectors of a vocabulary are never built, nor their moments."""
    rows, width = 20_000, 16
    table = (normal(rows, 4) @ normal(4, width)).astype(np.float32)
    model = parse("g (int64[n, 8] i) => (float[n, 8, 16] y) { y = Gather(E, i) }", {"E": table})
    feeds = {"i": np.random.default_rng(0).integers(-rows, rows, (64, 8))}
    result = alds_onnx.compress(model, cr=0.7, calibration=[feeds], threads=1)
    assert_close(run(result.model, feeds), run(model, feeds))


def table_and_product() -> ModelProto:
    """A table of low rank, and a weight of full rank that is as large."""
    rows, width = 4000, 64
    return parse(
        "g (int64[64] i) => (float[64, 4000] y) { e = Gather(E, i) y = MatMul(e, W) }",
        {"E": normal(rows, 8) @ normal(8, width), "W": normal(width, rows)},
    )


def test_a_cut_is_chosen_although_it_is_slower_than_the_lookup() -> None:
    """Alone, a lookup takes next to no time; the MatMul could keep the budget without its cut."""
    result = alds_onnx.compress(table_and_product(), cr=0.3, measuring=Measuring.ALWAYS, threads=1)
    decisions = {row.op: row.decision for row in result.plan.layers}
    assert decisions == {"Gather": Decision.DECOMPOSE, "MatMul": Decision.KEEP}


def test_a_budget_of_multiply_accumulates_leaves_the_table_whole() -> None:
    """Its cut would add some."""
    result = alds_onnx.compress(table_and_product(), cr_macs=0.3, threads=1)
    decisions = {row.op: row.decision for row in result.plan.layers}
    assert decisions == {"Gather": Decision.KEEP, "MatMul": Decision.DECOMPOSE}


def test_a_plan_is_applied_again() -> None:
    model, feeds = embedding()
    first = alds_onnx.compress(model, cr=0.5, calibration=[feeds], threads=1)
    again = alds_onnx.compress(model, plan=first.plan, calibration=[feeds], threads=1)
    assert again.model.SerializeToString() == first.model.SerializeToString()
