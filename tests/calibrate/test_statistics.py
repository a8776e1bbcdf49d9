"""Sums over samples can be added, and give the same moments as NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.calibrate.statistics import Rows, Sums, sums_of, usable
from alds_onnx.cuts import FloatArray, LayerShape, Scheme
from alds_onnx.decompose.regression import Moments, joint_spectra

# Products of a few hundred float32 numbers, relative to the largest entry of the result.
ROUNDING = 1e-5


def samples(count: int, seed: int = 0, mean: float = 0.5) -> tuple[Rows, Rows]:
    """Rows x (t, 5) with dependent columns and outputs y (t, 3) that depend on them."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, 3)) @ generator.standard_normal((3, 5)) + mean
    y = x[:, :3] ** 2 + generator.standard_normal((count, 3))
    return x.astype(np.float32), y.astype(np.float32)


def assert_close(actual: FloatArray | float, expected: FloatArray | float) -> None:
    scale = float(np.abs(expected).max()) or 1.0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING * scale)


def assert_same(actual: Moments, expected: Moments) -> None:
    for name in ("inputs", "cross", "power", "input_mean", "output_mean"):
        assert_close(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize("mean", [0.0, 0.5, 100.0])
def test_centred_moments_are_covariances(mean: float) -> None:
    x, y = samples(300, mean=mean)
    found = sums_of(x, y).moments(centred=True)
    both = np.cov(np.hstack([x, y]).astype(np.float64).T, bias=True)  # x first, then y
    assert_close(found.inputs, both[:5, :5])
    assert_close(found.cross, both[5:, :5])
    assert_close(found.power, np.trace(both[5:, 5:]))
    assert_close(found.input_mean, x.mean(axis=0, dtype=np.float64))
    assert_close(found.output_mean, y.mean(axis=0, dtype=np.float64))


def test_other_moments_are_means_of_products() -> None:
    x, y = samples(300)
    found = sums_of(x, y).moments(centred=False)
    assert_close(found.inputs, np.mean([np.outer(a, a) for a in x.astype(np.float64)], axis=0))
    assert_close(
        found.cross,
        np.mean([np.outer(b, a) for a, b in zip(x, y.astype(np.float64), strict=True)], axis=0),
    )
    assert_close(found.power, float((y.astype(np.float64) ** 2).sum() / len(y)))
    assert not found.input_mean.any()
    assert not found.output_mean.any()


@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    centred=st.booleans(),
    mean=st.sampled_from([0.0, 30.0]),
)
def test_parts_add_up_to_the_whole(parts: list[int], centred: bool, mean: float) -> None:
    x, y = samples(sum(parts), mean=mean)
    ends = np.cumsum(parts)[:-1]
    first, *rest = map(sums_of, np.split(x, ends), np.split(y, ends))
    total: Sums = sum(rest, first)
    assert total.count == len(x)
    assert_same(total.moments(centred=centred), sums_of(x, y).moments(centred=centred))


def test_a_small_spread_around_a_large_mean_is_not_lost() -> None:
    """In float32, E[x²] - E[x]² of such rows is noise, and not even positive."""
    generator = np.random.default_rng(0)
    spread = generator.standard_normal((2000, 6))
    rows = (1000 + 0.01 * spread).astype(np.float32)
    found = (sums_of(rows[:900], rows[:900]) + sums_of(rows[900:], rows[900:])).moments(
        centred=True
    )
    exact = np.cov(rows.astype(np.float64).T, bias=True)
    # Numbers near 1000 are rounded to 6e-5 each: nothing more may be lost.
    np.testing.assert_allclose(found.inputs, exact, rtol=0, atol=1e-3 * exact.max())


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3])
def test_constant_inputs_have_no_variance(value: float) -> None:
    rows = np.full((100, 8), value, dtype=np.float32)
    total = sums_of(rows[:30], rows[:30, :0]) + sums_of(rows[30:], rows[30:, :0])
    moments = total.moments(centred=True)
    assert np.abs(moments.inputs).max() <= (value * np.finfo(np.float32).eps) ** 2
    shape = LayerShape(out_features=6, in_channels=8)
    W = np.random.default_rng(0).standard_normal((6, 8))
    for curve in joint_spectra(W, shape, moments, {Scheme.ENCODE: (1, 2)}).curves:
        assert np.isfinite(curve.relative_error).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e25])
def test_rows_that_cannot_be_multiplied_are_not_usable(bad: float) -> None:
    x, y = samples(10)
    x[2, 1] = bad
    y[7, 0] = bad
    assert usable(x, y).tolist() == [i not in (2, 7) for i in range(10)]


def test_no_rows_have_no_moments() -> None:
    x, y = samples(0)
    moments = (sums_of(x, y) + sums_of(x, y)).moments(centred=True)
    assert not moments.inputs.any()
    assert moments.power == 0.0
