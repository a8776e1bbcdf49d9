"""Plans survive JSON, and any other content of a file gives a PlanError."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alds_onnx import plans
from alds_onnx.cuts import Cut
from alds_onnx.errors import PlanError
from alds_onnx.plans import match_plan, plan_from_json, plan_to_json, read_plan
from alds_onnx.values import Decision, LayerPlan, Plan
from tests.plan_values import (
    EXAMPLE,
    changed,
    damaged,
    json_values,
    law,
    made_plans,
    paths,
)


def as_read(plan: Plan) -> Plan:
    """Remove the members that are written for people only."""
    layers = (dataclasses.replace(r, macs_before=None, macs_after=None) for r in plan.layers)
    return dataclasses.replace(plan, layers=tuple(layers))


def to_text(plan: Plan) -> str:
    return json.dumps(plan_to_json(plan), allow_nan=False)


@law
@given(made_plans())
def test_a_plan_survives_json(plan: Plan) -> None:
    again = plan_from_json(json.loads(to_text(plan)))
    assert again == as_read(plan)
    assert plan_from_json(json.loads(to_text(again))) == again


@settings(law, max_examples=20)
@given(made_plans())
def test_a_plan_survives_a_file(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(to_text(plan), encoding="utf-8")
    assert read_plan(path) == as_read(plan)


def test_the_members_are_those_of_the_schema() -> None:
    written = plan_to_json(plan_from_json(EXAMPLE))
    for name in ("schema", "model", "objective", "search", "seed", "budget"):
        assert written[name] == EXAMPLE[name]
    assert written["result"] == EXAMPLE["result"]
    assert written["layers"][0] == EXAMPLE["layers"][0]
    assert list(written) == list(EXAMPLE)


def test_multiply_accumulates_are_written_where_they_are_known() -> None:
    row = LayerPlan(
        name="n",
        op="Conv",
        weight="w",
        shape=(1,),
        decision=Decision.KEEP,
        macs_before=5,
        macs_after=5,
    )
    plan = dataclasses.replace(plan_from_json(EXAMPLE), layers=(row,))
    assert plan_to_json(plan)["layers"][0]["macs_before"] == 5
    unknown = dataclasses.replace(row, macs_before=None, macs_after=None)
    plan = dataclasses.replace(plan, layers=(unknown,))
    assert "macs_before" not in plan_to_json(plan)["layers"][0]


def test_a_plan_by_hand_needs_only_what_cannot_be_guessed() -> None:
    row = {"name": "a", "op": "Conv", "decision": "decompose", "num_slices": 1, "rank": 2}
    plan = plan_from_json({"schema": 1, "model": {"parameters": 9}, "layers": [row]})
    assert plan.sha256 == ""
    assert plan.budget is None
    assert plan.layers[0].cut == Cut(num_slices=1, rank=2)
    assert plan.layers[0].error is None
    assert plan_from_json(plan_to_json(plan)) == plan


def test_errors_that_a_plan_does_not_give_are_not_written_either() -> None:
    data = changed(("layers", 0, "spectral_error"), ...)
    error = plan_from_json(data).layers[0].error
    assert error is not None
    assert error.relative == 0.18
    assert math.isnan(error.spectral)
    written = json.loads(to_text(plan_from_json(data)))
    assert "spectral_error" not in written["layers"][0]
    assert written["layers"][0]["relative_error"] == 0.18


def test_a_cut_counts_only_where_the_decision_is_to_decompose() -> None:
    plan = plan_from_json(changed(("layers", 0, "decision"), "keep"))
    assert plan.layers[0].cut is None


def short(value: object) -> str:
    """A name for a case that fits on a line."""
    return repr(value)[:20]


NOT_INT = [True, 1.0, "1", [], {}, -1, 2**63, 10**400]
NOT_STR = [1, True, 0.5, [], {}]
NOT_FLOAT = [True, "0.1", [], {}, math.nan, math.inf, -math.inf, 10**400, -1]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("op", v) for v in (*NOT_STR, None, ...)),
        *(("decision", v) for v in (*NOT_STR, "maybe", None, ...)),
        *(("scheme", v) for v in (*NOT_STR, "fold")),
        *(("weight", v) for v in NOT_STR),
        *(("reason", v) for v in NOT_STR),
        *(("shape", v) for v in (1, "8", {}, [True], [1.0], ["8"], [-1], [2**63], [None], [[8]])),
        *(("num_slices", v) for v in (*NOT_INT, 0, None, ...)),
        *(("rank", v) for v in (*NOT_INT, 0, None, ...)),
        *(("relative_error", v) for v in NOT_FLOAT),
        *(("spectral_error", v) for v in NOT_FLOAT),
        *(("error_bound", v) for v in NOT_FLOAT),
        *(("parameters_before", v) for v in NOT_INT),
        *(("parameters_after", v) for v in NOT_INT),
    ],
    ids=short,
)
def test_a_malformed_row_is_refused_by_name(member: str, value: object) -> None:
    with pytest.raises(PlanError) as refused:
        plan_from_json(changed(("layers", 0, member), value))
    assert "/layer1/Conv" in str(refused.value)
    assert f"`{member}`" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        *((("layers", 1), v, "row 1 of the plan") for v in (None, 1, [], "row")),
        *((("layers", 1, "name"), v, "row 1 of the plan") for v in (None, 1, [], ...)),
        *((("layers",), v, "`layers`") for v in (None, {}, "rows", 1, ...)),
        *((("schema",), v, "schema") for v in (None, 2, True, 1.0, "1", 10**400, ...)),
        *((("model",), v, "`model`") for v in (None, [], "in.onnx", ...)),
        *((("model", "parameters"), v, "`parameters`") for v in (*NOT_INT, None, ...)),
        *((("model", "file"), v, "`file`") for v in NOT_STR),
        *((("model", "sha256"), v, "`sha256`") for v in NOT_STR),
        *((("search",), v, "`search`") for v in (*NOT_STR, "genetic")),
        *((("seed",), v, "`seed`") for v in NOT_INT),
        *((("budget",), v, "`budget`") for v in ([], 0.5, "half")),
        *((("budget", "removed"), v, "budget") for v in (*NOT_FLOAT, 0, 1, 0.0, 1.0, 1.5, ...)),
        *((("result",), v, "`result`") for v in ([], 480, "good")),
        *((("result", "parameters"), v, "`parameters`") for v in NOT_INT),
        (("budgets",), None, "the plan has an unknown member `budgets`: is it `budget`"),
        (("model", "sha"), "", "the plan's model has an unknown member `sha`: is it `sha256`"),
        (("budget", "remove"), 0.5, "the plan's budget has an unknown .*: is it `removed`"),
        (("result", "x"), 1, "the plan's result has an unknown member `x`$"),
        (("layers", 0, "ranks"), 3, "row '/layer1/Conv' has an unknown .*: is it `rank`"),
    ],
    ids=short,
)
def test_a_malformed_plan_is_refused(
    path: tuple[str | int, ...], value: object, where: str
) -> None:
    with pytest.raises(PlanError, match=where):
        plan_from_json(changed(path, value))


def assert_plan_or_refused(data: object) -> None:
    """Check that an accepted plan can be used, and written as valid JSON."""
    try:
        plan = plan_from_json(data)
    except PlanError:
        return
    again = json.loads(to_text(plan))
    assert to_text(plan_from_json(again)) == to_text(plan)


@law
@given(json_values)
def test_any_json_is_a_plan_or_refused(data: object) -> None:
    assert_plan_or_refused(data)


@settings(law, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(paths(EXAMPLE)), json_values), min_size=1, max_size=3))
def test_a_damaged_plan_is_a_plan_or_refused(
    damages: list[tuple[tuple[str | int, ...], object]],
) -> None:
    assert_plan_or_refused(damaged(damages))


@settings(law, max_examples=50)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"layers":' * 100_000)
@example(b'{"schema": 1, "model": {"parameters": ' + b"9" * 5000 + b"}}")
@example(b'{"schema": NaN}')
@example(
    b'{"schema": 1, "model": {"parameters": 1}, "layers": [], "budget": {"removed": Infinity}}'
)
@example(b'{"schema": 1, "model": {"parameters": 1}, "layers": [], "budget": {"removed": 1e999}}')
@example(json.dumps(changed(("objective",), math.nan)).encode())
@example(json.dumps(EXAMPLE).encode("utf-16"))
@example(json.dumps(EXAMPLE).encode()[:-1])
@example(b"")
def test_a_file_that_is_no_plan_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_bytes(content)
    with pytest.raises(PlanError):
        read_plan(path)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('"rank": 3', '"rank": 3,,', r"is not JSON: .* line 37 column \d+"),
        ('"rank": 3', '"rank": 3, "rank": 4', "'rank' of '/layer1/Conv' occurs twice"),
        ('"seed": 7', '"seed": 7, "seed": 7', "'seed' occurs twice"),
        ('"rank": 3', '"rank": NaN', "NaN is not JSON"),
    ],
)
def test_a_slip_of_the_hand_is_named(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    path, text = tmp_path / "plan.json", json.dumps(EXAMPLE, indent=1)
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    with pytest.raises(PlanError, match=message):
        read_plan(path)


def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "missing.json")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(EXAMPLE))
    read_plan(str(path))
    monkeypatch.setattr(plans, "_LARGEST_FILE", path.stat().st_size - 1)
    with pytest.raises(PlanError, match="too large"):
        read_plan(path)


def model_rows() -> dict[str, LayerPlan]:
    """The rows of a model that the example fits."""
    return {row.name: row for row in plan_from_json(EXAMPLE).layers}


def test_a_plan_that_fits_gives_its_cuts() -> None:
    cuts = match_plan(plan_from_json(EXAMPLE), model_rows(), "ab12")
    assert cuts == {"/layer1/Conv": Cut(num_slices=2, rank=3)}


def test_a_plan_without_a_hash_or_shapes_fits_by_its_names() -> None:
    data = changed(("model", "sha256"), "")
    del data["layers"][0]["shape"]
    assert "/layer1/Conv" in match_plan(plan_from_json(data), model_rows(), "another")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "sha256"), "cd34", "another model .*cd34"),
        (("layers", 1, "name"), "/layer1/Conv", "more than one row '/layer1/Conv'"),
        (("layers", 1), ..., "'/fc/Gemm': the plan has no such row"),
        (("layers", 1, "op"), "Conv", "'/fc/Gemm' is a Conv of shape"),
        (("layers", 1, "op"), "Relu", "'/fc/Gemm' is a Relu of shape"),
        (("layers", 0, "shape"), [8, 4, 3, 5], r"'/layer1/Conv' is a Conv of shape \[8, 4, 3, 5\]"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        match_plan(plan_from_json(changed(path, value)), model_rows(), "ab12")


def test_a_misspelt_row_is_named_with_the_one_that_is_missing() -> None:
    data = changed(("layers", 0, "name"), "/layer1/conv")
    message = "'/layer1/conv': the model has no such layer: is it `/layer1/Conv`"
    with pytest.raises(PlanError, match=message):
        match_plan(plan_from_json(data), model_rows(), "ab12")


def test_rows_that_the_model_does_not_have_are_refused() -> None:
    actual = model_rows()
    del actual["/fc/Gemm"], actual["/mm/MatMul"]
    with pytest.raises(PlanError, match="'/fc/Gemm': the model has no such layer"):
        match_plan(plan_from_json(EXAMPLE), actual, "ab12")


def test_a_layer_that_cannot_be_decomposed_is_refused_with_the_reason() -> None:
    data = copy.deepcopy(EXAMPLE)
    data["layers"][2] |= {"decision": "decompose", "num_slices": 1, "rank": 1}
    with pytest.raises(PlanError, match=r"'/mm/MatMul' cannot be decomposed: its weight is tiny"):
        match_plan(plan_from_json(data), model_rows(), "ab12")


def test_nesting_within_the_limit_of_recursion_is_no_crash() -> None:
    value: object = 0
    for _ in range(sys.getrecursionlimit() // 2):
        value = [value]
    for path in paths(EXAMPLE):
        assert_plan_or_refused(changed(path, value))
