"""LSTM, GRU and RNN: their rows, their cuts, what they cost, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import alds_onnx
from alds_onnx import cli
from alds_onnx.calibrate.statistics import sample_rows
from alds_onnx.cuts import Cut, one_cut
from alds_onnx.errors import ModelError
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.layers import Skipped, read_matrix
from alds_onnx.graph.merge import merge_pairs
from alds_onnx.graph.rewrite import constant_bias, rewrite, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_shapes, sizes_from_weights
from alds_onnx.plans import plan_from_json, plan_to_json
from alds_onnx.results import Status
from alds_onnx.search.costs import Macs
from alds_onnx.timing.layer_models import isolate
from alds_onnx.values import Decision
from tests.graph.builders import (
    NOWHERE,
    Array,
    assert_close,
    layers_of,
    nodes,
    normal,
    only_layer,
    replacements_of,
    run,
)
from tests.graph.test_merge import assert_left
from tests.graph.test_merge_schemes import there_and_back

STEPS, BATCH, C, HIDDEN, RANK = 5, 3, 20, 6, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# What a node reads besides X, W and R, and says besides its direction and size.
EXTRAS = ("", "B", "lengths", "states", "B lengths states peepholes attributes")
# Sums of some hundred products in float32, in another order than onnxruntime's.
ROUNDING = 1e-4


def optional_inputs(op: str, directions: int, extras: str) -> dict[str, Array]:
    """The inputs after R, in order; an empty name where there is none."""
    rows = GATES[op] * HIDDEN
    states = (directions, BATCH, HIDDEN)
    given = {
        "B": normal(directions, 2 * rows) if "B" in extras else None,
        "lengths": np.array([5, 2, 4], np.int32) if "lengths" in extras else None,
        "h": normal(*states, seed=1) if "states" in extras else None,
    }
    if op == "LSTM":
        given["c"] = normal(*states, seed=2) if "states" in extras else None
        given["P"] = normal(directions, 3 * HIDDEN) if "peepholes" in extras else None
    return {name: array for name, array in given.items() if array is not None}


def attributes_of(op: str, directions: int) -> dict[str, Any]:
    functions = {"LSTM": ["Sigmoid", "Tanh", "Softsign"], "GRU": ["HardSigmoid", "Tanh"]}
    found: dict[str, Any] = {"activations": functions.get(op, ["Relu"]) * directions, "clip": 2.5}
    return found | ({"linear_before_reset": 1} if op == "GRU" else {})


def node_of(op: str, direction: str, extras: str, given: Iterable[str]) -> NodeProto:
    order = ("B", "lengths", "h", *(("c", "P") if op == "LSTM" else ()))
    inputs = ["x", "W", "R", *(name if name in given else "" for name in order)]
    while not inputs[-1]:
        inputs.pop()
    outputs = ["y", "y_h", *(["y_c"] if op == "LSTM" else [])]
    more = attributes_of(op, DIRECTIONS[direction]) if "attributes" in extras else {}
    return helper.make_node(
        op, inputs, outputs, "cell", direction=direction, hidden_size=HIDDEN, **more
    )


def recurrent(
    op: str,
    direction: str = "forward",
    extras: str = "",
    *,
    opset: int = 17,
    dtype: str = "float32",
) -> ModelProto:
    """A model of one node, all of whose outputs are read."""
    directions = DIRECTIONS[direction]
    rows = GATES[op] * HIDDEN
    given = optional_inputs(op, directions, extras)
    constants = {"W": normal(directions, rows, C), "R": normal(directions, rows, HIDDEN), **given}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = node_of(op, direction, extras, given)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, (STEPS, BATCH, C))],
        [
            helper.make_tensor_value_info(name, kind, [None] * (4 if name == "y" else 3))
            for name in node.output
        ],
        [
            numpy_helper.from_array(a if name == "lengths" else a.astype(dtype), name)
            for name, a in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds_of(dtype: str = "float32") -> dict[str, Array]:
    return {"x": normal(STEPS, BATCH, C, dtype=dtype, seed=3)}


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_cuts_are_exact_and_merged_again(op: str, direction: str, extras: str) -> None:
    """At a low rank against Ŵ, at the full one against the original; then the way back."""
    model, feeds = recurrent(op, direction, extras), feeds_of()
    old = model.graph.node[0]
    for rank in (RANK, None):
        done = replacements_of(model, rank=rank)
        actual = rewrite(model, done)
        onnx.checker.check_model(actual, full_check=True)
        expected = with_composed_weights(model, done) if rank else model
        assert_close(run(actual, feeds), run(expected, feeds))
        product, new = actual.graph.node
        assert (product.op_type, new.op_type, new.name) == ("MatMul", op, "cell")
        assert (new.output, new.input[2:]) == (old.output, old.input[2:])
        assert new.attribute == old.attribute
        there_and_back(model, done)


def test_rows_times_the_matrix_are_what_the_gates_read() -> None:
    """An RNN that does nothing with its states or with the product shows it."""
    model = recurrent("RNN", "bidirectional")
    functions = {"activations": ["Affine"] * 2, "activation_alpha": [1.0] * 2}
    for name, value in (functions | {"activation_beta": [0.0] * 2}).items():
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))
    R = numpy_helper.to_array(model.graph.initializer[1])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros_like(R), "R"))
    layer = only_layer(model)
    y = run(model, feeds_of())[0]  # (steps, directions, batch, hidden)
    generator = np.random.default_rng(0)
    drawn = sample_rows(layer, model.graph.node[0], feeds_of()["x"], 10**6, generator)
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    expected = y.transpose(0, 2, 1, 3).reshape(STEPS * BATCH, -1)
    np.testing.assert_allclose(drawn @ matrix.T, expected, atol=ROUNDING)


@pytest.mark.parametrize("op", GATES)
def test_the_batch_may_come_first(op: str) -> None:
    """Which only onnx's reference implementation can run, and only forwards."""
    model = recurrent(op)
    model.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[1].dim_value = BATCH, STEPS
    feeds = {"x": normal(BATCH, STEPS, C)}
    done = replacements_of(model)
    actual, expected = (
        ReferenceEvaluator(one).run(None, feeds)
        for one in (rewrite(model, done), with_composed_weights(model, done))
    )
    assert_close(actual[:2], expected[:2])
    assert sizes_from_weights(ModelIndex(model)) == {("x", 2): C}
    there_and_back(model, done)


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", GATES)
def test_versions_and_types(op: str, dtype: str, opset: int) -> None:
    model = recurrent(op, "bidirectional", "B", opset=opset, dtype=dtype)
    done = replacements_of(model)
    assert_close(
        run(rewrite(model, done), feeds_of(dtype)),
        run(with_composed_weights(model, done), feeds_of(dtype)),
    )
    there_and_back(model, done)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_what_it_costs_is_what_is_built(op: str, direction: str) -> None:
    """Parameters and multiply-accumulates of the new nodes, counted node by node."""
    model = recurrent(op, direction)
    index, layer = ModelIndex(model), only_layer(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    rows = DIRECTIONS[direction] * GATES[op] * HIDDEN
    assert work.macs == STEPS * BATCH * rows * (C + HIDDEN)
    (done,) = replacements_of(model)
    new, cut = ModelIndex(rewrite(model, [done])), done.factors.cut
    parts = work_of_layers(new, known_shapes(new, infer(new.model))).values()
    assert len(parts) == 2
    assert work.of_cut(layer.shape, cut) == sum(part.macs for part in parts)
    counted = Macs(work={"cell": [work]}).cuts("cell", layer.shape, one_cut(cut))
    assert list(counted) == [work.of_cut(layer.shape, cut)]
    assert num_parameters(new) == cut.num_parameters(layer.shape) + rows * HIDDEN


def _attribute(name: str, value: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        (old,) = (a for a in model.graph.node[-1].attribute if a.name == name)
        old.CopyFrom(helper.make_attribute(name, value))

    return change


def _weight(*dims: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(*dims), "W"))

    return change


def _constant_input(model: ModelProto) -> None:
    del model.graph.input[:]
    model.graph.initializer.append(numpy_helper.from_array(feeds_of()["x"], "x"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_attribute("direction", "bidirectional"), "its direction bidirectional contradicts"),
        (_attribute("hidden_size", 5), "its hidden_size 5 contradicts"),
        (_weight(24, C), "its weight has 2 axes, not 3"),
        (_constant_input, "its input and its weight are constant"),
    ],
)
def test_what_is_refused(change: Callable[[ModelProto], None], reason: str) -> None:
    model = recurrent("LSTM")
    change(model)
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert reason in row.reason


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_weight(1, 24, C + 1), "input 'x' [5, 3, 20] does not fit weight 'W' [1, 24, 21]"),
        (_weight(1, 28, C), "recurrent weight 'R' [1, 24, 6] does not fit weight 'W' [1, 28, 20]"),
        (_weight(24, C), "weight 'W' has shape [24, 20], not 3 axes"),
    ],
)
def test_operands_that_contradict_each_other(
    change: Callable[[ModelProto], None], problem: str
) -> None:
    model = recurrent("LSTM")
    load_model(model)
    change(model)
    with pytest.raises(ModelError) as e:
        load_model(model)
    assert problem in str(e.value)


def test_outputs_that_are_left_out() -> None:
    """The first one may be: then the next one names the nodes, and is what is compared."""
    model = recurrent("LSTM")
    model.graph.node[0].name = ""
    model.graph.node[0].output[:] = ["", "y_h", ""]
    del model.graph.output[0], model.graph.output[1]
    done = replacements_of(model)
    assert done[0].layers[0].name == "y_h"
    new = rewrite(model, done)
    assert new.graph.node[0].output[0] == "y_h/encoded"
    assert_close(run(new, feeds_of()), run(with_composed_weights(model, done), feeds_of()))
    there_and_back(model, done)
    result = alds_onnx.compress(model, cr=0.1, threads=1)
    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.PASSED


def test_a_weight_is_shared_by_nodes_of_the_same_form() -> None:
    model = recurrent("GRU")
    again = NodeProto()
    again.CopyFrom(model.graph.node[0])
    again.name, again.input[0] = "again", "x2"
    again.output[:] = ["z"]
    model.graph.node.append(again)
    model.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, (2, 1, C)))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    (done,) = replacements_of(model)
    assert len(done.layers) == 2
    feeds = feeds_of() | {"x2": normal(2, 1, C)}
    new = rewrite(model, [done])
    assert len(new.graph.initializer) == len(model.graph.initializer) + 1
    assert_close(run(new, feeds), run(with_composed_weights(model, [done]), feeds))
    there_and_back(model, [done])


def test_a_weight_that_is_a_recurrent_weight_too_stays() -> None:
    model = recurrent("RNN")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(1, 20, 20), "W"))
    model.graph.node[0].input[2] = "W"
    _attribute("hidden_size", 20)(model)
    (row,) = layers_of(model)
    assert isinstance(row, Skipped)
    assert "another operand of the same RNN" in row.reason


def test_constant_nodes_and_branches() -> None:
    """In one branch W is a Constant node, in the other an initializer of the graph around it."""
    model = recurrent("LSTM", extras="B")
    (cell,) = model.graph.node
    branches = []
    for name in ("then", "else"):
        node = NodeProto()
        node.CopyFrom(cell)
        node.name, node.output[:] = name, [f"{name}_y"]
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([node], name, [], [out]))
    own = helper.make_node("Constant", [], ["V"], value=numpy_helper.from_array(normal(1, 24, C)))
    branches[0].node.insert(0, own)
    branches[0].node[1].input[1] = "V"
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node[0].CopyFrom(choice)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, ()))
    del model.graph.output[1:]
    done = replacements_of(model)
    assert len(done) == 2
    new, dense = rewrite(model, done), with_composed_weights(model, done)
    merged = merge_pairs(new, NOWHERE).model
    assert (len(nodes(merged, "LSTM")), nodes(merged, "MatMul")) == (2, [])
    for c in (True, False):
        feeds = feeds_of() | {"c": np.array(c)}
        assert_close(run(new, feeds), run(dense, feeds))
        assert_close(run(merged, feeds), run(dense, feeds))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_attribute("hidden_size", 3), "shapes or types"),
        (_attribute("direction", "bidirectional"), "shapes or types"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Gemm"), "not those of a pattern"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Sum"), "other tools"),
        (lambda m: m.graph.node[0].input.reverse(), "not those of a pattern"),
    ],
)
def test_what_others_have_changed_is_left_alone(
    damage: Callable[[ModelProto], None], reason: str
) -> None:
    model = recurrent("LSTM")
    assert_left(rewrite(model, replacements_of(model)), damage, reason)


@pytest.mark.parametrize("extras", ["", "B lengths states peepholes attributes"])
@pytest.mark.parametrize("op", GATES)
def test_it_can_be_timed(op: str, extras: str) -> None:
    """Alone, with R and the biases, from zero states."""
    model = recurrent(op, "bidirectional", extras)
    index, layer = ModelIndex(model), only_layer(model)
    assert constant_bias(index, layer, NOWHERE) is None
    assert sizes_from_weights(index) == {("x", 2): C}
    place = isolate(index, layer, (STEPS, BATCH, C))
    for one in (place.dense(), *place.decomposed([Cut(num_slices=1, rank=RANK)])):
        (y,) = run(one, {"x": np.zeros(place.shape, np.float32)})
        assert y.shape == (STEPS, 2, BATCH, HIDDEN)


def tagger() -> tuple[ModelProto, list[dict[str, Array]]]:
    """A bidirectional LSTM and a GRU over features of low rank, and a head."""
    generator = np.random.default_rng(0)

    def low_rank(*shape: int) -> Array:
        rows = int(np.prod(shape[:-1]))
        matrix = generator.standard_normal((rows, 4)) @ generator.standard_normal((4, shape[-1]))
        noise = generator.standard_normal((rows, shape[-1]))
        scale = 1 / np.sqrt(4 * shape[-1])
        return ((matrix + 0.02 * noise) * scale).reshape(shape).astype(np.float32)

    weights = {
        **{"W1": low_rank(2, 64, 48), "R1": 0.1 * normal(2, 64, 16), "B1": 0.1 * normal(2, 128)},
        **{"W2": low_rank(1, 72, 32), "R2": 0.1 * normal(1, 72, 24), "H": low_rank(24, 10)},
        "flat": np.array([0, 0, 32], np.int64),
        "axis": np.array([1], np.int64),
    }
    made = [
        helper.make_node(
            *("LSTM", ["x", "W1", "R1", "B1"], ["a", "", ""], "lstm"),
            **{"direction": "bidirectional", "hidden_size": 16},
        ),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("GRU", ["c", "W2", "R2"], ["", "d"], "gru", hidden_size=24),
        helper.make_node("Squeeze", ["d", "axis"], ["e"]),
        helper.make_node("MatMul", ["e", "H"], ["y"], "head"),
    ]
    made[4].input[1] = "first"
    weights["first"] = np.array([0], np.int64)
    graph = helper.make_graph(
        made,
        "tagger",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("t", "n", 48))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 10))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, [{"x": normal(7, 4, 48, seed=seed)} for seed in range(40)]


@pytest.mark.parametrize("calibrated", [False, True])
def test_compress(calibrated: bool) -> None:
    """At a rank above that of the weights only noise is lost; the plan makes the same again."""
    model, data = tagger()
    feeds = data if calibrated else None
    result = alds_onnx.compress(model, cr=0.4, calibration=feeds, threads=1)
    rows = {row.name: row for row in result.plan.layers}
    assert rows["lstm"].decision is rows["gru"].decision is Decision.DECOMPOSE
    parameters = num_parameters(ModelIndex(model))
    assert num_parameters(ModelIndex(result.model)) <= 0.6 * parameters
    verification = result.report.verification
    assert verification is not None
    assert verification.status is Status.PASSED
    (y,), (z,) = run(model, data[0]), run(result.model, data[0])
    largest = 0.05  # the noise
    assert np.linalg.norm(y - z) <= largest * np.linalg.norm(y)
    plan = plan_from_json(json.loads(json.dumps(plan_to_json(result.plan))))
    again = alds_onnx.compress(model, plan=plan, calibration=feeds, threads=1)
    assert again.model == result.model
    merged = alds_onnx.merge(result.model, threads=1).model
    assert merged.graph.node == model.graph.node


def test_a_budget_of_work_counts_the_recurrence() -> None:
    """What is reported is the work of the nodes that are there, before and after."""
    (model, _), sizes = tagger(), {"x": (7, 4, 48)}
    result = alds_onnx.compress(model, cr_macs=0.3, threads=1, input_shapes=sizes)
    counted = []
    for one in (model, result.model):
        index = ModelIndex(one)
        works = work_of_layers(index, known_shapes(index, infer(one, sizes)))
        counted.append(sum(work.macs for work in works.values()))
    assert [result.report.macs_before, result.report.macs_after] == counted
    assert counted[1] <= 0.7 * counted[0]


def test_error_falls_with_the_rank() -> None:
    model, feeds = recurrent("GRU", "bidirectional", "B"), feeds_of()
    (y, *_) = run(model, feeds)
    errors = []
    for rank in (2, 8, 16, 20):
        (z, *_) = run(rewrite(model, replacements_of(model, rank=rank)), feeds)
        errors.append(float(np.linalg.norm(y - z)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < ROUNDING * np.linalg.norm(y)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a target of time: slow cuts are looked for among the recurrent layers too."""
    model, data = tagger()
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    np.savez(tmp_path / "data.npz", x=data[0]["x"])
    calibration = ["--calibration", str(tmp_path / "data.npz")]
    for more in ([], calibration):
        arguments = [str(source), str(target), "--cr", "0.4", "--threads", "1", *more]
        assert cli.run(arguments) == 0, capsys.readouterr().err
        assert num_parameters(ModelIndex(onnx.load(target))) <= 0.6 * num_parameters(
            ModelIndex(model)
        )
    merged = tmp_path / "merged.onnx"
    assert cli.run([str(target), "--merge", str(merged), "--threads", "1"]) == 0
    assert onnx.load(merged).graph.node == model.graph.node
