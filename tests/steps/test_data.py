"""Calibration data is read once, and its oddities are reported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.results import OutputFidelity, Status, Verification
from alds_onnx.steps import finish
from alds_onnx.steps.evidence import gather
from tests.graph.builders import normal, parse
from tests.steps.nets import CR, feeds, models


def warnings(data: Any, model: ModelProto | None = None, **options: Any) -> str:
    """All warnings but those of time, which depend on the machine."""
    settings: dict[str, Any] = {"cr": CR, "threads": 1, "dry_run": True} | options
    model = model or models()["dense"]
    report = alds_onnx.compress(model, calibration=data, **settings).report
    times = ("times as long", "slower in onnxruntime")
    return "\n".join(w for w in report.warnings if not any(part in w for part in times))


class Reader:
    """A reader with the interface of onnxruntime.quantization.CalibrationDataReader."""

    def __init__(self) -> None:
        self.feeds = iter(feeds("dense"))

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("make", [Reader, lambda: iter(feeds("dense"))], ids=["reader", "iterator"])
def test_data_that_can_be_read_once_is_enough(make: Any) -> None:
    once, often = (
        alds_onnx.compress(models()["dense"], cr=CR, calibration=data, threads=1)
        for data in (make(), feeds("dense"))
    )
    assert once.model.SerializeToString() == often.model.SerializeToString()
    assert once.report.verification is not None
    assert not once.report.verification.random_inputs


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "one"), (np.inf, "one"), (np.nan, "many")])
def test_samples_that_are_not_finite_are_counted(value: float, kind: str) -> None:
    data = [dict(feed) for feed in feeds("dense")]
    for feed in data if kind == "many" else data[:1]:
        feed["x"] = feed["x"].copy()
        feed["x"][3, 1:5] = value
    expected = "6 of 192 calibration samples have" if kind == "many" else "1 of 192 calib"
    assert expected in warnings(data)


def test_good_data_is_no_reason_to_warn() -> None:
    assert warnings(feeds("dense")) == ""


def test_few_samples_are_counted_over_all_runs() -> None:
    """All are counted, although the checks do not use all of them."""
    single = [{"x": row[None]} for feed in feeds("dense") for row in feed["x"]]
    message = "only 20 calibration samples: the factors may fit only these; give at least"
    assert message in warnings(single[:20])
    assert "only" not in warnings(single[:40], dry_run=False)


def test_without_data_nothing_is_predicted_from_random_inputs() -> None:
    found = warnings(None, cr=0.7, dry_run=False)
    assert re.search(
        r"accuracy was not measured: .* random numbers, on which an output error of \d+ % says "
        r"little either way; give real inputs with --calibration, or labelled ones with --evaluate",
        found,
    )
    assert "expect" not in found
    assert found.count("random") == 1, "one warning, not two"
    assert "the largest error of a layer is" in found
    assert "ranks are then chosen by measured output errors" in found


def test_small_errors_of_layers_need_no_advice() -> None:
    found = warnings(None, cr=0.1, dry_run=False, include=["*"], model=whole())
    assert "accuracy was not measured" in found
    assert "--calibration with a few hundred" not in found


def whole() -> ModelProto:
    """A model of exact low rank, that loses nothing."""
    return parse(
        "m (float[N,24] x) => (float[N,24] y) { y = MatMul(x, w) }",
        {"w": normal(24, 4) @ normal(4, 24)},
    )


def test_a_dry_run_measures_nothing_and_warns_of_nothing() -> None:
    assert warnings(None) == ""


def falling(lost: float) -> Callable[[Any], float]:
    values = iter([1.0, 1.0 - lost])
    return lambda run: next(values)


@pytest.mark.parametrize("data", [None, feeds("dense")], ids=["blind", "data"])
@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (0.0, ""),
        (0.005, ""),
        (0.05, "'<lambda>' fell from 1 to 0.95; "),
        (0.5, "much of '<lambda>' is lost; "),
        (math.nan, "much of '<lambda>' is lost; "),
    ],
)
def test_where_scores_were_taken_they_decide_what_is_said(
    lost: float, expected: str, data: Any
) -> None:
    everything = warnings(data, cr=0.7, dry_run=False, evaluate=falling(lost))
    found = everything.partition("kinds of inputs that a fit has not seen")[0]
    assert "random" not in found
    assert "output" not in found.replace("measured output errors", "")
    assert expected in found
    assert ("lost;" in found or "fell" in found) == bool(expected)
    if expected:
        assert ("--calibration with a few hundred" in found) == (data is None)
        assert ("remove less" in found) == (data is not None)


def test_a_loss_within_the_limit_that_was_given_is_no_news() -> None:
    values = iter([1.0])
    found = warnings(None, cr=None, max_drop=0.5, evaluate=lambda run: next(values, 0.6))
    assert "lost" not in found
    assert "fell" not in found


def judged(monkeypatch: pytest.MonkeyPatch, **checks: Any) -> str:
    """The warnings if the checks find these numbers."""
    monkeypatch.setattr(finish, "check", lambda *args: Verification(status=Status.PASSED, **checks))
    return warnings(feeds("dense"), dry_run=False)


def output(error: float, same: float | None = None, noise: float | None = None) -> OutputFidelity:
    return OutputFidelity(
        name="y",
        relative_l2=error,
        max_abs=1,
        cosine=1,
        sqnr_db=1,
        top1_agreement=same,
        top1_agreement_stderr=noise,
    )


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ((output(0.3, 0.995, 0.001),), ""),
        ((output(0.3, 0.97, 0.03),), ""),
        ((output(0.3, 0.97, 0.01),), "top-1 is that of the original in 97.0 % of the cases"),
        ((output(0.3, 0.97),), "top-1 is that of the original in 97.0 % of the cases"),
        ((output(0.1, 0.999), output(0.1, 0.5)), "top-1 is that of the original in 50.0 % of"),
        ((output(0.09),), ""),
        ((output(0.25),), "the error of the outputs is 25 %"),
        ((replace(output(0.25), note="of type int64"),), ""),
    ],
)
@pytest.mark.parametrize("held_out", [True, False])
def test_with_data_what_was_measured_decides(
    fidelity: tuple[OutputFidelity, ...],
    expected: str,
    held_out: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = judged(
        monkeypatch, fidelity=fidelity, held_out=held_out, samples=128, random_inputs=False
    )
    found = "\n".join(line for line in found.splitlines() if "latency" not in line)
    part = "held-out samples" if held_out else "samples that were fitted to"
    assert found.startswith(f"on 128 {part} {expected}" if expected else "")
    assert ("remove less, or say what may be lost" in found) == bool(expected)
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [(output(0.3), False), (output(0.3, 0.9), True)],
    ids=["error", "agreement"],
)
def test_a_limit_on_the_error_says_nothing_of_the_agreement(
    fidelity: OutputFidelity, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Verification(
        status=Status.PASSED, fidelity=(fidelity,), samples=8, random_inputs=False
    )
    monkeypatch.setattr(finish, "check", lambda *args: checks)
    found = warnings(feeds("dense"), cr=None, max_error=0.5, dry_run=False)
    assert ("; a lower --max-error keeps more" in found) == expected
    assert ("the error of the outputs" in found) is False


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("batch", ["N", "16"])
def test_labelled_samples_that_are_calibration_data_too_are_counted(count: int, batch: str) -> None:
    """In float64 too, which becomes the type of the input; padding does not count."""
    model = parse(
        f"m (float[{batch},24] x) => (float[{batch},9] y) {{ y = MatMul(x, w) }}",
        {"w": normal(24, 9)},
    )
    x, fitted = normal(40, 24), normal(64, 24, seed=1)
    x[40 - count :] = fitted[:count]
    labelled = {"x": x.astype(np.float64), "labels": np.zeros(40, np.int64)}
    data = [{"x": fitted[i : i + 16]} for i in range(0, 64, 16)]
    for options in ({"cr": 0.4}, {"cr": None, "max_drop": 100}):
        settings: dict[str, Any] = {"threads": 1, "evaluate": labelled} | options
        report = alds_onnx.compress(model, calibration=data, **settings).report
        verb = "is" if count == 1 else "are"
        expected = f"{count} of the 40 labelled samples {verb} calibration data too: the score is"
        assert any(expected in warning for warning in report.warnings) == bool(count)
        assert report.scores[0].held_out == (not count)


@pytest.mark.parametrize(
    ("price", "lost", "expected"),
    [(None, 0.5, False), (1.1, 0.5, False), (1.5, 0.0, False), (1.5, 0.5, True)],
)
def test_with_data_a_loss_is_compared_with_what_a_slower_model_would_lose(
    price: float | None, lost: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        finish, "gather", lambda *args, **known: replace(gather(*args, **known), price=price)
    )
    found = warnings(feeds("dense"), dry_run=False, evaluate=falling(lost))
    assert ("fast shapes cost accuracy here" in found) == expected
    assert ("would be 1.5 times smaller" in found) == expected
    assert ("remove less" in found) == (lost > 0 and not expected)
