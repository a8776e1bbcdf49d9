"""Choosing the ranks again by measured slopes never increases the error on the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alds_onnx
from alds_onnx.calibrate.reference import Reference, reference
from alds_onnx.calibrate.runner import Runner
from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.runtimes import Provider
from alds_onnx.search.frontier import Frontier, Point, frontier
from alds_onnx.steps.metrics.data import DataMetric, correction
from tests.graph.builders import normal
from tests.steps.nets import feeds, models

from ...decompose.matrices import spectra


def curve(f: int, c: int, seed: int) -> Frontier:
    shape = LayerShape(out_features=f, in_channels=c)
    matrix = normal(f, c, seed=seed).astype(np.float64)
    return frontier("layer", spectra(matrix, shape, shape.slice_counts()))


@given(st.integers(8, 40), st.sampled_from([8, 12, 16, 30]), st.integers(0, 5), st.data())
def test_neighbours_lie_on_both_sides(f: int, c: int, seed: int, data: st.DataObject) -> None:
    choices = curve(f, c, seed)
    at = data.draw(st.integers(0, len(choices) - 1))
    fewer, more = Point(choices, at).neighbours()
    assert 0 <= fewer <= at <= more <= len(choices) - 1
    assert (fewer < at) == (at > 0)
    assert (more > at) == (at < len(choices) - 1)


@given(st.floats(0.0, 1e6))
def test_a_slope_scales_a_curve_by_its_root_within_bounds(slope: float) -> None:
    assert correction(slope) == pytest.approx(min(2.0, max(0.5, slope**0.5)))


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_refining_never_raises_the_error_on_the_data(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = models()[kind], feeds(kind)
    runner = Runner(batches=tuple(data), folder=Path("/nowhere"), threads=1, provider=Provider.CPU)
    original = reference(runner, model)

    def error() -> float:
        result = alds_onnx.compress(model, cr=0.5, calibration=data, threads=1)
        return original.distance_of(result.model)

    refined = error()
    found: list[dict[str, float]] = []
    measure = DataMetric._corrections

    def recorded(*args: Any) -> dict[str, float]:
        found.append(measure(*args))
        return {}

    monkeypatch.setattr(DataMetric, "_corrections", recorded)
    assert refined <= error() * (1 + 1e-6)
    (factors,) = found
    assert factors
    assert all(0.5 <= factor <= 2.0 for factor in factors.values())


def test_of_two_attempts_the_better_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections that mislead by far make the second attempt worse than the first."""
    model, data, measured = models()["dense"], feeds("dense"), Reference.distance_of

    def attempts(corrections: dict[str, float]) -> tuple[list[float], tuple[Cut | None, ...]]:
        """The errors of the second and the first attempt, and the cuts of the one that is kept."""
        errors: list[float] = []

        def recorded(*args: Any) -> float:
            errors.append(measured(*args))
            return errors[-1]

        with monkeypatch.context() as patch:
            patch.setattr(Reference, "distance_of", recorded)
            patch.setattr(DataMetric, "_corrections", lambda *args: corrections)
            result = alds_onnx.compress(
                model, cr=0.5, calibration=data, threads=1, measuring=alds_onnx.Measuring.NEVER
            )
        return errors, tuple(row.cut for row in result.plan.layers)

    _, first_cuts = attempts({})  # no corrections: the same cuts twice
    kept_first = []
    for wrong in ({"h": 1e6, "y": 1e-6}, {"h": 1e-6, "y": 1e6}):
        (second, first), cuts = attempts(wrong)
        assert (cuts == first_cuts) == (first < second)
        kept_first.append(first < 0.9 * second)
    assert any(kept_first), "otherwise the test shows nothing"
