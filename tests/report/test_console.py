"""The report on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from alds_onnx.report import words
from alds_onnx.report.console import print_report
from alds_onnx.report.json import report_to_json
from alds_onnx.report.tables import tables
from alds_onnx.results import LimitData, LimitKind, Score
from alds_onnx.values import Decision, Report
from tests.report.reports import CONFIRMED, LIMIT_RESULT, ROW, report


def printed(found: Report) -> str:
    stream = io.StringIO()
    print_report(Console(file=stream, width=160, highlight=False), found)
    return stream.getvalue()


def line(text: str, start: str) -> str:
    (found,) = [row for row in text.splitlines() if row.strip().startswith(start)]
    return " ".join(found.split())


def test_scores_in_percent_and_points() -> None:
    text = printed(
        report(
            scores=(
                Score(name="top-1", before=0.995, after=0.982, samples=1000, drop_stderr=0.364),
                Score(name="top-5", before=1.0, after=1.0, samples=1000, output="y"),
                Score(name="bleu", before=31.5, after=31.25),
            )
        )
    )
    assert line(text, "top-1") == "top-1 99.50 % 98.20 % -1.30 ± 0.36 points, 1,000 samples"
    assert line(text, "top-5") == "top-5 100.00 % 100.00 % +0.00 points, 1,000 samples"
    assert line(text, "bleu") == "bleu 31.5 31.25 -0.25"


def test_a_limit_and_what_was_reached() -> None:
    text = printed(report(limit_result=LIMIT_RESULT))
    expected = "0.0432 on 96 held-out calibration samples; the best of 2 attempts"
    assert line(text, "--max-error") == f"--max-error 0.05 {expected}"


def test_a_limit_that_was_confirmed_on_other_samples() -> None:
    text = printed(report(limit_result=CONFIRMED))
    expected = (
        "0.0456 ± 0.0021 kept on 128 held-out samples; chosen on 96 others: 0.0432; "
        "the best of 3 attempts, 1 refused there"
    )
    assert line(text, "--max-error") == f"--max-error 0.05 {expected}"
    drop = replace(CONFIRMED, kind=LimitKind.MAX_DROP, data=LimitData.LABELLED)
    assert "0.0456 ± 0.0021 points" in line(printed(report(limit_result=drop)), "--max-drop")
    assert "others: 0.0432 points; " in line(printed(report(limit_result=drop)), "--max-drop")


def test_attempts_that_were_refused_are_marked() -> None:
    found = tables(report(limit_result=CONFIRMED))["trials"]
    assert [trial["held"] for trial in found] == [False, False, True]
    verdicts = [row[-1] for row in words.trial_rows(CONFIRMED)]
    assert verdicts == ["no: 0.0512 on held-out samples", "no", "yes"]
    assert [row[-1] for row in words.trial_rows(LIMIT_RESULT)] == ["yes", "no"]


@pytest.mark.parametrize("count", [1, 5])
def test_the_most_sensitive_layers_are_marked(count: int) -> None:
    rows = [
        replace(ROW, name=f"layer{i}", local_error=0.125, output_error=0.01 * (i + 1))
        for i in range(count)
    ]
    kept = replace(ROW, name="whole", decision=Decision.KEEP, cut=None, error=None)
    text = printed(report(*rows, kept))
    assert "local error" in text
    assert "output error" in text
    marked = [i for i in range(count) if "*" in line(text, f"layer{i}")]
    assert marked == list(range(count))[-3:]
    assert "0.125" in line(text, "layer0")
    assert "--exclude" in text


def test_without_data_there_are_no_columns_for_it() -> None:
    text = printed(report(ROW))
    assert "local error" not in text
    assert "*" not in text


def test_scores_and_limit_as_json() -> None:
    values = report_to_json(
        report(limit_result=LIMIT_RESULT, scores=(Score(name="f", before=2, after=1.5),))
    )
    assert values["target"]["kind"] == "max-error"
    assert values["target"]["data"] == "held-out calibration samples"
    assert values["target"]["trials"][1] == {"removed": 0.7, "value": 0.3}
    assert values["target"]["checked"] == []
    assert (values["target"]["stderr"], values["target"]["chosen"]) == (None, None)
    confirmed = report_to_json(report(limit_result=CONFIRMED))["target"]
    assert confirmed["checked"][0] == {"removed": 0.6, "value": 0.0512}
    assert (confirmed["reached"], confirmed["samples"]) == (0.0456, 128)
    assert (confirmed["chosen"], confirmed["chosen_samples"]) == (0.0432, 96)
    (score,) = values["scores"]
    assert (score["drop_stderr"], score["held_out"]) == (None, None)
    assert (score["name"], score["drop"], score["samples"]) == ("f", 0.5, None)
    assert report_to_json(report())["target"] is None
