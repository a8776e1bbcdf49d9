"""Sweeps by the command and from Python."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import alds_onnx
from alds_onnx.cli import actions, run
from alds_onnx.errors import BudgetError, UsageError
from alds_onnx.sweeps import make_sweep
from tests.graph.builders import Array, normal, parse
from tests.steps.nets import DENSE, feeds, models

RATIOS = (0.2, 0.4, 0.6)


def low_rank(rows: int, columns: int) -> Array:
    """A weight of rank 4 with a little noise: cutting is cheap down to rank 4."""
    noise = 0.02 * normal(rows, columns, seed=3)
    return np.asarray(normal(rows, 4, seed=1) @ normal(4, columns, seed=2) + noise, np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    weights = {"w1": low_rank(24, 32), "b1": normal(32), "w2": low_rank(32, 16)}
    onnx.save(parse(DENSE, weights), path)
    return path


@pytest.mark.parametrize("data", [False, True])
def test_a_point_is_what_its_ratio_gives(data: bool) -> None:
    """With data, up to the second choice of ranks, which a sweep leaves out."""
    calibration = feeds("dense") if data else None
    model = models()["dense"]
    points = list(alds_onnx.sweep(model, RATIOS, calibration=calibration, threads=1))
    assert [p.plan.budget.removed for p in points if p.plan.budget] == list(RATIOS)
    for cr, point in zip(RATIOS, points, strict=True):
        alone = alds_onnx.compress(model, cr=cr, calibration=calibration, threads=1)
        assert point.plan.removed >= cr
        if not data:
            assert point.model.SerializeToString() == alone.model.SerializeToString()


def test_ratios_out_of_reach_are_left_out_unless_all_are() -> None:
    model = models()["dense"]
    points = list(alds_onnx.sweep(model, [0.5, 0.999], threads=1, dry_run=True))
    assert len(points) == 1
    with pytest.raises(BudgetError):
        list(alds_onnx.sweep(model, [0.999], threads=1))


@pytest.mark.parametrize("ratios", [[], [0.5, 1.0], [0.0]])
def test_ratios_are_fractions(ratios: list[float]) -> None:
    with pytest.raises(UsageError):
        alds_onnx.sweep(models()["dense"], ratios)


def test_the_command_writes_every_model_and_the_comparison(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "points"
    names = {"csv": tmp_path / "s.csv", "json": tmp_path / "s.json"}
    options = [f"--{name}={path}" for name, path in names.items()]
    target = tmp_path / "out.onnx"
    argv = [str(source), str(target), "--sweep", "0.2:0.8:0.2", f"--sweep-out={folder}", *options]
    assert run([*argv, "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    ratios = [0.2, 0.4, 0.6, 0.8]
    rows = list(csv.DictReader(io.StringIO(names["csv"].read_text())))
    points = json.loads(names["json"].read_text())
    assert [float(row["cr"]) for row in rows] == ratios
    assert [point["cr"] for point in points["points"]] == ratios
    assert f"suggested: --cr {points['suggested']:g}" in printed
    for cr, row in zip(ratios, rows, strict=True):
        model, plan = folder / f"in-cr{cr:g}.onnx", folder / f"in-cr{cr:g}.plan.json"
        onnx.checker.check_model(onnx.load(model))
        assert json.loads(plan.read_text())["result"]["parameters"] == int(row["parameters"])
        if row["suggested"] == "1":
            assert model.read_bytes() == target.read_bytes()


def test_the_report_of_a_sweep(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report shows the suggested point and lists all. A dry run writes only the report."""
    page = tmp_path / "page.html"
    argv = [str(source), "--sweep", "0.2,0.4,0.6,0.8,0.999", "--dry-run", "--report", str(page)]
    assert run([*argv, "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"written: {page}" in printed.splitlines()
    (suggested,) = re.findall(r"suggested: (--cr \S+),", printed)
    text = page.read_text(encoding="utf-8")
    assert f"This page shows {suggested}, one of 4 ratios: suggested" in text
    assert "Out of reach: --cr 0.999." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "page.html"]


def test_a_page_that_cannot_be_made_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alds_onnx.report import html  # noqa: PLC0415 - patched

    def failing(*_: object) -> bytes:
        assert list(folder.glob("*.onnx"))
        raise MemoryError("no room for the page")

    monkeypatch.setattr(html, "report_to_html", failing)
    folder = tmp_path / "points"
    sides = [f"--{name}={tmp_path / name}" for name in ("csv", "json", "report")]
    argv = [str(source), str(tmp_path / "out.onnx"), "--sweep", "0.2,0.4", "--quiet", *sides]
    assert run([*argv, f"--sweep-out={folder}"]) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in.onnx", "points"]


def test_a_page_without_the_packages_for_it_is_refused_at_once(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "alds_onnx.report.html", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(actions, "sweep", None)
    assert run([str(source), "--sweep", "0.2,0.4", "--report", str(source.parent / "r.html")]) == 2
    assert "pip install 'alds-onnx[report]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "0.1:0.9"], "is not like"),
        (["--sweep", "0.9:0.1:0.1"], "makes no steps"),
        (["--sweep", "0.1:0.9:0"], "is not like"),
        (["--sweep", "0.1:0.9:1e-9"], "more than"),
        (["--sweep", "0.5,1.5"], "between 0 and 1"),
        (["--sweep", "0.5", "--cr", "0.5"], "leave them out"),
        (["--sweep", "0.5", "--cr-macs", "0.5"], "leave them out"),
        (["--sweep", "0.5", "--latency-ratio", "0.5"], "leave them out"),
        (["--sweep", "0.5", "--measure"], "times no cuts"),
        (["--sweep", "0.5", "--plan-out", "p.json"], "--sweep-out"),
        (["--cr", "0.5", "--sweep-out", "d"], "give --sweep too"),
        (["--sweep", "0.5", "--report", "in.onnx"], "in.onnx"),
        (["--sweep", "0.5", "--report", "s.csv", "--csv", "s.csv"], "the same path"),
        (["--sweep", "0.5", "--report", "in-cr0.5.onnx", "--sweep-out", "."], "the same path"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused(
    source: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    assert run([str(source), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_what_was_written_goes_if_a_later_point_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alds_onnx import pipeline  # noqa: PLC0415 - patched

    attempt, calls = pipeline.make_attempt, []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attempt(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "make_attempt", failing)
    folder = tmp_path / "points"
    assert run([str(source), "--sweep", "0.2,0.4", f"--sweep-out={folder}", "--quiet"]) == 130
    assert len(calls) == 2
    assert not list(folder.glob("*"))


def test_scores_decide_where_there_are_any() -> None:
    model = models()["dense"]
    values = iter([1.0, 0.99, 0.98, 0.2])
    points = list(alds_onnx.sweep(model, RATIOS, threads=1, evaluate=lambda run: next(values)))
    found = make_sweep([(cr, point.report) for cr, point in zip(RATIOS, points, strict=True)])
    assert found.suggested is not None
    assert found.suggested.cr == 0.4
    assert [point.on_front for point in found.points] == [True] * 3
    assert np.isfinite(found.points[0].output_error)
