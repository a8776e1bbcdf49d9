"""Writing and reading the plan as JSON (schema 1)."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from alds_onnx.cuts import Cut, CutError, Scheme
from alds_onnx.errors import PlanError
from alds_onnx.values import Budget, BudgetKind, Decision, LayerPlan, Objective, Plan, SearchMethod

SCHEMA = 1
# Enough for a model with 100,000 layers; a larger file is not a plan.
_LARGEST_FILE = 64 << 20
# Sizes in ONNX are int64; larger numbers would overflow.
_LARGEST_INT = 2**63 - 1

_MISFIT = "the plan does not fit the model"
_ERRORS = ("relative_error", "spectral_error", "error_bound")

# The members of each object, as described in plan.schema.json. Other members are refused: they are
# typing errors, and to ignore an edit would be worse than an error.
_PLAN = (
    *("$schema", "schema", "model", "objective", "search", "seed", "budget", "constraints"),
    *("result", "layers"),
)
_MODEL = ("file", "sha256", "parameters", "other_parameters")
_BUDGET = ("kind", "removed", "limit", "before")
_RESULT = ("parameters", "removed", "max_relative_error")
_ROW = (
    *("name", "op", "weight", "shape", "decision", "reason", "scheme", "num_slices", "rank"),
    *("rank_out", *_ERRORS, "local_error", "output_error"),
    *("parameters_before", "parameters_after", "counted_by", "macs_before", "macs_after"),
)

_KINDS: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

_T = TypeVar("_T")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Convert a plan to JSON values, in the order of the schema."""
    more = {"constraints": [_budget_to_json(budget) for budget in plan.constraints]}
    return {
        "schema": SCHEMA,
        "model": {
            "file": plan.file,
            "sha256": plan.sha256,
            "parameters": plan.parameters,
            "other_parameters": plan.other_parameters,
        },
        "objective": plan.objective.value,
        "search": plan.search.value,
        "seed": plan.seed,
        "budget": None if plan.budget is None else _budget_to_json(plan.budget),
        **(more if plan.constraints else {}),
        "result": {
            "parameters": plan.parameters_after,
            "removed": plan.removed,
            "max_relative_error": plan.max_relative_error,
        },
        "layers": [_row_to_json(row) for row in plan.layers],
    }


def _budget_to_json(budget: Budget) -> dict[str, Any]:
    counted = {"kind": budget.kind.value, "removed": budget.removed, "limit": budget.allowed}
    # The original number of parameters is in the plan's `model`.
    return counted if budget.kind is BudgetKind.PARAMETERS else counted | {"before": budget.before}


def _row_to_json(row: LayerPlan) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": row.name,
        "op": row.op,
        "weight": row.weight,
        "shape": list(row.shape),
        "decision": row.decision.value,
        "reason": row.reason,
    }
    if row.cut is not None:
        result |= {
            "scheme": row.cut.scheme.value,
            "num_slices": row.cut.num_slices,
            "rank": row.cut.rank,
        }
        if row.cut.rank_out:
            result["rank_out"] = row.cut.rank_out
    if row.error is not None:
        errors = (row.error.relative, row.error.spectral, row.error.bound)
        pairs = zip(_ERRORS, errors, strict=True)
        result |= {name: error for name, error in pairs if not math.isnan(error)}
    data_errors = {"local_error": row.local_error, "output_error": row.output_error}
    result |= {name: error for name, error in data_errors.items() if error is not None}
    result |= {"parameters_before": row.parameters_before, "parameters_after": row.parameters_after}
    if row.counted_by:
        result["counted_by"] = row.counted_by
    if row.macs_before is not None:
        result |= {"macs_before": row.macs_before, "macs_after": row.macs_after}
    return result


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file.

    Raises
    ------
    PlanError
        If the file is not a plan of schema 1. The message names the row.
    """
    where = Path(path)
    try:
        if where.stat().st_size > _LARGEST_FILE:
            raise PlanError(f"plan '{where}' is too large to be a plan")
        data = json.loads(
            where.read_text(encoding="utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repetition,
        )
    except FileNotFoundError as e:
        raise PlanError(f"plan '{where}' does not exist: check the path") from e
    except OSError as e:
        raise PlanError(f"plan '{where}' cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise PlanError(f"plan '{where}' is not JSON: {e}") from e
    return plan_from_json(data)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that has a member twice; Python would silently take the last one."""
    members = dict(pairs)
    if len(members) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        of = f" of '{str(members['name'])[:200]}'" if "name" in members else ""
        raise ValueError(f"the member '{name[:80]}'{of} occurs twice")
    return members


def plan_from_json(data: object) -> Plan:
    """Convert JSON values to a plan; see `read_plan`."""
    fields = _Fields(data, "the plan", _PLAN)
    if fields.get("schema", int) != SCHEMA:
        raise PlanError(f"the plan has a schema other than {SCHEMA}: write a new one")
    model = _Fields(fields.get("model", dict), "the plan's model", _MODEL)
    parameters = model.get("parameters", int)
    result = _Fields(fields.get("result", dict, {}), "the plan's result", _RESULT)
    model.get("other_parameters", int, 0)
    rows: list[object] = fields.get("layers", list)
    budget: dict[str, object] = fields.get("budget", dict, {})
    more: list[object] = fields.get("constraints", list, [])
    return Plan(
        file=model.get("file", str, ""),
        sha256=model.get("sha256", str, ""),
        parameters=parameters,
        objective=fields.choice("objective", Objective, Objective.MAX_RELATIVE_ERROR),
        search=fields.choice("search", SearchMethod, SearchMethod.EXACT),
        seed=fields.get("seed", int, 0),
        budget=_budget(budget, parameters) if budget else None,
        constraints=tuple(_budget(entry, parameters) for entry in more),
        layers=tuple(_row(row, number) for number, row in enumerate(rows)),
        parameters_after=result.get("parameters", int, 0),
    )


def _budget(data: object, parameters: int) -> Budget:
    fields = _Fields(data, "the plan's budget", _BUDGET)
    kind = fields.choice("kind", BudgetKind, BudgetKind.PARAMETERS)
    removed = fields.get("removed", float)
    if not 0 < removed < 1:
        raise PlanError(f"the plan's budget removes {removed}, which is not between 0 and 1")
    # The original number of parameters is in the plan's `model`.
    before = parameters if kind is BudgetKind.PARAMETERS else fields.get("before", int)
    return Budget(kind=kind, before=before, removed=removed)


def _row(data: object, number: int) -> LayerPlan:
    fields = _Fields(data, f"row {number} of the plan")
    name = fields.get("name", str)
    fields = _Fields(data, f"the plan's row '{name[:200]}'", _ROW)
    decision = fields.choice("decision", Decision)
    shape: list[Any] = fields.get("shape", list, [])
    if not all(type(n) is int and 0 <= n <= _LARGEST_INT for n in shape):
        raise PlanError(f"{fields.where}: `shape` must be a list of sizes")
    return LayerPlan(
        name=name,
        op=fields.get("op", str),
        weight=fields.get("weight", str, ""),
        shape=tuple(shape),
        decision=decision,
        reason=fields.get("reason", str, ""),
        cut=_cut(fields) if decision is Decision.DECOMPOSE else None,
        error=_error(fields),
        parameters_before=fields.get("parameters_before", int, 0),
        parameters_after=fields.get("parameters_after", int, 0),
        counted_by=fields.get("counted_by", str, ""),
    )


def _cut(fields: _Fields) -> Cut:
    scheme = fields.choice("scheme", Scheme, Scheme.ENCODE)
    values = {name: fields.get(name, int) for name in ("num_slices", *scheme.structure.ranks)}
    for name, value in values.items():
        if value < 1:
            raise PlanError(f"{fields.where}: `{name}` is {value}, but must be at least 1")
    return Cut(
        num_slices=values["num_slices"],
        rank=values["rank"],
        scheme=scheme,
        rank_out=values.get("rank_out", 0),
    )


def _error(fields: _Fields) -> CutError | None:
    relative, spectral, bound = (fields.get(name, float, math.nan) for name in _ERRORS)
    if math.isnan(relative):
        return None
    return CutError(relative=relative, spectral=spectral, bound=bound)


class _Fields:
    """Typed access to the members of a JSON object."""

    def __init__(self, data: object, where: str, known: Collection[str] | None = None) -> None:
        """Refuse members that are not in `known`; None accepts all for now."""
        if not isinstance(data, Mapping):
            raise PlanError(f"{where} is not a JSON object")
        unknown = [str(name) for name in data if known is not None and name not in known]
        if unknown:
            suggestion = _closest(unknown[0], known or ())
            raise PlanError(f"{where} has an unknown member `{unknown[0][:80]}`{suggestion}")
        self._data, self.where = data, where

    def get(self, name: str, kind: Callable[..., _T], default: _T | None = None) -> _T:
        """Give the member `name`, of exactly the type `kind`; `default` if it is null."""
        value = self._data.get(name)
        if value is None:
            if default is None:
                raise PlanError(f"{self.where} has no `{name}`")
            return default
        if kind is float and type(value) is int:
            value = float(value) if value <= sys.float_info.max else math.inf
        if type(value) is int and not 0 <= value <= _LARGEST_INT:
            raise PlanError(f"{self.where}: `{name}` must be between 0 and {_LARGEST_INT}")
        if type(value) is not kind:
            raise PlanError(f"{self.where}: `{name}` must be {_KINDS[kind]}")
        if type(value) is float and not 0 <= value < math.inf:
            raise PlanError(f"{self.where}: `{name}` must be a finite number, 0 or more")
        return cast(_T, value)

    def choice(self, name: str, kind: Callable[[str], _T], default: _T | None = None) -> _T:
        if default is not None and self._data.get(name) is None:
            return default
        value = self.get(name, str)
        try:
            return kind(value)
        except ValueError as e:
            raise PlanError(f"{self.where}: `{name}` cannot be '{value[:80]}'") from e


def _closest(name: str, names: Collection[str]) -> str:
    """Suggest the name that was probably meant; "" if no name is similar."""
    close = get_close_matches(name[:200], [n[:200] for n in names], n=1)
    return f": is it `{close[0]}`?" if close else ""


def match_plan(plan: Plan, rows: Mapping[str, LayerPlan], sha256: str) -> dict[str, Cut]:
    """Check that a plan fits a model, and give its cuts by the names of the rows.

    `rows` are those of the model; one that cannot be decomposed has the decision to skip. A plan
    with an empty `sha256` fits any model with the same layers.
    """
    if plan.sha256 and plan.sha256 != sha256:
        raise PlanError(
            f"the plan was made for another model ('{plan.file}', SHA-256 {plan.sha256[:12]}...): "
            'to use it on this one all the same, set its "sha256" to ""'
        )
    planned = {row.name: row for row in plan.layers}
    if len(planned) != len(plan.layers):
        twice = Counter(row.name for row in plan.layers).most_common(1)[0][0]
        raise PlanError(f"the plan has more than one row '{twice[:200]}'")
    for name in sorted(planned.keys() - rows.keys()):
        suggestion = _closest(name, rows.keys() - planned.keys())
        raise PlanError(f"{_MISFIT}: '{name[:200]}': the model has no such layer{suggestion}")
    missing = (name for name in rows.keys() - planned.keys() if _must_be_planned(rows[name]))
    for name in sorted(missing):
        raise PlanError(f"{_MISFIT}: '{name[:200]}': the plan has no such row")
    return {name: row.cut for name, row in planned.items() if _fits(row, rows[name]) and row.cut}


def _must_be_planned(row: LayerPlan) -> bool:
    """Whether a row must be there; earlier versions had none for operators that stay whole."""
    return row.decision is not Decision.SKIP


def _fits(row: LayerPlan, actual: LayerPlan) -> bool:
    where = f"{_MISFIT}: row '{row.name[:200]}'"
    if row.op != actual.op or (row.shape and row.shape != actual.shape):
        raise PlanError(
            f"{where} is a {row.op} of shape {list(row.shape)}, "
            f"the model has a {actual.op} of shape {list(actual.shape)}"
        )
    if row.decision is Decision.DECOMPOSE and actual.decision is Decision.SKIP:
        raise PlanError(f"{where} cannot be decomposed: {actual.reason}")
    return True
