"""The texts and the page of a sweep."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

from alds_onnx.report.html import report_to_html
from alds_onnx.report.origin import find_origin
from alds_onnx.report.swept import cells, columns, headline, loss, print_sweep
from alds_onnx.results import Score
from alds_onnx.sweeps import Sweep, make_sweep
from tests.report.reports import HOSTILE, KNEE, Outline, point, sweep


def page(found: Sweep) -> str:
    return report_to_html(found, find_origin()).decode()


def rows(text: str) -> list[list[str]]:
    """Give the cells of the table of ratios."""
    table = text.split('<table id="ratios">')[1].split("</table>", maxsplit=1)[0]
    lines = re.findall(r"<tr.*?>(.*?)</tr>", table, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]


STRAIGHT = sweep(0.1, 0.1, 0.3)


def test_the_page_is_about_the_suggested_point_or_the_smallest_on_the_front() -> None:
    assert KNEE.suggested is KNEE.shown is KNEE.points[2]
    # Of the first two the second is smaller and loses as much; the last one is off the front.
    bent = make_sweep([(0.5, point(0.5, 0.9)), (0.6, point(0.6, 0.9)), (0.4, point(0.4, 1.0))])
    assert [p.on_front for p in bent.points] == [False, True, False]
    assert bent.suggested is None
    assert bent.shown is bent.points[1]
    text = page(bent)
    assert "--cr 0.6, one of 3 ratios: no ratio stands out" in text
    assert "40.00 % kept" in text


def test_nothing_is_known_of_what_is_lost() -> None:
    found = make_sweep([(0.3, point(0.3, math.inf)), (0.2, point(0.2, math.inf))])
    assert not any(p.on_front for p in found.points)
    assert found.shown is found.points[0]
    assert "are not known" in headline(found)
    assert json.loads(Outline(page(found)).scripts["data"])["sweep"][0]["loss"] is None


def test_the_page_has_the_table_of_the_terminal() -> None:
    stream = io.StringIO()
    print_sweep(Console(file=stream, width=160, highlight=False), KNEE)
    head, *lines = rows(page(KNEE))
    assert head == [*columns(KNEE), "on the front"]
    ends = ["no", "yes", "yes, suggested", "yes"]
    for found, line, end in zip(KNEE.points, lines, ends, strict=True):
        assert line == [*(cell or "–" for cell in cells(found, KNEE)), end]
        printed = " ".join(" ".join(cells(found, KNEE)).split())
        assert printed in " ".join(stream.getvalue().split())


def test_the_page_marks_one_point_and_says_which_are_missing() -> None:
    text = page(KNEE)
    points = json.loads(Outline(text).scripts["data"])["sweep"]
    assert [p["cr"] for p in points if p["shown"]] == [0.3]
    assert [p["front"] for p in points] == [False, True, True, True]
    assert [p["loss"] for p in points] == [0.01, 0.01, 0.02, 0.5]
    assert "removed: 30.00 %\n" in points[2]["text"]
    assert points[2]["text"].endswith("\nlost: 0.02")
    assert "This page shows --cr 0.3, one of 4 ratios: suggested" in text
    assert text.count('<tr class="shown">') == 1
    assert "Out of reach: --cr 0.95" in text
    assert "Out of reach" not in page(STRAIGHT)


def test_a_page_of_one_run_has_no_sweep() -> None:
    text = report_to_html(point(0.5, 0.1), find_origin()).decode()
    assert 'id="sweep"' not in text
    assert "This page shows" not in text


@pytest.mark.parametrize(("samples", "expected"), [(40, "percentage points on 40"), (None, "own")])
def test_what_is_lost_has_its_units(samples: int | None, expected: str) -> None:
    score = Score(name="top-1", before=1.0, after=0.75, samples=samples)
    found = make_sweep([(0.5, point(0.5, 0.1, score))])
    assert expected in loss(found)
    assert found.points[0].loss == (25 if samples else 0.25)
    assert loss(KNEE) == "relative L2 error of the worst output"


def test_the_name_of_a_score_is_text() -> None:
    score = Score(name=HOSTILE, before=1.0, after=0.75)
    text = page(make_sweep([(0.5, point(0.5, 0.1, score))]))
    outline = Outline(text)
    assert outline.names.count("script") == 4
    assert "img" not in outline.names
    assert HOSTILE[:20] in json.loads(outline.scripts["data"])["sweep"][0]["text"]
