"""A warning about kinds of inputs that were left out comes where, and only where, it is due."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alds_onnx.results import LeftOut, OutputFidelity, WorstKind
from alds_onnx.steps.advice import _about_kinds_left_out
from tests.report.reports import CHECKED, HELD_OUT, report

GIVEN = replace(
    CHECKED,
    relative_l2=0.25,
    relative_l2_stderr=0.01,
    top1_agreement=0.79,
    top1_agreement_stderr=0.01,
)


def warnings(
    *pairs: tuple[OutputFidelity, OutputFidelity], worst: WorstKind | None = None
) -> list[str]:
    """The warnings about outputs on inputs like those given, and on kinds left out."""
    others = tuple(other for _, other in pairs)
    left_out = LeftOut(kinds=5, samples=60, fidelity=others, worst=worst)
    checks = replace(HELD_OUT, fidelity=tuple(given for given, _ in pairs), left_out=left_out)
    return _about_kinds_left_out(report(verification=checks))


EMBEDDING = replace(GIVEN, top1_agreement=None, top1_agreement_stderr=None)


def test_it_says_what_is_worse_and_what_to_do() -> None:
    worse = "kinds of inputs that a fit has not seen do worse: "
    remedy = "; give samples of all kinds that the model will see"
    other = replace(EMBEDDING, relative_l2=0.41)
    expected = f"{worse}an output error of 0.41 instead of 0.25{remedy}"
    assert warnings((EMBEDDING, other)) == [expected]
    other = replace(GIVEN, top1_agreement=0.61)
    assert warnings((GIVEN, other)) == [f"{worse}the same top-1 for 61% instead of 79%{remedy}"]
    (both,) = warnings((EMBEDDING, replace(EMBEDDING, relative_l2=0.41)), (GIVEN, other))
    assert "0.41 instead of 0.25 and the same top-1 for 61% instead of 79%" in both


def test_the_worst_kind_is_named_by_one_of_its_samples() -> None:
    worst = WorstKind(example=17, samples=4, output_error=0.83)
    (found,) = warnings((EMBEDDING, replace(EMBEDDING, relative_l2=0.41)), worst=worst)
    assert "the worst of them like calibration sample 17 (an output error of 0.83)" in found


@pytest.mark.parametrize(("changes", "is_worse"), [
    ({}, False),
    ({"relative_l2": 0.38}, True),
    ({"relative_l2": 0.37}, False),  # less than half as much again
    ({"relative_l2": 0.41, "relative_l2_stderr": 0.07}, True),
    ({"relative_l2": 0.41, "relative_l2_stderr": 0.09}, False),  # within two standard errors
    ({"relative_l2": 0.41, "relative_l2_stderr": None}, False),  # a single sample
    ({"relative_l2": 0.41, "note": "not finite in the original"}, False),
    ({"relative_l2": 0.1}, False),
])  # fmt: skip
def test_errors_count_beyond_chance_only(changes: dict[str, Any], is_worse: bool) -> None:
    assert bool(warnings((EMBEDDING, replace(EMBEDDING, **changes)))) == is_worse


@pytest.mark.parametrize(("changes", "is_worse"), [
    ({}, False),
    ({"relative_l2": 0.9}, False),  # the scores differ, but not what they say
    ({"top1_agreement": 0.755}, True),
    ({"top1_agreement": 0.765}, False),  # less than three points
    ({"top1_agreement": 0.7, "top1_agreement_stderr": 0.04}, True),
    ({"top1_agreement": 0.7, "top1_agreement_stderr": 0.05}, False),
    ({"top1_agreement": 0.7, "top1_agreement_stderr": None}, False),
    ({"top1_agreement": 0.5, "note": "not finite in the original"}, False),
    ({"top1_agreement": 0.9}, False),
])  # fmt: skip
def test_agreement_counts_beyond_chance_only(changes: dict[str, Any], is_worse: bool) -> None:
    assert bool(warnings((GIVEN, replace(GIVEN, **changes)))) == is_worse


def test_the_doubt_of_both_numbers_counts() -> None:
    given = replace(EMBEDDING, relative_l2_stderr=0.07)
    assert warnings((given, replace(given, relative_l2=0.46)))
    assert not warnings((given, replace(given, relative_l2=0.44)))


def test_of_several_outputs_the_worst_is_named() -> None:
    pairs = [(EMBEDDING, replace(EMBEDDING, relative_l2=error)) for error in (0.3, 0.6, 0.5)]
    (found,) = warnings(*pairs)
    assert "0.6 instead of 0.25" in found


def test_without_kinds_left_out_there_is_nothing_to_say() -> None:
    assert _about_kinds_left_out(report()) == []
    checks = replace(HELD_OUT, left_out=None)
    assert _about_kinds_left_out(report(verification=checks)) == []
