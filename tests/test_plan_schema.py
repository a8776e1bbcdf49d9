"""plan.schema.json agrees with the reader of plans."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alds_onnx
from alds_onnx import plans
from alds_onnx.cuts import Scheme
from alds_onnx.errors import PlanError
from alds_onnx.plans import plan_from_json, plan_to_json
from alds_onnx.report.json import dump
from alds_onnx.values import BudgetKind, Decision, Objective, Plan, SearchMethod
from tests.graph.builders import normal, parse
from tests.plan_values import EXAMPLE, changed, damaged, json_values, law, made_plans, paths

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

SCHEMA: dict[str, Any] = json.loads(
    files("alds_onnx").joinpath("plan.schema.json").read_text(encoding="utf-8")
)
LAYER = SCHEMA["$defs"]["layer"]["properties"]
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def is_read(data: object) -> bool:
    try:
        plan_from_json(data)
    except PlanError:
        return False
    return True


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@law
@given(made_plans())
def test_every_plan_that_is_written_fits(plan: Plan) -> None:
    VALIDATOR.validate(plan_to_json(plan))


@pytest.mark.parametrize("calibrated", [False, True])
def test_real_plans_fit_as_they_are_on_disk(calibrated: bool) -> None:
    model = parse(
        "g (float[n, 32] x) => (float[n, 48] y) { h = MatMul(x, V) y = Gemm(h, W) }",
        {"V": normal(32, 32), "W": normal(32, 48)},
    )
    data = [{"x": normal(40, 32)}] if calibrated else None
    plan = alds_onnx.compress(model, cr=0.3, calibration=data, dry_run=True, threads=1).plan
    assert any(row.local_error is not None for row in plan.layers) == calibrated
    VALIDATOR.validate(json.loads(dump(plan_to_json(plan))))


def test_the_example_fits_with_and_without_what_may_be_left_out() -> None:
    VALIDATOR.validate(EXAMPLE)
    VALIDATOR.validate({**EXAMPLE, "$schema": "plan.schema.json"})
    row = {"name": "a", "op": "Conv", "decision": "decompose", "num_slices": 1, "rank": 2}
    VALIDATOR.validate({"schema": 1, "model": {"parameters": 9}, "layers": [row]})


@pytest.mark.parametrize(
    ("found", "choices"),
    [
        (LAYER["decision"], Decision),
        (LAYER["scheme"], Scheme),
        (SCHEMA["properties"]["search"], SearchMethod),
        (SCHEMA["properties"]["objective"], Objective),
        (SCHEMA["$defs"]["budget"]["properties"]["kind"], BudgetKind),
    ],
)
def test_the_choices_are_those_of_the_code(found: dict[str, Any], choices: Any) -> None:
    assert {choice for choice in found["enum"] if choice} == {c.value for c in choices}


def test_the_members_are_those_of_the_reader() -> None:
    assert tuple(SCHEMA["properties"]) == plans._PLAN
    for name, known in (
        ("model", plans._MODEL),
        ("budget", plans._BUDGET),
        ("result", plans._RESULT),
        ("layer", plans._ROW),
    ):
        assert tuple(SCHEMA["$defs"][name]["properties"]) == known


BAD = [
    (("schema",), 2),
    (("schema",), ...),
    (("model",), ...),
    (("model", "parameters"), "many"),
    (("model", "sha"), ""),
    (("layers",), {}),
    (("layers", 1), "row"),
    (("search",), "genetic"),
    (("objective",), "speed"),
    (("seed",), -1),
    (("budget",), 0.5),
    (("budget", "removed"), 1),
    (("budget", "removed"), ...),
    (("budget", "kind"), "money"),
    (("budget", "kind"), "macs"),
    (("constraints",), [{}]),
    (("constraints",), [{"kind": "latency", "removed": 0.5}]),
    (("constraints",), [{"kind": "latency", "removed": 0.5, "before": -1}]),
    (("constraints",), {"kind": "latency", "removed": 0.5, "before": 9}),
    (("result", "parameters"), "few"),
    (("ranks",), []),
    (("layers", 0, "name"), ...),
    (("layers", 0, "op"), 5),
    (("layers", 0, "decision"), "cut"),
    (("layers", 0, "decision"), ...),
    (("layers", 0, "scheme"), "decoder"),
    (("layers", 0, "shape"), [8, "4"]),
    (("layers", 0, "rank"), ...),
    (("layers", 0, "rank"), 0),
    (("layers", 0, "rank"), "3"),
    (("layers", 0, "rank"), 2.5),
    (("layers", 0, "num_slices"), ...),
    (("layers", 0, "num_slices"), True),
    (("layers", 0, "slices"), 2),
    (("layers", 0, "relative_error"), -0.5),
    (("layers", 0, "parameters_after"), 1.5),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=str)
def test_a_bad_plan_is_refused_by_both(path: tuple[str | int, ...], value: object) -> None:
    data = changed(path, value)
    assert not VALIDATOR.is_valid(data)
    assert not is_read(data)


def has_whole_floats(data: object) -> bool:
    """JSON Schema accepts 1.0 as an integer; the reader does not."""
    if isinstance(data, dict):
        return any(map(has_whole_floats, data.values()))
    if isinstance(data, list):
        return any(map(has_whole_floats, data))
    return isinstance(data, float) and data == data // 1


@settings(law, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(paths(EXAMPLE)), json_values), min_size=1, max_size=3))
def test_what_the_schema_allows_is_read(
    damages: list[tuple[tuple[str | int, ...], object]],
) -> None:
    """A plan that the schema accepts is not refused for its form."""
    data = damaged(damages)
    if VALIDATOR.is_valid(data) and not has_whole_floats(data):
        assert is_read(data)
