"""Plans as values and as JSON, and ways to damage them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, CutError, Scheme
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.values import Budget, BudgetKind, Decision, LayerPlan, Plan, SearchMethod

law = settings(deadline=None)


sizes = st.integers(0, 2**63 - 1)


names = st.text(st.characters(), max_size=8)  # surrogates and control characters too


errors = st.floats(0, allow_infinity=False)


decisions = st.sampled_from(Decision)


@st.composite
def rows(draw: st.DrawFn) -> LayerPlan:
    decision = draw(decisions)
    scheme = draw(st.sampled_from(Scheme))
    counts = st.integers(1, 2**63 - 1)
    rank_out = counts if scheme is Scheme.TUCKER2 else st.just(0)
    cut = st.builds(Cut, num_slices=counts, rank=counts, scheme=st.just(scheme), rank_out=rank_out)
    error = st.builds(CutError, relative=errors, spectral=errors, bound=errors)
    macs = draw(st.none() | sizes)
    return LayerPlan(
        name=draw(names),
        op=draw(st.sampled_from([*OPERATORS])),
        weight=draw(names),
        shape=tuple(draw(st.lists(sizes, max_size=4))),
        decision=decision,
        reason=draw(names),
        cut=draw(cut) if decision is Decision.DECOMPOSE else None,
        error=draw(error) if decision is Decision.DECOMPOSE else None,
        parameters_before=draw(sizes),
        parameters_after=draw(sizes),
        macs_before=macs,
        macs_after=None if macs is None else draw(sizes),
    )


@st.composite
def made_plans(draw: st.DrawFn) -> Plan:
    parameters = draw(sizes)
    removed = st.floats(0, 1, exclude_min=True, exclude_max=True)
    own = st.builds(Budget, before=st.just(parameters), removed=removed)
    other = st.builds(
        Budget,
        kind=st.sampled_from([BudgetKind.MACS, BudgetKind.LATENCY]),
        before=sizes,
        removed=removed,
    )
    return Plan(
        file=draw(names),
        sha256=draw(names),
        parameters=parameters,
        search=draw(st.sampled_from(SearchMethod)),
        seed=draw(sizes),
        budget=draw(st.none() | own),
        constraints=tuple(draw(st.lists(own | other, max_size=2))),
        layers=tuple(draw(st.lists(rows(), max_size=3))),
        parameters_after=draw(sizes),
    )


EXAMPLE: dict[str, Any] = {
    "schema": 1,
    "model": {"file": "in.onnx", "sha256": "ab12", "parameters": 1000, "other_parameters": 712},
    "objective": "max-relative-error",
    "search": "iterative",
    "seed": 7,
    "budget": {"kind": "parameters", "removed": 0.5, "limit": 500},
    "result": {"parameters": 480, "removed": 0.52, "max_relative_error": 0.18},
    "layers": [
        {
            "name": "/layer1/Conv",
            "op": "Conv",
            "weight": "layer1.weight",
            "shape": [8, 4, 3, 3],
            "decision": "decompose",
            "reason": "",
            "scheme": "encode",
            "num_slices": 2,
            "rank": 3,
            "relative_error": 0.18,
            "spectral_error": 0.2,
            "error_bound": 0.25,
            "parameters_before": 288,
            "parameters_after": 156,
        },
        {"name": "/fc/Gemm", "op": "Gemm", "decision": "keep", "shape": [10, 8]},
        {"name": "/mm/MatMul", "op": "MatMul", "decision": "skip", "reason": "its weight is tiny"},
    ],
}


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Set one member of the example; `...` removes it."""
    data = copy.deepcopy(EXAMPLE)
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


hostile = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63), 10**400, 0, 1, -1]),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from(["Conv", "decompose", "keep", "encode", "exact", "schema", "layers"]),
)


json_values = st.recursive(
    hostile,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schema", "model", "layers", "name", "op", "rank"]) | names,
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def paths(data: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """List every place in the example."""
    members: list[tuple[Any, object]] = []
    if isinstance(data, dict):
        members = list(data.items())
    elif isinstance(data, list):
        members = list(enumerate(data))
    return [place for k, v in members for place in [(*path, k), *paths(v, (*path, k))]]


def damaged(damages: list[tuple[tuple[str | int, ...], object]]) -> object:
    """Put other values at some places of the example."""
    data = copy.deepcopy(EXAMPLE)
    for path, value in damages:
        place: Any = data
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier damage took the place away
            continue
    return data
