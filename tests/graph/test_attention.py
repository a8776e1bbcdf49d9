"""Attention is found where it is, and nowhere else; its projections stay whole unless asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

import alds_onnx
from alds_onnx import Plan
from alds_onnx.graph.attention import attention_projections
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.values import Decision

WIDTH = 16
BODY = """
    q0 = MatMul(x, wq) q1 = Add(q0, b) q2 = Reshape(q1, heads) q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul({k}, wk) k1 = Add(b, k0) k2 = Reshape(k1, heads) k = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(x, wv) v1 = Add(v0, b) v2 = Reshape(v1, heads) v = Transpose<perm=[0,2,1,3]>(v2)
    s0 = MatMul(q, k) s1 = Div(s0, scale) s2 = Add(s1, mask) s = {softmax}(s2)
    c0 = MatMul(s, v) c1 = Transpose<perm=[0,2,1,3]>(c0) c = Reshape(c1, flat)
    y = MatMul(c, wo)
"""
PROJECTIONS = {"q0", "k0", "v0"}


def made(k: str = "x", softmax: str = "Softmax<axis=-1>") -> ModelProto:
    model = parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 5, {WIDTH}] x, float[2, 5, {WIDTH}] z) => (float[2, 5, {WIDTH}] y) {{
            {BODY.format(k=k, softmax=softmax)}
        }}
        """
    )
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        for name in ("wq", "wk", "wv", "wo")
    }
    arrays |= {"b": np.zeros(WIDTH, np.float32), "scale": np.array(2.0, np.float32)}
    arrays |= {"mask": np.zeros((1, 1, 1, 5), np.float32)}
    arrays |= {"heads": np.array([0, 0, 4, 4]), "flat": np.array([0, 0, WIDTH])}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def found(model: ModelProto) -> set[str]:
    index = ModelIndex(model)
    layers = [x for x in find_layers(index, Path(), {}) if isinstance(x, Layer)]
    sites = attention_projections(index, [layer.site for layer in layers])
    return {layer.name for layer in layers if layer.site in sites}


def test_queries_keys_and_values_are_found_and_nothing_else() -> None:
    assert found(made()) == PROJECTIONS


@pytest.mark.parametrize("options", [{"k": "z"}, {"softmax": "Sigmoid"}, {"k": "v0"}])
def test_what_is_not_self_attention_is_not_taken_for_it(options: dict[str, str]) -> None:
    model = made(**options)
    if options.get("k") == "v0":  # in order: what is read is made before
        nodes = list(model.graph.node)
        order = sorted(nodes, key=lambda node: node.output[0][0] != "v")
        del model.graph.node[:]
        model.graph.node.extend(order)
    assert found(model) == set()


def decisions(**options: object) -> dict[str, tuple[Decision, str]]:
    given = {"cr": 0.15, "dry_run": True} | options
    result = alds_onnx.compress(made(), **given)  # type: ignore[arg-type]
    return {row.name: (row.decision, row.reason) for row in result.plan.layers}


def test_they_stay_whole_with_a_reason() -> None:
    rows = decisions()
    for name in PROJECTIONS:
        decision, reason = rows[name]
        assert decision is Decision.KEEP
        assert "attention" in reason
        assert "--include" in reason
    assert rows["y"][0] is Decision.DECOMPOSE


def test_they_are_cut_if_they_are_asked_for_by_name() -> None:
    rows = decisions(include=("?0", "y"), cr=0.6)
    assert any(rows[name][0] is Decision.DECOMPOSE for name in PROJECTIONS)


def test_they_are_cut_if_the_budget_needs_them_and_a_warning_says_so() -> None:
    result = alds_onnx.compress(made(), cr=0.6, dry_run=True)
    assert result.plan.removed >= 0.6
    assert any("attention" in warning for warning in result.report.warnings)


@pytest.mark.parametrize("sweep", [False, True])
def test_data_is_read_and_scores_are_taken_once_though_the_budget_needs_them(sweep: bool) -> None:
    """Some data can be read only once."""
    generator = np.random.default_rng(0)
    shape = (2, 5, WIDTH)
    feeds = [
        {name: generator.standard_normal(shape).astype(np.float32) for name in ("x", "z")}
        for _ in range(8)
    ]
    scored = []

    def score(_: object) -> float:
        scored.append(1)
        return 1.0

    data = iter(feeds)
    if sweep:
        (result,) = alds_onnx.sweep(made(), (0.6,), calibration=data, evaluate=score, threads=1)
    else:
        result = alds_onnx.compress(made(), cr=0.6, calibration=data, evaluate=score, threads=1)
    assert result.plan.removed >= 0.6
    assert len(scored) == 2  # before and after


def test_a_sweep_cuts_them_for_the_ratios_that_need_them() -> None:
    ratios = (0.15, 0.6)
    points = list(alds_onnx.sweep(made(), ratios, dry_run=True))
    for cr, point in zip(ratios, points, strict=True):
        alone = alds_onnx.compress(made(), cr=cr, dry_run=True)
        assert point.plan.layers == alone.plan.layers
        assert point.report.warnings == alone.report.warnings


def test_a_plan_is_applied_as_it_stands() -> None:
    plan: Plan = alds_onnx.compress(made(), cr=0.6, dry_run=True).plan
    again = alds_onnx.compress(made(), plan=plan, dry_run=True).plan
    assert [row.cut for row in again.layers] == [row.cut for row in plan.layers]
