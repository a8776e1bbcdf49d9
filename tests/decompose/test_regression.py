"""The regression against explicit samples: least squares and SVDs of the data itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, Factors, FloatArray, LayerShape, Scheme
from alds_onnx.decompose.factorize import compose
from alds_onnx.decompose.regression import (
    Moments,
    bias_change,
    joint_spectra,
    predicted_moments,
    regress,
    squared_error,
    uncertainty,
    white_moments,
)
from alds_onnx.linalg.least_squares import shrunk
from alds_onnx.schemes.folded import balanced
from tests.decompose.samples import Data, linear, samples

# Sums in float64 over some hundred samples, relative to the power of the outputs.
ROUNDING = 1e-10
# The decoder of several slices is solved with 1e-9 on the diagonal of its Gram matrix, whose
# columns may be nearly dependent.
JITTERED = 1e-6
# Of the ridge inside the error curves; part of what they are defined to be.
SHRINKAGE = 1e-4


def best_squared_error(data: Data, rank: int) -> float:
    """What no matrix of this rank can beat: the tail of the SVD of the least-squares outputs."""
    A, *_ = np.linalg.lstsq(data.x, data.y, rcond=None)
    fitted = data.x @ A
    tail = np.linalg.svd(fitted, compute_uv=False)[rank:]
    return float((((data.y - fitted) ** 2).sum() + (tail**2).sum()) / (data.y**2).sum())


def joint_squared_error(data: Data, num_slices: int, rank: int) -> float:
    """Every slice is encoded for its own outputs W_i x_i, then least squares on all codes."""
    codes = []
    for x, W in zip(
        np.split(data.x, num_slices, axis=1), np.split(data.W, num_slices, axis=1), strict=True
    ):
        own = x @ W.T
        Vh = np.linalg.svd(own, full_matrices=False)[2]
        codes.append(own @ Vh[:rank].T)
    code = np.hstack(codes)
    A, *_ = np.linalg.lstsq(code, data.y, rcond=None)
    return float(((data.y - code @ A) ** 2).sum() / (data.y**2).sum())


def solve(data: Data, k: int, j: int, *, ridge: float = 1e-12, sweeps: int = 3) -> FloatArray:
    cut = Cut(num_slices=k, rank=j)
    return compose(regress(data.W, data.shape, data.moments(), cut, ridge=ridge, sweeps=sweeps))


@given(seed=st.integers(0, 100))
def test_squared_error_is_that_of_the_samples(seed: int) -> None:
    data = samples(seed=seed)
    A = data.W + np.random.default_rng(seed).standard_normal(data.W.shape)
    assert squared_error(A, data.moments()) == pytest.approx(data.error(A), rel=ROUNDING)


def test_squared_error_without_outputs_is_none() -> None:
    moments = white_moments(np.zeros((3, 4)))
    assert squared_error(np.ones((3, 4)), moments) == 0.0


@pytest.mark.parametrize("centred", [False, True])
def test_predicted_moments_are_those_of_the_linear_outputs(centred: bool) -> None:
    data = samples()
    found = predicted_moments(data.W, data.moments(centred=centred))
    wanted = linear(data).moments(centred=centred)
    for name in ("inputs", "cross", "power", "input_mean", "output_mean"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=ROUNDING * wanted.power
        )


@pytest.mark.parametrize("ridge", [1e-10, 1e-4, 1e-1])
@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_one_slice_is_the_best_matrix_of_its_rank(rank: int, ridge: float) -> None:
    data = samples()
    A = solve(data, 1, rank, ridge=ridge)
    assert np.linalg.matrix_rank(A) == rank
    penalised = data.with_ridge(ridge)
    assert penalised.error(A) == pytest.approx(best_squared_error(penalised, rank), rel=1e-6)


@pytest.mark.parametrize(
    ("f", "num_slices"), [(3, 1), (6, 1), (15, 1), (6, 2), (15, 2), (3, 4), (6, 4)]
)
def test_full_rank_is_least_squares(f: int, num_slices: int) -> None:
    """In one step where the codes of a slice hold all of its inputs, as n/k <= f makes sure."""
    data = samples(f=f)
    n = data.shape.num_columns
    A = solve(data, num_slices, min(f, n // num_slices))
    exact = np.linalg.lstsq(data.x, data.y, rcond=None)[0].T
    assert data.error(A) == pytest.approx(data.error(exact), abs=JITTERED)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_full_rank_reproduces_a_weight_whose_outputs_are_wanted(num_slices: int) -> None:
    data = linear(samples())
    n = data.shape.num_columns
    A = solve(data, num_slices, min(6, n // num_slices), ridge=1e-6)
    assert data.error(A) <= JITTERED


def test_a_strong_ridge_ignores_the_data() -> None:
    data = samples()
    A = solve(data, 1, 6, ridge=1e9)
    np.testing.assert_allclose(A, data.W, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 50), num_slices=st.sampled_from([2, 4]), rank=st.integers(1, 3))
def test_sweeps_never_raise_the_error(seed: int, num_slices: int, rank: int) -> None:
    data, ridge = samples(seed=seed), 1e-3
    penalised = data.with_ridge(ridge)
    errors = [
        penalised.error(solve(data, num_slices, rank, ridge=ridge, sweeps=sweeps))
        for sweeps in (0, 1, 2, 5, 20)
    ]
    assert (np.diff(errors) <= 1e-8).all(), errors


def test_sweeps_lower_the_error_of_dependent_slices() -> None:
    data = samples()
    assert data.error(solve(data, 2, 1, sweeps=20)) < 0.999 * data.error(
        solve(data, 2, 1, sweeps=0)
    )


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_the_error_falls_as_the_rank_grows(num_slices: int) -> None:
    data = samples()
    highest = min(6, data.shape.num_columns // num_slices)
    errors = [
        data.error(solve(data, num_slices, rank, sweeps=10)) for rank in range(1, highest + 1)
    ]
    assert (np.diff(errors) <= JITTERED).all(), errors
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_the_joint_curve_is_the_error_of_a_common_decoder(num_slices: int) -> None:
    data = linear(samples(f=8))
    spectra = joint_spectra(data.W, data.shape, data.moments(), {Scheme.ENCODE: (num_slices,)})
    penalised = data.with_ridge(SHRINKAGE)
    curve = spectra.curve(num_slices).relative_error
    assert spectra.norm**2 == pytest.approx((penalised.y**2).sum() / len(data.y))
    assert curve[0] == 1.0
    ranks = range(1, len(curve))
    assert len(ranks) == data.shape.max_rank(num_slices)
    for rank in ranks:
        wanted = joint_squared_error(penalised, num_slices, rank)
        assert curve[rank] ** 2 == pytest.approx(wanted, abs=JITTERED)


@given(seed=st.integers(0, 50), num_slices=st.sampled_from([1, 2, 4]))
def test_the_regression_is_as_good_as_its_curve(seed: int, num_slices: int) -> None:
    data = linear(samples(seed=seed, f=8))
    spectra = joint_spectra(data.W, data.shape, data.moments(), {Scheme.ENCODE: (num_slices,)})
    penalised = data.with_ridge(SHRINKAGE)
    for rank, error in enumerate(spectra.curve(num_slices).relative_error[1:], start=1):
        start = solve(data, num_slices, rank, ridge=SHRINKAGE, sweeps=0)
        swept = solve(data, num_slices, rank, ridge=SHRINKAGE, sweeps=10)
        assert penalised.error(start) == pytest.approx(error**2, abs=JITTERED)
        assert penalised.error(swept) <= error**2 + JITTERED


def test_on_white_noise_the_curve_is_the_tail_of_the_singular_values() -> None:
    shape = LayerShape(out_features=7, in_channels=5, kernel=(2,))
    W = np.random.default_rng(0).standard_normal((7, 10))
    squares = np.linalg.svd(W, compute_uv=False) ** 2
    curve = joint_spectra(W, shape, white_moments(W), {Scheme.ENCODE: (1,)}).curve(1).relative_error
    tails = np.array([squares[rank:].sum() for rank in range(len(curve))]) / squares.sum()
    np.testing.assert_allclose(curve**2, tails, rtol=0, atol=1e-8)  # the jitter
    A = compose(
        regress(W, shape, white_moments(W), Cut(num_slices=1, rank=3), ridge=1e-3, sweeps=0)
    )
    assert squared_error(A, white_moments(W)) == pytest.approx(tails[3])


def deficient(kind: str) -> Data:
    data = linear(samples())
    x, W = data.x.copy(), data.W.copy()
    if kind == "dead channels":
        x[:, :6] = 0.0
    elif kind == "few samples":
        x = x[:3]
    elif kind == "no inputs":
        x[:] = 0.0
    elif kind == "equal inputs":
        x[:] = x[:, :1]
    elif kind == "no weight":
        W[:] = 0.0
    elif kind == "large and small":
        x[:, 0] *= 1e12
    return Data(shape=data.shape, W=W, x=x, y=x @ W.T)


@pytest.mark.parametrize("num_slices", [1, 2, 4])
@pytest.mark.parametrize(
    "kind",
    [
        "dead channels",
        "few samples",
        "no inputs",
        "equal inputs",
        "no weight",
        "large and small",
    ],
)
def test_deficient_data_gives_finite_factors(kind: str, num_slices: int) -> None:
    data = deficient(kind)
    moments = data.moments()
    for curve in joint_spectra(data.W, data.shape, moments, {Scheme.ENCODE: (num_slices,)}).curves:
        assert np.isfinite(curve.relative_error).all()
        assert (np.diff(curve.relative_error) <= 0).all()
    for rank in (1, 3):
        cut = Cut(num_slices=num_slices, rank=rank)
        factors = regress(data.W, data.shape, moments, cut, ridge=1e-4, sweeps=3)
        assert np.isfinite(factors.U).all()
        assert np.isfinite(factors.V).all()
        assert factors.cut == cut
        if kind == "no inputs":  # then the weight itself is what is left to approximate
            assert np.linalg.norm(compose(factors) - data.W) < np.linalg.norm(data.W)


@pytest.mark.parametrize("sweeps", [0, 5])
def test_moments_summed_in_float32_need_not_be_positive(sweeps: int) -> None:
    """Many channels that say the same, at different sizes: rounding alone makes C indefinite."""
    generator = np.random.default_rng(0)
    n, shape = 64, LayerShape(out_features=8, in_channels=64)
    scale = np.where(np.arange(n) < 32, 1e3, 1.0)
    x = ((generator.standard_normal((500, 2)) @ generator.standard_normal((2, n))) * scale).astype(
        np.float32
    )
    C = (x.T @ x / 500).astype(np.float64)
    C -= 2e-4 * np.trace(C) / n * np.eye(n)  # as much as rounding may do, and more than the ridge
    W = generator.standard_normal((8, n))
    moments = predicted_moments(
        W, Moments(inputs=C, cross=W, power=0.0, input_mean=np.zeros(n), output_mean=np.zeros(8))
    )
    assert np.linalg.eigvalsh(shrunk(C, SHRINKAGE))[0] < 0
    for k in (1, 4):
        curve = joint_spectra(W, shape, moments, {Scheme.ENCODE: (k,)}).curve(k).relative_error
        assert np.isfinite(curve).all()
        factors = regress(
            W, shape, moments, Cut(num_slices=k, rank=2), ridge=SHRINKAGE, sweeps=sweeps
        )
        assert squared_error(compose(factors), moments) < 0.01  # two directions explain all


@pytest.mark.parametrize("num_slices", [1, 2])
def test_factors_are_balanced(num_slices: int) -> None:
    data = samples()
    factors = regress(
        data.W, data.shape, data.moments(), Cut(num_slices=num_slices, rank=3), ridge=0.1, sweeps=2
    )
    assert factors.U.shape == (num_slices, 6, 3)
    assert factors.V.shape == (num_slices, 3, 12 // num_slices)
    np.testing.assert_allclose(
        np.linalg.norm(factors.U, axis=1), np.linalg.norm(factors.V, axis=2), rtol=ROUNDING
    )
    assert not factors.U.flags.writeable
    assert not factors.V.flags.writeable


def test_balancing_keeps_the_product_also_of_zeros() -> None:
    generator = np.random.default_rng(0)
    shape = LayerShape(out_features=5, in_channels=8)
    U, V = 1e6 * generator.standard_normal((2, 5, 3)), generator.standard_normal((2, 3, 4))
    U[0, :, 1] = 0.0
    V[1, 2] = 0.0
    before = Factors(shape=shape, U=U, V=V)
    after = Factors.of_parts(shape, Scheme.ENCODE, balanced(V, U))
    np.testing.assert_allclose(
        compose(after), compose(before), rtol=0, atol=ROUNDING * np.abs(compose(before)).max()
    )
    alive = np.linalg.norm(U, axis=1) * np.linalg.norm(V, axis=2) > 0
    np.testing.assert_allclose(
        np.linalg.norm(after.U, axis=1)[alive], np.linalg.norm(after.V, axis=2)[alive]
    )


def test_the_bias_makes_the_means_equal() -> None:
    data = samples()
    moments = data.moments(centred=True)
    factors = regress(data.W, data.shape, moments, Cut(num_slices=2, rank=2), ridge=1e-3, sweeps=2)
    outputs = data.x @ compose(factors).T + bias_change(factors, moments)
    np.testing.assert_allclose(outputs.mean(axis=0), data.y.mean(axis=0), atol=1e-9)
    # Centred moments measure what is left with that bias.
    left = ((data.y - outputs) ** 2).sum() / ((data.y - data.y.mean(axis=0)) ** 2).sum()
    assert squared_error(compose(factors), moments) == pytest.approx(left)


@pytest.mark.parametrize("count", [20, 60, 200, 2000])
def test_the_ridge_for_few_samples_brings_moments_nearer_to_the_truth(count: int) -> None:
    generator = np.random.default_rng(count)
    n = 40
    root = generator.standard_normal((n, n)) * np.geomspace(1, 0.05, n)
    truth = root @ root.T
    ridges, errors = [], []
    for _ in range(20):
        x = generator.standard_normal((count, n)) @ root.T
        sample = x.T @ x / count
        ridge = uncertainty(sample, count)
        rho = ridge / (1 + ridge)
        better = (1 - rho) * sample + rho * np.trace(sample) / n * np.eye(n)
        ridges.append(ridge)
        errors.append(np.linalg.norm(better - truth) / np.linalg.norm(sample - truth))
    assert 0 < min(ridges) <= max(ridges) <= 1
    assert np.mean(errors) < 1.0
    assert np.mean(ridges) < 20 / count


def test_moments_without_a_direction_or_a_number_need_no_division_by_zero() -> None:
    assert uncertainty(np.eye(5), 100) == 1.0, "already a multiple of the identity"
    assert uncertainty(np.zeros((5, 5)), 100) == 0.0
    assert uncertainty(np.ones((1, 1)), 3) == 1.0
