"""What is said about accuracy: the number, its doubt, on which samples, and whether more help."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from alds_onnx.report import accuracy
from alds_onnx.report.console import print_report
from alds_onnx.report.html import report_to_html
from alds_onnx.report.json import dump, report_to_json
from alds_onnx.report.origin import find_origin
from alds_onnx.report.swept import cells, columns, loss, sweep_to_csv
from alds_onnx.report.words import cards
from alds_onnx.results import LearningCurve, LearningPoint, Status, Verification
from alds_onnx.sweeps import make_sweep
from alds_onnx.values import Report
from tests.report.reports import CHECKED, HELD_OUT, ROW, Outline, point, report

RANDOM = replace(HELD_OUT, random_inputs=True, held_out=False, left_out=None, learning=None)
FITTED = replace(RANDOM, random_inputs=False)


def with_checks(checks: Verification) -> Report:
    return replace(report(ROW), verification=checks)


def summary(checks: Verification) -> dict[str, str]:
    """The rows about accuracy on the terminal, by their labels."""
    stream = io.StringIO()
    print_report(Console(file=stream, width=160, highlight=False), with_checks(checks))
    text = stream.getvalue().split("Summary")[1]
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    labels = ("output error", "same top-1", "more samples")
    return {row[0]: " ".join(row[1].split()) for row in rows if row[0].startswith(labels)}


def test_every_number_has_its_samples_and_its_doubt() -> None:
    left_out = "60 samples of 5 kinds left out"
    more = "with twice as many samples expect an output error of 0.12 instead of 0.153"
    assert summary(HELD_OUT) == {
        "output error": "0 0.1527 ± 0.012 relative L2, worst output; 128 samples, held out",
        "same top-1": "100 % 94.53 ± 2.01 % 128 samples, held out",
        "output error, kinds left out": f"0 0.41 ± 0.034 relative L2, worst output; {left_out}",
        "same top-1, kinds left out": f"100 % 71.67 ± 5.80 % {left_out}",
        "more samples": more,
    }


def test_numbers_of_the_fit_say_so() -> None:
    found = summary(FITTED)
    assert set(found) == {"output error", "same top-1"}
    assert all(
        row.endswith("128 samples that the factors were fitted to") for row in found.values()
    )


def test_random_inputs_have_no_doubt_to_show() -> None:
    """As without this number: they say nothing about other inputs."""
    assert summary(RANDOM) == {"output error": "0 0.1527 relative L2, worst output"}
    assert accuracy.samples(RANDOM) == "128 random samples"
    assert "±" not in "".join(card.after for card in cards(with_checks(RANDOM)))


def test_outputs_without_scores_have_no_agreement() -> None:
    plain = replace(CHECKED, top1_agreement=None, top1_agreement_stderr=None)
    assert set(summary(replace(FITTED, fidelity=(plain,)))) == {"output error"}


def test_a_single_sample_has_a_number_without_doubt() -> None:
    one = replace(CHECKED, relative_l2_stderr=None, top1_agreement_stderr=None)
    found = summary(replace(FITTED, fidelity=(one,), samples=1))
    assert found["output error"].startswith("0 0.1527 relative L2")
    assert found["same top-1"].startswith("100 % 94.53 % 1 sample that")


def test_the_worst_output_that_can_be_compared() -> None:
    better = replace(CHECKED, name="z", relative_l2=0.01, top1_agreement=0.999)
    noted = replace(CHECKED, name="n", relative_l2=0.9, top1_agreement=0.0, note="random")
    assert summary(replace(HELD_OUT, fidelity=(better, noted, CHECKED))) == summary(HELD_OUT)
    nothing = replace(FITTED, fidelity=(noted,))
    assert summary(nothing) == {}
    assert summary(replace(nothing, random_inputs=True)) == {}


def curve(half: float, now: float, then: float) -> LearningCurve:
    return LearningCurve(
        measured=(
            LearningPoint(samples=200, output_error=half),
            LearningPoint(samples=400, output_error=now),
        ),
        expected=LearningPoint(samples=800, output_error=then),
    )


@pytest.mark.parametrize(("then", "helps"), [
    (0.15, True), (0.1959, True), (0.197, False), (0.2, False), (0.3, False), (math.nan, False),
])  # fmt: skip
def test_more_samples_help_from_two_percent_on(then: float, helps: bool) -> None:
    said = accuracy.more(curve(0.25, 0.2, then))
    assert ("twice as many" in said) == helps
    assert ("would not help" in said) != helps


def test_nothing_is_left_to_gain_where_there_is_no_error() -> None:
    assert "would not help" in accuracy.more(curve(0.0, 0.0, 0.0))


def test_a_card_shows_both_numbers() -> None:
    found = {card.label: card for card in cards(with_checks(HELD_OUT))}
    error, same = found["Error of the outputs"], found["Same top-1"]
    on = "on 128 held-out calibration samples"
    assert error.after == "0.1527 ± 0.012"
    assert error.note == f"relative L2, worst output, {on}; 0.41 ± 0.034 on kinds left out"
    assert same.after == "94.53 ± 2.01 %"
    assert same.note == f"{on}; 71.67 ± 5.80 % on kinds left out"
    fitted = {card.label: card for card in cards(with_checks(FITTED))}["Same top-1"]
    assert fitted.note == "on 128 calibration samples that the factors were fitted to"


def page(found: Any) -> str:
    return report_to_html(found, find_origin()).decode()


def rows_of(text: str) -> list[str]:
    table = text.split('<table id="fidelity">')[1].split("</table>", maxsplit=1)[0]
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in table.split("</tr>")]


def test_the_page_has_a_row_for_each_kind_of_inputs() -> None:
    text = page(with_checks(HELD_OUT))
    head, given, others, _ = rows_of(text)
    assert head.startswith("output inputs relative L2 error")
    assert given.startswith("y like those given 0.1527 ± 0.012")
    assert given.endswith("94.53 ± 2.01 %")
    assert others.startswith("y kinds left out 0.41 ± 0.034")
    assert "Nothing was fitted to these samples" in text
    plain = page(with_checks(FITTED))
    head, given, _ = rows_of(plain)
    assert head.startswith("output relative L2 error")
    assert given.startswith("y 0.1527 ± 0.012")
    assert "Nothing was fitted to these samples" not in plain
    assert "samples that the factors were fitted to" in plain
    assert "±" not in page(with_checks(RANDOM)).split('id="outputs"')[1].split("</section>")[0]


def test_the_page_has_the_learning_curve() -> None:
    text = page(with_checks(HELD_OUT))
    found = json.loads(Outline(text).scripts["data"])["learning"]
    assert [point["samples"] for point in found] == [200, 400, 800]
    assert [point["error"] for point in found] == [0.18, 0.1527, 0.12]
    assert 'data-plot="learning"' in text
    assert "<td>800</td><td>0.12</td><td>expected</td>" in text
    assert "With twice as many samples expect an output error of 0.12" in text
    without = page(with_checks(FITTED))
    assert 'data-plot="learning"' not in without
    assert json.loads(Outline(without).scripts["data"])["learning"] == []


def test_json_has_all_numbers() -> None:
    values = json.loads(dump(report_to_json(with_checks(HELD_OUT))))["verification"]
    (output,) = values["fidelity"]
    assert (output["relative_l2"], output["relative_l2_stderr"]) == (0.1527, 0.012)
    assert (output["top1_agreement"], output["top1_agreement_stderr"]) == (0.9453, 0.0201)
    assert (values["samples"], values["held_out"]) == (128, True)
    left_out = values["left_out"]
    assert (left_out["kinds"], left_out["samples"]) == (5, 60)
    assert left_out["fidelity"][0]["relative_l2_stderr"] == 0.034
    assert values["learning"] == {
        "measured": [
            {"samples": 200, "output_error": 0.18},
            {"samples": 400, "output_error": 0.1527},
        ],
        "expected": {"samples": 800, "output_error": 0.12},
    }
    values = report_to_json(with_checks(RANDOM))["verification"]
    assert (values["held_out"], values["left_out"], values["learning"]) == (False, None, None)


def test_a_sweep_has_columns_for_what_was_measured() -> None:
    bare = point(0.6, 0.2)
    measured = replace(point(0.5, 0.1), verification=HELD_OUT)
    found = make_sweep([(0.5, measured), (0.6, bare)])
    heads = columns(found)
    first, second = (dict(zip(heads, cells(one, found), strict=True)) for one in found.points)
    assert first["output error"] == "0.1527 ± 0.012"
    assert first["output error, kinds left out"] == "0.41 ± 0.034"
    assert first["same top-1"] == "94.53 ± 2.01 %"
    assert second["output error"] == "0.2"
    assert second["same top-1"] == second["output error, kinds left out"] == ""
    assert loss(found).endswith("worst output, on 128 held-out calibration samples")
    text = page(found)
    assert '<th scope="col">output error, kinds left out</th>' in text
    without = make_sweep([(0.6, bare)])
    assert "same top-1" not in columns(without)
    head, row = sweep_to_csv(found).decode().splitlines()[:2]
    csv = dict(zip(head.split(","), row.split(","), strict=True))
    assert csv["output_error_stderr"] == "0.012"
    assert csv["top1_agreement"] == "0.9453"
    assert csv["top1_agreement_stderr"] == "0.0201"
    assert csv["left_out_error"] == "0.41"


def test_a_report_without_checks_says_nothing() -> None:
    found = make_sweep([(0.5, report(ROW))])
    assert (
        dict(zip(columns(found), cells(found.points[0], found), strict=True))["output error"] == "-"
    )
    nothing = Verification(status=Status.NOT_VALIDATED)
    assert accuracy.lines(nothing) == []
