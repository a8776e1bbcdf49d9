"""Calibration data is read once, and its oddities are reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.graph.files.load import load_model
from alds_onnx.settings import Settings
from alds_onnx.steps import finish
from alds_onnx.steps.data import load_data
from alds_onnx.steps.evidence import gather
from alds_onnx.steps.survey import make_survey
from tests.steps.nets import CR, feeds, models


def warnings(data: Any, **options: Any) -> str:
    settings: dict[str, Any] = {"cr": CR, "threads": 1, "dry_run": True} | options
    report = alds_onnx.compress(models()["dense"], calibration=data, **settings).report
    return "\n".join(report.warnings)


@pytest.mark.parametrize("target", ["max_error", "cr"])
def test_runs_that_are_set_aside_are_not_fitted_to(target: str) -> None:
    settings = Settings(threads=1, calibration=feeds("dense"), **{target: 0.1})
    data = load_data(make_survey(load_model(models()["dense"]), settings), settings)
    assert data is not None
    fit, apart = ([feed["x"].tobytes() for feed in part] for part in (data.fit, data.held_out))
    assert len(fit) + len(apart) == len(feeds("dense"))
    assert not set(fit) & set(apart)
    assert bool(apart) == (target == "max_error")


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
    expected = "6 of 192 calibration samples contain" if kind == "many" else "1 of 192 calib"
    assert expected in warnings(data)


def test_good_data_is_no_reason_to_warn() -> None:
    assert warnings(feeds("dense")) == ""


def test_few_samples_are_counted_over_all_runs() -> None:
    """All are counted, although the checks do not use all of them."""
    single = [{"x": row[None]} for feed in feeds("dense") for row in feed["x"]]
    message = "only 20 calibration samples: the factors may fit only these; give at least"
    assert message in warnings(single[:20])
    assert "only" not in warnings(single[:40], dry_run=False)


def test_without_data_the_user_hears_what_it_would_change() -> None:
    found = warnings(None, cr=0.7, dry_run=False)
    assert "random inputs" in found
    assert "without labels" in found
    assert "ranks are then chosen by measured output errors" in found


def test_where_scores_were_taken_they_decide_what_is_said() -> None:
    for lost, expected in ((0.0, False), (0.5, True)):
        values = iter([1.0, 1.0 - lost])
        found = warnings(None, cr=0.7, dry_run=False, evaluate=lambda run, v=values: next(v))
        assert "expect a large loss" not in found
        assert ("much of '<lambda>' is lost" in found) == expected


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
    values = iter([1.0, 1.0 - lost])
    found = warnings(feeds("dense"), dry_run=False, evaluate=lambda run: next(values))
    assert ("fast shapes cost accuracy here" in found) == expected
    assert ("would be 1.5 times smaller" in found) == expected
