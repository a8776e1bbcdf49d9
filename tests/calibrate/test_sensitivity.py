"""Damage is a monotone function of the local error, through the measured points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.calibrate.sensitivity import Sensitivity, _monotone

# Logarithms and their exponentials in float64.
ROUNDING = 1e-9

POINTS = st.lists(st.tuples(st.floats(1e-8, 1.0), st.floats(1e-9, 10.0)), min_size=1, max_size=4)


@given(POINTS)
def test_damage_is_monotone_and_zero_at_zero(points: list[tuple[float, float]]) -> None:
    errors = np.concatenate([[0.0], np.logspace(-5, 0.2, 60)])
    damage = _monotone(points).damage(errors)
    assert damage[0] == 0.0
    assert (np.diff(damage) >= -ROUNDING * damage[1:]).all()
    assert np.isfinite(damage).all()


@given(POINTS)
def test_damage_passes_through_the_probes(points: list[tuple[float, float]]) -> None:
    found = _monotone(points)
    at = found.damage(np.sqrt(np.array(found.local)))
    np.testing.assert_allclose(at, found.output, rtol=1e-6)
    for local, output in points:  # noise may only raise a point
        assert found.damage(np.array([local**0.5]))[0] >= output * (1 - 1e-6)


def test_beyond_the_probes_it_grows_in_proportion() -> None:
    found = Sensitivity(local=(0.01, 0.04), output=(0.1, 0.2))
    low, high = found.damage(np.array([0.01, 0.4]))
    assert low == pytest.approx(0.1 * 1e-4 / 0.01)
    assert high == pytest.approx(0.2 * 0.16 / 0.04)
