"""The HTML report as text: complete, small, and safe against names in the model."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from dataclasses import replace

import pytest

from alds_onnx.evidence import Evidence, ThinCurve, TradeOff, TradePoint, WeightEvidence
from alds_onnx.report.html import report_to_html
from alds_onnx.report.origin import find_origin
from alds_onnx.report.tables import embedded, rounded, tables
from alds_onnx.report.words import point_error
from alds_onnx.results import Latency, OutputFidelity, Status, Verification
from alds_onnx.runtimes import Runtime
from alds_onnx.values import Decision, LayerPlan, Objective, Report
from tests.report.reports import HOSTILE, LIMIT_RESULT, ROW, Outline, report

# Largest size of a page, in bytes.
LARGEST = 6_000_000


def page(found: Report, argv: tuple[str, ...] = ()) -> str:
    return report_to_html(found, find_origin(argv)).decode()


def layers(count: int, name: str = "/block/layer{}/Conv") -> tuple[LayerPlan, ...]:
    return tuple(replace(ROW, name=name.format(i)) for i in range(count))


def evidence(rows: tuple[LayerPlan, ...]) -> Evidence:
    """Make evidence with curves of the largest length."""
    ranks = tuple(range(120))
    errors = tuple(1 / (3 + rank) for rank in ranks)
    curves = tuple(
        ThinCurve(num_slices=k, parameters_per_rank=8, ranks=ranks, errors=errors) for k in (1, 2)
    )
    points = tuple(TradePoint(removed=i / 60, error=i / 60) for i in range(60))
    return Evidence(
        on_data=False,
        weights=tuple(WeightEvidence(layers=(row.name,), curves=curves) for row in rows),
        trade_offs=(TradeOff(runtime=Runtime.NONE, points=points),),
    )


def hostile() -> Report:
    row = replace(ROW, name=HOSTILE, weight=HOSTILE)
    skipped = replace(ROW, name="b", decision=Decision.SKIP, reason=HOSTILE, cut=None, error=None)
    found = report(row, skipped, warnings=(HOSTILE,), evidence=evidence((row,)))
    fidelity = OutputFidelity(name=HOSTILE, relative_l2=0.1, max_abs=1, cosine=1, sqnr_db=20)
    checks = Verification(status=Status.NOT_VALIDATED, reason=HOSTILE, fidelity=(fidelity,))
    plan = replace(found.plan, file=HOSTILE)
    return replace(found, plan=plan, verification=checks, limit_result=LIMIT_RESULT)


def test_names_of_the_model_are_text() -> None:
    plain, bad = Outline(page(report(ROW, ROW, evidence=evidence((ROW,))))), page(hostile())
    outline = Outline(bad)
    assert outline.names.count("script") == plain.names.count("script") == 4
    assert "img" not in outline.names
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    for raw in ("<script>window", "<img src=x", "\u2028", "\x00"):
        assert raw not in bad
    assert "&lt;script&gt;window.hacked" in bad
    (first, second) = json.loads(outline.scripts["data"])["layers"]
    shown = HOSTILE.replace("\u2028", "\\u2028").replace("\x00", "\\x00")
    assert (first["name"], second["reason"]) == (shown, shown)


def test_data_cannot_end_its_element() -> None:
    text = embedded({"name": "</script><!--\u2028\ud800&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--\u2028\ud800&"}


def test_nothing_is_loaded_and_only_our_scripts_run() -> None:
    text = page(hostile())
    outline = Outline(text)
    (policy,) = [value for name, value in outline.attributes if name == "content" and value][:1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    ours = [outline.scripts[name] for name in outline.scripts if name not in ("data", "plots")]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in ours]
    assert allowed == digests
    for name, value in outline.attributes:
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith(("#", "data:"))
    assert "@import" not in text
    assert "url(" not in text.split("</style>")[0]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_small_whatever_the_model(count: int) -> None:
    rows = layers(count)
    text = page(report(*rows, evidence=evidence(rows)))
    assert len(text.encode()) < LARGEST
    assert text.count("<tr class=") == count


def test_without_anything_but_a_plan() -> None:
    """A report without evidence has no curves, but shows everything else."""
    text = page(report(ROW))
    assert "dry run: nothing was checked" in text
    for missing in ("trade-off", "latency", "outputs", "attempts"):
        assert f'id="{missing}"' not in text
    assert 'id="rows"' in text


def test_numbers_that_are_not_finite() -> None:
    assert rounded(math.nan) is rounded(math.inf) is rounded(None) is None
    fidelity = OutputFidelity(
        name="y", relative_l2=math.inf, max_abs=math.nan, cosine=math.nan, sqnr_db=-math.inf
    )
    checks = Verification(
        status=Status.PASSED, difference=0.0, tolerance=1e-4, fidelity=(fidelity,)
    )
    row = replace(ROW, local_error=math.inf, output_error=math.nan)
    trials = (*LIMIT_RESULT.trials, replace(LIMIT_RESULT.trials[0], value=math.nan))
    found = replace(
        report(row), verification=checks, limit_result=replace(LIMIT_RESULT, trials=trials)
    )
    text = page(found)
    assert "not finite" in text
    data = json.loads(Outline(text).scripts["data"])
    assert data["layers"][0]["local"] is None
    assert data["trials"][-1]["value"] is None


def test_the_command_can_be_pasted() -> None:
    argv = ("in file.onnx", "out.onnx", "--exclude", "a'b*", "--cr", "0.5")
    assert shlex.split(find_origin(argv).command) == ["alds-onnx", *argv]
    text = page(report(ROW), argv)
    assert "alds-onnx &#39;in file.onnx&#39; out.onnx" in text
    assert find_origin().command == ""
    assert {"alds-onnx", "onnxruntime", "Python"} <= dict(find_origin().versions).keys()


def test_slow_runs_are_counted_where_they_are_not_drawn() -> None:
    times = (*[1.0 + i / 100 for i in range(99)], 4.0)
    latency = Latency(median_ms=1.5, low_ms=1.2, high_ms=1.8, runs=100, times_ms=times)
    checks = Verification(status=Status.PASSED, latency_before=latency, latency_after=latency)
    found = tables(replace(report(ROW), verification=checks))
    assert found["beyond"] == 2
    assert len(found["times"]) == 198
    assert max(ms for _, ms in found["times"]) < 3


def test_thinned_curves_keep_their_ends() -> None:
    rows = layers(3000)
    found = tables(report(*rows, evidence=evidence(rows)))
    curve = found["weights"][0]["curves"][0]
    assert (curve["ranks"][0], curve["ranks"][-1]) == (0, 119)
    assert len(curve["ranks"]) < 120
    assert [rounded(1 / (3 + rank)) for rank in curve["ranks"]] == curve["errors"]


def test_the_point_is_in_the_units_of_the_curve() -> None:
    rows = tuple(replace(ROW, output_error=e) for e in (0.3, 0.4))
    fidelity = [
        OutputFidelity(name="y", relative_l2=e, max_abs=1, cosine=1, sqnr_db=20, note=note)
        for e, note in ((0.2, ""), (0.25, ""), (0.9, "has no numbers"))
    ]
    checks = Verification(status=Status.PASSED, fidelity=tuple(fidelity))

    def error(objective: Objective, checks: Verification | None) -> float | None:
        found = report(*rows)
        plan = replace(found.plan, objective=objective)
        return point_error(replace(found, plan=plan, verification=checks))

    assert error(Objective.MAX_RELATIVE_ERROR, checks) == 0.25
    assert error(Objective.SUM_OUTPUT_ERROR, checks) == 0.25
    assert error(Objective.SUM_OUTPUT_ERROR, None) == pytest.approx(0.5)
    assert error(Objective.MAX_OUTPUT_ERROR, checks) == 0.4
