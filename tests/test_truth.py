"""The benchmark of reports against the truth: what it draws, what it calls true and what right."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("verdicts")


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("pools")


def pool(pools: ModuleType, **more: Any) -> Any:
    """2,000 samples of ten kinds; a sample is its place in the pool."""
    settings: dict[str, Any] = {
        "kinds": tuple(str(i % 10) for i in range(2000)),
        "tests": 900,
        "inputs": lambda places, seed: {"x": np.stack([places, np.full_like(places, seed)], 1)},
    }
    names = {"name": "", "sample": "", "path": ROOT, "ratios": (0.5,)}
    return pools.Unseen(**names, **(settings | more))


@pytest.mark.parametrize("other_kinds", [False, True])
@pytest.mark.parametrize("more", [{}, {"apart": "3"}])
def test_no_sample_is_in_calibration_and_test(
    pools: ModuleType, more: dict[str, Any], other_kinds: bool
) -> None:
    drawn = [pool(pools, **more).draw(4, n, other_kinds=other_kinds) for n in (64, 512)]
    for draw, samples in zip(drawn, (64, 512), strict=True):
        assert len(draw.calibration["x"]) == samples == len(np.unique(draw.calibration["x"][:, 0]))
        assert not np.isin(draw.calibration["x"][:, 0], draw.test["x"][:, 0]).any()
        assert np.array_equal(draw.groups, draw.test["x"][:, 0])
    few, many = (draw.calibration["x"] for draw in drawn)
    assert np.array_equal(few, many[:64])


def test_seeds_draw_other_samples(pools: ModuleType) -> None:
    first, second = (pool(pools).draw(seed, 64, other_kinds=False) for seed in (0, 1))
    assert not np.array_equal(first.calibration["x"], second.calibration["x"])
    assert not np.array_equal(first.groups, second.groups)


@pytest.mark.parametrize(("more", "kinds"), [({"left_out": 0.2}, 2), ({"apart": "3"}, 1)])
def test_other_kinds_are_in_the_test_only(
    pools: ModuleType, more: dict[str, Any], kinds: int
) -> None:
    for seed in range(5):
        draw = pool(pools, **more).draw(seed, 512, other_kinds=True)
        calibrated, tested = ({i % 10 for i in d["x"][:, 0]} for d in (draw.calibration, draw.test))
        assert not calibrated & tested
        assert len(tested) == kinds


def test_a_kind_apart_is_not_among_the_same_kinds(pools: ModuleType) -> None:
    draw = pool(pools, apart="3").draw(0, 512, other_kinds=False)
    places = np.concatenate([draw.calibration["x"][:, 0], draw.groups])
    assert {i % 10 for i in places} == set(range(10)) - {3}


def test_enough_is_left_to_calibrate_on(pools: ModuleType) -> None:
    draw = pool(pools, left_out=1.0).draw(0, 512, other_kinds=True)
    assert len(draw.calibration["x"]) == 512


def test_copies_of_a_sample_are_one_group(pools: ModuleType) -> None:
    draw = pool(pools, copies=3, tests=50).draw(0, 64, other_kinds=False)
    assert len(draw.test["x"]) == 150
    assert (np.unique(draw.groups, return_counts=True)[1] == 3).all()
    assert len(np.unique(draw.test["x"], axis=0)) == 150


def test_differences_are_those_of_each_sample(verdicts: ModuleType) -> None:
    expected = np.array([[[1.0, 3.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 2.0]]])
    actual = np.array([[[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 2.0]]])
    rows = verdicts.differences(expected, actual)
    assert rows.tolist() == [[6.0, 14.0, 1.0, 2.0], [0.0, 6.0, 2.0, 2.0]]


def test_scores_of_one_row_are_compared_by_sample(verdicts: ModuleType) -> None:
    rows = verdicts.differences(np.array([[1.0, 3.0], [2.0, 0.0]]), np.array([[3.0, 1.0], [2, 0]]))
    assert rows[:, 2:].tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_figures_are_over_all_samples(verdicts: ModuleType) -> None:
    rows = np.array([[1.0, 4.0, 1, 2], [2.0, 8.0, 2, 2], [0.0, 36.0, 0, 4]])
    figures = verdicts.figures(rows, np.arange(3), has_top_1=True)
    assert figures.agreement.value == 3 / 8
    assert figures.error.value == pytest.approx((3 / 48) ** 0.5)
    assert verdicts.figures(rows, np.arange(3), has_top_1=False).agreement is None


def test_the_standard_error_is_that_of_independent_groups(verdicts: ModuleType) -> None:
    agreeing = np.repeat(np.random.default_rng(0).random(400) < 0.8, 4).astype(float)
    rows = np.stack([agreeing, np.ones(1600), agreeing, np.ones(1600)], axis=1)
    alone = verdicts.figures(rows, np.arange(1600), has_top_1=True).agreement
    grouped = verdicts.figures(rows, np.repeat(np.arange(400), 4), has_top_1=True).agreement
    assert grouped.value == alone.value
    variance = grouped.value * (1 - grouped.value)
    assert grouped.stderr == pytest.approx((variance / 400) ** 0.5, rel=0.05)
    assert alone.stderr == pytest.approx(grouped.stderr / 2, rel=0.05)


def pair(verdicts: ModuleType, reported: float, truth: float, **more: Any) -> Any:
    return verdicts.Pair(
        reported=verdicts.Number(value=reported, stderr=more.get("stderr", 0.03)),
        truth=verdicts.Number(value=truth, stderr=0.04),
        higher_is_better=more.get("higher_is_better", True),
    )


@pytest.mark.parametrize(
    ("truth", "stderr", "within"),
    [(0.801, 0.03, True), (0.799, 0.03, False), (0.999, 0.03, True), (1.001, 0.03, False)],
)
def test_two_standard_errors_of_both_together(
    verdicts: ModuleType, truth: float, stderr: float, within: bool
) -> None:
    assert pair(verdicts, 0.9, truth, stderr=stderr).is_within is within


def test_a_report_without_a_standard_error_claims_to_be_exact(verdicts: ModuleType) -> None:
    assert not pair(verdicts, 0.9, 0.81, stderr=None).is_within
    assert pair(verdicts, 0.9, 0.81).is_within


def test_an_error_that_is_smaller_than_the_truth_is_better(verdicts: ModuleType) -> None:
    assert pair(verdicts, 0.1, 0.3, higher_is_better=False).excess == pytest.approx(0.2)
    assert pair(verdicts, 0.1, 0.3).excess == pytest.approx(-0.2)


def test_the_mean_of_draws_has_a_smaller_standard_error(verdicts: ModuleType) -> None:
    both = verdicts.mean([pair(verdicts, 0.8, 0.7), pair(verdicts, 0.6, 0.7)])
    assert (both.reported.value, both.truth.value) == pytest.approx((0.7, 0.7))
    assert both.reported.stderr == pytest.approx(0.03 / 2**0.5)
    assert verdicts.mean([pair(verdicts, 0.8, 0.7, stderr=None)]).reported.stderr is None


def test_honest_reports_are_within_and_those_on_fitted_samples_are_not(
    verdicts: ModuleType,
) -> None:
    """100 honest samples against 2,000, and reports that are 15 points too good."""
    generator = np.random.default_rng(0)

    def figures(samples: int, probability: float) -> Any:
        agreeing = (generator.random(samples) < probability).astype(float)
        rows = np.stack([agreeing, np.ones(samples)] * 2, axis=1)
        return verdicts.figures(rows, np.arange(samples), has_top_1=True).agreement

    def share(reported: float) -> float:
        drawn = [(figures(100, reported), figures(2000, 0.8)) for _ in range(60)]
        pairs = [verdicts.Pair(reported=r, truth=t, higher_is_better=True) for r, t in drawn]
        return float(np.mean([p.is_within for p in pairs]))

    assert share(0.8) >= 0.9
    assert share(0.95) <= 0.1


def test_a_row_is_read_as_it_was_kept(verdicts: ModuleType) -> None:
    number = verdicts.Number(value=0.5)
    figures = verdicts.Figures(error=verdicts.Number(value=0.1, stderr=0.01), agreement=number)
    for reported in (figures, None):
        row = verdicts.Row(
            reported=reported, truth=figures, checked=3, held_out=True, tested=4, seconds=0.5
        )
        assert verdicts.read_row(asdict(row)) == row
        assert (row.pair(verdicts.AGREEMENT) is None) is (reported is None)
