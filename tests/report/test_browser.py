"""The HTML report in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from playwright.sync_api import Browser

import alds_onnx
from alds_onnx.report.html import report_to_html
from alds_onnx.report.origin import find_origin
from alds_onnx.sweeps import Sweep
from alds_onnx.values import Decision, Report
from tests.conftest import DIGITS, wheel_member
from tests.graph.builders import normal, parse
from tests.report.browser import Opened, open_browser
from tests.report.reports import HELD_OUT, KNEE, LIMIT_RESULT, ROW, report

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    "a\u2028b\"'`${window.hacked = 1}&lt;",
)
ALWAYS = {"parameters", "errors", "spectrum", "cost", "trade"}
RECOGNITION = (
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


def written(made: Report | Sweep, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_bytes(report_to_html(made, find_origin(["in.onnx", "--cr", "0.5"])))
    return path


@pytest.fixture(scope="module")
def digits_report() -> Report:
    """The report of the embedded model, with a limit added."""
    return replace(alds_onnx.compress(DIGITS, cr=0.5, threads=1).report, limit_result=LIMIT_RESULT)


@pytest.fixture(scope="module")
def digits_page(
    browser: Browser, digits_report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return written(digits_report, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def fitted_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model that was compressed with calibration data."""
    graph = """m (float[N,30] x) => (float[N,10] y) {
        h = MatMul(x, w1) a = Relu(h) g = MatMul(a, w2) b = Relu(g) y = MatMul(b, w3)
    }"""
    weights = {"w1": normal(30, 40) / 6, "w2": normal(40, 40) / 6, "w3": normal(40, 10) / 6}
    feeds = [{"x": normal(16, 30, seed=i)} for i in range(8)]
    found = alds_onnx.compress(parse(graph, weights), cr=0.3, calibration=feeds, threads=1)
    return written(found.report, tmp_path_factory.mktemp("fitted"))


def deep(count: int) -> ModelProto:
    """A chain of layers; the names of the first ones are hostile."""
    nodes = [f"h{i + 1} = MatMul(h{i}, w{i % 7})" for i in range(count)]
    weights = {f"w{i}": normal(24, 24, seed=i) * np.float32(0.2) for i in range(7)}
    text = f"m (float[N,24] h0) => (float[N,24] h{count}) {{ {' '.join(nodes)} }}"
    model = parse(text, weights)
    # One weight each, so that each layer has cuts of its own.
    for i, node in enumerate(model.graph.node):
        copied = model.graph.initializer.add()
        copied.CopyFrom(model.graph.initializer[i % 7])
        copied.name = node.input[1] = f"weight{i}"
        node.name = HOSTILE[i] if i < len(HOSTILE) else f"/block{i // 5}/linear{i % 5}"
    del model.graph.initializer[:7]
    return model


@pytest.fixture(scope="module")
def deep_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = alds_onnx.compress(deep(150), cr=0.4, threads=1).report
    return written(report, tmp_path_factory.mktemp("deep"))


@pytest.fixture(scope="module")
def checked_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model that was checked on held-out samples and on kinds left out."""
    return written(report(ROW, verification=HELD_OUT), tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="module")
def swept_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep."""
    return written(KNEE, tmp_path_factory.mktemp("swept"))


def test_every_plot_and_no_complaint(browser: Browser, digits_page: Path) -> None:
    opened = Opened(browser, digits_page)
    assert opened.plots() == ALWAYS | {"trials", "latency"}
    opened.page.select_option("#bars", "shares")
    opened.page.wait_for_selector("[data-plot=shares] svg")
    for number in range(1, 23):
        opened.page.select_option("#chooser", str(number))
    assert opened.complaints == []


def test_what_data_said(browser: Browser, fitted_page: Path) -> None:
    opened = Opened(browser, fitted_page)
    assert opened.plots() == ALWAYS | {"damage", "learning", "latency"}
    for measure in ("local", "relative", "output"):
        opened.page.select_option("#measure", measure)
    chosen = int(opened.page.locator("#chooser").input_value())
    assert "error of its output" in opened.hover(chosen)
    assert opened.complaints == []


def test_150_layers(browser: Browser, deep_page: Path) -> None:
    opened = Opened(browser, deep_page)
    assert opened.plots() == ALWAYS | {"latency"}
    assert opened.page.locator("#rows tbody tr").count() == 150
    assert opened.complaints == []


@pytest.mark.parametrize("graph", ["y = Relu(x)", "y = MatMul(x, x)"], ids=["none", "skipped"])
def test_a_model_in_which_there_is_nothing_to_do(
    browser: Browser, tmp_path: Path, graph: str
) -> None:
    model = parse(f"m (float[8,8] x) => (float[8,8] y) {{ {graph} }}")
    opened = Opened(browser, written(alds_onnx.compress(model, cr=0.5).report, tmp_path))
    assert opened.plots() <= {"parameters", "errors", "latency"}
    assert "No layer of this model can be decomposed" in opened.page.inner_text("#layer")
    assert opened.complaints == []


@pytest.mark.network
def test_a_real_model_with_layers_of_every_kind(browser: Browser, tmp_path: Path) -> None:
    report = alds_onnx.compress(wheel_member(*RECOGNITION), cr=0.3).report
    assert {row.decision for row in report.plan.layers} == set(Decision)
    opened = Opened(browser, written(report, tmp_path))
    assert opened.plots() == ALWAYS | {"latency"}
    assert opened.complaints == []


def test_a_sweep(browser: Browser, swept_page: Path) -> None:
    """Every point is drawn and says what it is; a line joins those on the front."""
    opened = Opened(browser, swept_page)
    page = opened.page
    assert "sweep" in opened.plots()
    # The ring, then the points.
    ring, dots = page.locator("[data-plot=sweep] .mark-symbol.role-mark").all()
    assert (ring.locator("path").count(), dots.locator("path").count()) == (1, 4)
    line = page.locator("[data-plot=sweep] .mark-line path").get_attribute("d")
    assert line is not None
    assert line.count("L") == 2
    assert page.locator("[data-plot=sweep] svg").get_attribute("aria-label")
    dots.locator("path").nth(3).hover(force=True)
    page.locator("#tip").wait_for(state="visible")
    shown = page.locator("#tip").inner_text().split("\n")
    assert {"--cr: 0.4", "removed: 40.00 %", "output error: 0.5"} <= set(shown)
    assert opened.complaints == []


def test_the_learning_curve(browser: Browser, checked_page: Path) -> None:
    """What was measured is a line, what is expected dashes; each point says what it is."""
    opened = Opened(browser, checked_page)
    page = opened.page
    assert "learning" in opened.plots()
    lines = page.locator("[data-plot=learning] .mark-line path")
    assert [line.get_attribute("stroke-dasharray") for line in lines.all()] == ["1,0", "5,4"]
    drawn, pointers = page.locator("[data-plot=learning] .mark-symbol.role-mark").all()
    assert drawn.locator("path").count() == 3
    pointers.locator("path").last.hover(force=True)
    page.locator("#tip").wait_for(state="visible")
    assert page.locator("#tip").inner_text() == "800 samples: output error 0.12, expected"
    assert opened.complaints == []


def test_hover_shows_the_layer(browser: Browser, digits_page: Path, digits_report: Report) -> None:
    opened = Opened(browser, digits_page)
    rows = list(enumerate(digits_report.plan.layers, 1))
    number, row = next((n, r) for n, r in rows if r.decision is Decision.DECOMPOSE)
    assert row.cut is not None
    for plot in ("parameters", "errors"):
        shown = opened.hover(number, plot).split("\n")
        assert shown[0] == f"{number} · {row.name}"
        assert "Conv " + " × ".join(map(str, row.shape)) in shown
        assert shown[shown.index("scheme") + 1] == "encode"
        assert shown[shown.index("slices k") + 1] == str(row.cut.num_slices)
        assert shown[shown.index("rank j") + 1] == str(row.cut.rank)
    number, row = next((n, r) for n, r in rows if r.decision is Decision.KEEP)
    assert f"keep: {row.reason}" in opened.hover(number)


def test_hostile_names_stay_text(browser: Browser, deep_page: Path) -> None:
    opened = Opened(browser, deep_page)
    page = opened.page
    for number, name in enumerate(HOSTILE, 1):
        shown = name.replace("\u2028", "\\u2028")
        assert opened.hover(number).startswith(f"{number} · {shown}")
        page.select_option("#chooser", str(number))
        assert page.locator("#chooser option:checked").inner_text() == f"{number} · {shown}"
        assert page.locator("#rows tbody tr").nth(number - 1).locator("th").inner_text() == shown
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4
    assert opened.complaints == []


def test_the_policy_stops_what_escaping_would_miss(browser: Browser, deep_page: Path) -> None:
    """A foreign script does not run even if it is inserted into the page."""
    opened = Opened(browser, deep_page)
    opened.page.evaluate(
        """() => {
            document.body.append(document.createRange().createContextualFragment(
                "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"));
        }"""
    )
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_a_layer_is_chosen_by_keyboard(browser: Browser, digits_page: Path) -> None:
    page = Opened(browser, digits_page).page
    page.select_option("#chooser", "3")
    before = page.locator("[data-plot=spectrum] svg").inner_html()
    page.focus("#chooser")
    page.keyboard.press("ArrowDown")
    assert page.locator("#chooser").input_value() == "4"
    page.wait_for_function(
        "old => document.querySelector('[data-plot=spectrum] svg').innerHTML !== old", arg=before
    )
    page.locator("#rows [data-layer='7']").focus()
    page.keyboard.press("Enter")
    assert page.locator("#chooser").input_value() == "7"
    assert page.evaluate("document.activeElement.id") == "chooser"


def test_a_click_on_a_bar_chooses_its_layer(browser: Browser, digits_page: Path) -> None:
    opened = Opened(browser, digits_page)
    opened.hover(9)
    opened.page.mouse.down()
    opened.page.mouse.up()
    assert opened.page.locator("#chooser").input_value() == "9"


def test_the_table_is_sorted_and_filtered(browser: Browser, digits_page: Path) -> None:
    page = Opened(browser, digits_page).page
    head = page.locator("#rows thead th", has_text="parameters")
    for order, descending in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        cells = page.locator("#rows tbody td:nth-child(9)").all_inner_texts()
        counts = [int(cell.replace(",", "")) for cell in cells]
        assert counts == sorted(counts, reverse=descending)
    page.fill("#filter", "LAYER3")
    names = page.locator("#rows tbody tr:visible th").all_inner_texts()
    assert names
    assert all("layer3" in name for name in names)
    assert page.locator("#shown").inner_text() == f"{len(names)} of 22 layers"


def test_everything_has_a_name_that_can_be_spoken(browser: Browser, digits_page: Path) -> None:
    page = Opened(browser, digits_page).page
    for plot in page.locator(".canvas svg").all():
        assert plot.get_attribute("role") == "img"
        assert plot.get_attribute("aria-label")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("select, input, button, a, summary")]
            .filter(one => !one.textContent.trim() && !(one.labels && one.labels.length))
            .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


# WCAG 2.1, 1.4.3: the least contrast of text and background.
CONTRAST = 4.5

_CONTRAST_OF = """(id) => {
    const shown = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(c => {
        c /= 255;
        return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
    const one = document.querySelector(id), back = document.querySelector("section[id]");
    const style = getComputedStyle(one);
    const text = light(shown(one.closest("svg") ? style.fill : style.color));
    const behind = light(shown(getComputedStyle(back).backgroundColor));
    return (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(browser: Browser, digits_page: Path, scheme: str) -> None:
    page = Opened(browser, digits_page, scheme=scheme).page
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) > 127) == (scheme == "light")
    for text in ("#layers p", "figcaption", "[data-plot=trade] .role-axis-label text", "nav a"):
        assert page.evaluate(_CONTRAST_OF, text) >= CONTRAST, text


@pytest.mark.parametrize("pages", ["digits_page", "swept_page", "checked_page"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_nothing_is_cut_off_on_a_narrow_page(
    browser: Browser, pages: str, media: str, request: pytest.FixtureRequest
) -> None:
    """On a narrow screen, and in print, where nothing can be scrolled."""
    page = Opened(
        browser, request.getfixturevalue(pages), width=400 if media == "screen" else 1200
    ).page
    if media == "print":
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 700, "height": 990})
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in page.locator(".canvas svg").all():
        box = plot.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width + 1
