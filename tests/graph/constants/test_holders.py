"""Every parameter is counted by one row, or said to be in none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import alds_onnx
from alds_onnx import cli
from alds_onnx.errors import BudgetError
from alds_onnx.graph.accounting import num_parameters
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.plans import plan_from_json, plan_to_json
from alds_onnx.values import Decision, Plan
from tests.corpus import field_cases
from tests.graph.builders import normal, parse

MIXED = """
g (int64[n, 3] ids) => (float[n, 3, 90] y, float[n, 3, 90] z) {
    [embed] e = Gather(E, ids)
    [norm] l = LayerNormalization(e, scale, shift)
    [dense] d = MatMul(l, W)
    [again] a = MatMul(l, V)
    V = Identity(W)
    [add] y = Add(d, b)
    [small] z = Mul(a, c)
}
"""


def mixed() -> ModelProto:
    """A table, a normalization, a shared weight, a bias, a small constant."""
    graph = MIXED.replace("    V = Identity(W)\n", "").replace("{\n", "{\n    V = Identity(W)\n", 1)
    return parse(
        graph,
        {
            "E": normal(50, 80),
            "scale": normal(80),
            "shift": normal(80),
            "W": normal(80, 90),
            "b": normal(90),
            "c": np.float32(2),
        },
    )


def planned(model: ModelProto, cr: float = 0.2) -> Plan:
    return alds_onnx.compress(model, cr=cr, dry_run=True, threads=1).plan


def counted(plan: Plan) -> int:
    return sum(row.parameters_before for row in plan.layers if not row.counted_by)


def test_each_holder_has_a_row_with_its_reason() -> None:
    rows = {row.name: row for row in planned(mixed()).layers}
    assert list(rows) == ["embed", "norm", "dense", "again", "add"]
    assert rows["norm"].parameters_before == 160
    assert rows["norm"].reason == "scales and shifts of a normalization"
    assert rows["add"].reason == "a bias"
    assert rows["embed"].shape == (50, 80)
    assert (rows["dense"].counted_by, rows["again"].counted_by) == ("", "dense")


@pytest.mark.parametrize("case", ["mixed", *(c.__name__ for c in field_cases.CASES)])
def test_rows_and_the_remainder_are_the_parameters(case: str) -> None:
    model = mixed() if case == "mixed" else getattr(field_cases, case)()[0]
    plan = alds_onnx.compress(model, max_error=1e9, dry_run=True, threads=1).plan
    assert plan.parameters == num_parameters(ModelIndex(model))
    assert counted(plan) + plan.other_parameters == plan.parameters
    assert counted(plan) <= plan.parameters
    written = plan_to_json(plan)
    assert written["model"]["other_parameters"] == plan.other_parameters
    assert plan_from_json(written).other_parameters == plan.other_parameters


def test_a_plan_without_such_rows_is_still_one() -> None:
    model = mixed()
    first = planned(model)
    plan = plan_to_json(first)
    plan["layers"] = [
        {key: value for key, value in row.items() if key != "counted_by"}
        for row in plan["layers"]
        if row["decision"] != Decision.SKIP.value
    ]
    del plan["model"]["other_parameters"]
    again = alds_onnx.compress(model, plan=plan_from_json(plan), threads=1).plan
    assert [row.cut for row in again.layers] == [row.cut for row in first.layers]
    assert any(row.cut for row in again.layers)


def test_integers_that_stand_for_weights_are_counted() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { V = DequantizeLinear(Q, s) y = MatMul(x, V) }",
        {"Q": np.ones((8, 12), np.int8), "s": np.float32(0.5)},
    )
    assert num_parameters(ModelIndex(model)) == 97


def test_out_of_reach_says_what_holds_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(mixed(), tmp_path / "in.onnx")
    excluded = [one for name in ("dense", "embed") for one in ("--exclude", name)]
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *excluded]
    assert cli.run([*arguments, "--cr", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of the 11,451 parameters can be removed" in line
    assert "63 % in MatMul 'dense' (excluded by the user)" in line
    assert "35 % in Gather 'embed'" in line
    assert not (tmp_path / "out.onnx").exists()


def lonely(*nodes: onnx.NodeProto, domain: str) -> ModelProto:
    """A model in which nothing can be cut."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 80])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 80])
    weight = onnx.numpy_helper.from_array(normal(80), "b")
    graph = helper.make_graph(list(nodes), "g", [value], [output], [weight])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_a_build_for_one_machine_is_called_one() -> None:
    domain = "com.microsoft.nchwc"
    model = lonely(helper.make_node("Conv", ["x", "b"], ["y"], domain=domain), domain=domain)
    with pytest.raises(BudgetError, match=r"a build of onnxruntime for one machine .*exported"):
        planned(model)


def test_a_quantized_model_is_called_one() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { q = QuantizeLinear(x, s) "
        "a = DequantizeLinear(q, s) V = DequantizeLinear(Q, s) y = MatMul(a, V) }",
        {"Q": np.ones((8, 12), np.int8), "s": np.float32(0.5)},
    )
    with pytest.raises(BudgetError, match="the model is quantized: compress the float model"):
        planned(model)
