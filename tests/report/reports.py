"""Example reports and sweeps, and a parser for pages."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from alds_onnx.cuts import Cut, CutError
from alds_onnx.results import (
    LearningCurve,
    LearningPoint,
    LeftOut,
    LimitData,
    LimitKind,
    LimitResult,
    OutputFidelity,
    Score,
    Status,
    Trial,
    Verification,
)
from alds_onnx.sweeps import Sweep, make_sweep
from alds_onnx.values import Decision, LayerPlan, Plan, Report, SearchMethod

ROW = LayerPlan(
    name="a",
    op="Conv",
    weight="w",
    shape=(4, 4),
    decision=Decision.DECOMPOSE,
    cut=Cut(num_slices=1, rank=1),
    error=CutError(relative=0.25, spectral=0.5, bound=1.0),
    parameters_before=16,
    parameters_after=8,
)


LIMIT_RESULT = LimitResult(
    kind=LimitKind.MAX_ERROR,
    limit=0.05,
    reached=0.0432,
    data=LimitData.HELD_OUT,
    samples=96,
    trials=(Trial(removed=0.5, value=0.0432), Trial(removed=0.7, value=0.3)),
)

CONFIRMED = replace(
    LIMIT_RESULT,
    reached=0.0456,
    samples=128,
    stderr=0.0021,
    chosen=0.0432,
    chosen_samples=96,
    trials=(
        Trial(removed=0.6, value=0.0499),
        Trial(removed=0.7, value=0.3),
        Trial(removed=0.5, value=0.0432),
    ),
    checked=(Trial(removed=0.6, value=0.0512), Trial(removed=0.5, value=0.0456)),
)


def report(*rows: LayerPlan, **more: Any) -> Report:
    plan = Plan(
        file="",
        sha256="",
        parameters=100,
        search=SearchMethod.EXACT,
        seed=0,
        budget=None,
        layers=rows,
        parameters_after=50,
    )
    values: dict[str, Any] = {"verification": None, "macs_before": None, "macs_after": None}
    return Report(plan=plan, bytes_before=1, bytes_after=1, **(values | more))


CHECKED = OutputFidelity(
    name="y",
    relative_l2=0.1527,
    relative_l2_stderr=0.012,
    max_abs=1.5,
    cosine=0.99,
    sqnr_db=16.3,
    top1_agreement=0.9453,
    top1_agreement_stderr=0.0201,
)

#: What is measured with data: on samples held out, on kinds left out, and with half of the data.
HELD_OUT = Verification(
    status=Status.PASSED,
    difference=1e-7,
    tolerance=1e-4,
    fidelity=(CHECKED,),
    samples=128,
    random_inputs=False,
    held_out=True,
    left_out=LeftOut(
        kinds=5,
        samples=60,
        fidelity=(
            replace(
                CHECKED,
                relative_l2=0.41,
                relative_l2_stderr=0.034,
                top1_agreement=0.7167,
                top1_agreement_stderr=0.058,
            ),
        ),
    ),
    learning=LearningCurve(
        measured=(
            LearningPoint(samples=200, output_error=0.18),
            LearningPoint(samples=400, output_error=0.1527),
        ),
        expected=LearningPoint(samples=800, output_error=0.12),
    ),
)

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>\u2028&amp;\x00"


class Outline(HTMLParser):
    """The elements of a page, their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: dict[str | None, str] = {}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag == "script":
            self._open = dict(attrs).get("id") or str(len(self.scripts))
            self.scripts[self._open] = ""

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[self._open] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None


SIZE = 100


def point(removed: float, error: float, *scores: Score) -> Report:
    """Make the report of a compression whose layer and output have this error."""
    fidelity = OutputFidelity(name="y", relative_l2=error, max_abs=1, cosine=1, sqnr_db=20)
    checks = Verification(status=Status.PASSED, fidelity=(fidelity,))
    row = replace(ROW, error=CutError(relative=error, spectral=error, bound=error))
    found = report(row, scores=scores)
    plan = replace(found.plan, parameters_after=round(SIZE * (1 - removed)))
    return replace(found, plan=plan, verification=checks)


def sweep(*errors: float, unreachable: tuple[float, ...] = ()) -> Sweep:
    """Make a sweep that removes one tenth more for each error."""
    made = [(i / 10, point(i / 10, error)) for i, error in enumerate(errors, 1)]
    return make_sweep(made, unreachable=unreachable)


KNEE = sweep(0.01, 0.01, 0.02, 0.5, unreachable=(0.95,))
