"""Options that make no sense are refused at the door; globs choose the layers."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alds_onnx.cuts import Scheme
from alds_onnx.errors import UsageError
from alds_onnx.options.run import default_threads, silent
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import Settings, Step
from alds_onnx.values import Plan, SearchMethod

NAMES = ("/stem/Conv", "/layer1/Conv", "/layer1/conv", "/layer2/Gemm", "node[0]")
PLAN = Plan(
    file="",
    sha256="",
    parameters=0,
    search=SearchMethod.EXACT,
    seed=0,
    budget=None,
    layers=(),
    parameters_after=0,
)


def options(**changed: Any) -> Settings:
    return Settings(**({"cr": 0.5, "threads": 1} | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cr": None}, "give one of --cr, --sweep, --plan, --max-error and --max-drop"),
        ({"plan": PLAN}, "give one of --cr, --sweep, --plan"),
        ({"max_error": 0.1}, "give one of --cr, --sweep, --plan"),
        ({"cr": None, "max_error": 0.1, "max_drop": 1.0}, "give one of --cr, --sweep, --plan"),
        ({"cr": None, "max_error": 0.0}, "--max-error is 0,"),
        ({"cr": None, "max_error": -1.0}, "--max-error is -1,"),
        ({"cr": None, "max_error": float("inf")}, "--max-error is inf,"),
        ({"cr": None, "max_error": float("nan")}, "--max-error is nan,"),
        ({"cr": None, "max_drop": -0.1, "evaluate": {}}, "--max-drop is -0.1,"),
        ({"cr": None, "max_drop": float("inf"), "evaluate": {}}, "--max-drop is inf,"),
        ({"cr": None, "max_drop": float("nan"), "evaluate": {}}, "--max-drop is nan,"),
        ({"cr": None, "max_drop": 0.5}, "--max-drop .* --evaluate"),
        ({"cr_macs": 0.5, "plan": PLAN, "cr": None}, "give one of --cr, --sweep, --plan"),
        ({"latency_ratio": 0.5, "max_error": 0.5, "cr": None}, "give one of --cr, --sweep, --plan"),
        ({"cr_macs": 0.0}, "--cr-macs is 0,"),
        ({"cr": None, "cr_macs": 1.5}, "--cr-macs is 1.5,"),
        ({"cr": None, "latency_ratio": 1.0}, "--latency-ratio is 1,"),
        ({"latency_ratio": float("nan")}, "--latency-ratio is nan,"),
        ({"cr_macs": 0.5, "search": SearchMethod.ITERATIVE}, "--search iterative knows"),
        ({"latency_ratio": 0.5, "search": SearchMethod.ITERATIVE}, "--search iterative knows"),
        ({"cr_macs": 0.5, "cr": None, "sweep": (0.5,)}, "give one of --cr, --sweep, --plan"),
        (
            {"calibration": {}, "search": SearchMethod.ITERATIVE},
            "not the sum: give --objective max",
        ),
        ({"cr": 0.0}, "--cr is 0,"),
        ({"cr": 1.0}, "--cr is 1,"),
        ({"cr": -0.5}, "--cr is -0.5,"),
        ({"cr": 50.0}, "--cr is 50,"),
        ({"cr": float("nan")}, "--cr is nan,"),
        ({"cr": None, "plan": PLAN, "include": ("*",)}, "--include and --exclude"),
        ({"cr": None, "plan": PLAN, "exclude": ("*",)}, "--include and --exclude"),
        ({"threads": 0}, "--threads is 0,"),
        ({"seed": -1}, "--seed is -1,"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        options(**changed)
    assert refused.value.exit_code == 2


def test_what_makes_sense_is_accepted() -> None:
    assert options(cr=1e-9).cr == 1e-9
    assert options(cr=None, plan=PLAN).plan is PLAN
    assert options(cr_macs=0.3, latency_ratio=0.6).cr == 0.5
    assert options(cr=None, cr_macs=0.3).cr_macs == 0.3
    assert options(latency_ratio=0.6, target=Runtime.ORT).candidates == tuple(Scheme)
    assert options(cr=None, max_error=2.0).max_error == 2.0
    assert options(cr=None, max_drop=0.0, evaluate={}).max_drop == 0.0


@pytest.mark.parametrize(
    ("include", "exclude", "kept_whole"),
    [
        ((), (), set()),
        (("*Conv",), (), {"/layer1/conv", "/layer2/Gemm", "node[0]"}),
        ((), ("/layer1/*",), {"/layer1/Conv", "/layer1/conv"}),
        (("/layer?/*",), ("*Gemm",), {"/stem/Conv", "/layer2/Gemm", "node[0]"}),
        (("/stem/*", "*Gemm"), (), {"/layer1/Conv", "/layer1/conv", "node[0]"}),
        (("*",), ("*",), set(NAMES)),
        ((), ("node[[]0]",), {"node[0]"}),
    ],
)
def test_globs_choose_the_layers(
    include: tuple[str, ...], exclude: tuple[str, ...], kept_whole: set[str]
) -> None:
    assert options(include=include, exclude=exclude).excluded(NAMES) == kept_whole


patterns = st.lists(st.sampled_from(["*", "/*", "*Conv", "*/conv", "/layer*", "node*"]), max_size=3)


@settings(deadline=None)
@given(patterns, patterns)
def test_a_layer_may_be_cut_if_it_is_included_and_not_excluded(
    include: list[str], exclude: list[str]
) -> None:
    found = options(include=tuple(include), exclude=tuple(exclude)).excluded(NAMES)
    for name in NAMES:
        wanted = not include or any(fnmatchcase(name, p) for p in include)
        unwanted = any(fnmatchcase(name, p) for p in exclude)
        assert (name not in found) == (wanted and not unwanted)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_layer_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} '/layer3/\\*' matches no layer"):
        options(**{option: ("*", "/layer3/*")}).excluded(NAMES)


def test_by_default_all_processors_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert default_threads() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


def test_a_silent_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent(Step.LOAD, 1, 2)
    assert capsys.readouterr() == ("", "")
