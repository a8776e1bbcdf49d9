"""Every scheme on data: curves, factors, and what they promise of each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, ErrorNorm, LayerShape, Scheme, Spectra, distinct
from alds_onnx.decompose.factorize import compose, factorize
from alds_onnx.decompose.regression import (
    is_wide,
    joint_spectra,
    regress,
    squared_error,
    white_moments,
)
from alds_onnx.search.alignment import FREE
from alds_onnx.search.frontier import frontier
from tests.decompose.samples import Data, linear, samples
from tests.schemes.test_structures import counts, cuts, full

# The decoder is solved with 1e-9 on the diagonal of its Gram matrix.
JITTERED = 1e-6
# Of the ridge inside the error curves; part of what they are defined to be.
SHRINKAGE = 1e-4
# Sums in float64, relative to the numbers of a factor.
ROUNDING = 1e-9

every_scheme = pytest.mark.parametrize("scheme", Scheme, ids=lambda s: s.value)


def spectra(data: Data) -> Spectra:
    wanted = {
        scheme: tuple(k for k in counts(data.shape, scheme) if k <= 2)
        for scheme in distinct(data.shape, Scheme)
    }
    return joint_spectra(data.W, data.shape, data.moments(), wanted)


def some_cuts(shape: LayerShape, scheme: Scheme) -> list[Cut]:
    """Full rank, and some lower ones, at one slice and at two."""
    found = []
    for k in (1, 2) if scheme.structure.sliced(shape) else (1,):
        whole = full(shape, scheme, k)
        for part in (1, 0.6, 0.3):
            rank, rank_out = (int(np.ceil(part * n)) for n in (whole.rank, whole.rank_out))
            found.append(Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=rank_out))
    return found


@every_scheme
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 2)], ids=str)
def test_full_rank_reproduces_the_outputs(scheme: Scheme, kernel: tuple[int, ...]) -> None:
    data = linear(samples(kernel=kernel))
    for k in counts(data.shape, scheme):
        cut = full(data.shape, scheme, k)
        factors = regress(data.W, data.shape, data.moments(), cut, ridge=1e-6, sweeps=10)
        assert factors.cut == cut
        assert data.error(compose(factors)) <= JITTERED


@every_scheme
def test_data_is_never_worse_than_the_weight_alone(scheme: Scheme) -> None:
    data = linear(samples(kernel=(2, 3), f=7))
    for cut in some_cuts(data.shape, scheme):
        factors = regress(data.W, data.shape, data.moments(), cut, ridge=SHRINKAGE, sweeps=10)
        penalised = data.with_ridge(SHRINKAGE)
        alone = penalised.error(compose(factorize(data.W, data.shape, cut)))
        assert penalised.error(compose(factors)) <= alone + JITTERED


@every_scheme
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_sweeps_never_raise_the_error_with_its_ridge(scheme: Scheme, ridge: float) -> None:
    data = samples(kernel=(2, 3), f=7)
    penalised = data.with_ridge(ridge)
    for cut in some_cuts(data.shape, scheme):
        errors = [
            penalised.error(
                compose(
                    regress(data.W, data.shape, data.moments(), cut, ridge=ridge, sweeps=sweeps)
                )
            )
            for sweeps in (0, 1, 3, 10)
        ]
        assert (np.diff(errors) <= 1e-8).all(), errors


@every_scheme
def test_a_strong_ridge_ignores_the_data(scheme: Scheme) -> None:
    """What is left is the best approximation of the weight, in the mean of squares."""
    data = samples(kernel=(2, 3))
    cut = full(data.shape, scheme)
    found = compose(regress(data.W, data.shape, data.moments(), cut, ridge=1e9, sweeps=5))
    np.testing.assert_allclose(found, data.W, rtol=0, atol=1e-6)


@given(case=cuts(), seed=st.integers(0, 50))
def test_the_curve_bounds_the_regression(case: tuple[LayerShape, Cut], seed: int) -> None:
    shape, cut = case
    if shape.num_columns > 50 or shape.in_channels % cut.num_slices:
        return
    data = linear(
        samples(f=shape.out_features, c=shape.in_channels, kernel=shape.kernel, seed=seed)
    )
    structure = cut.scheme.structure
    wanted = {cut.scheme: (cut.num_slices,) if structure.sliced(shape) else ()}
    found = joint_spectra(data.W, shape, data.moments(), wanted)
    try:
        error = found.relative_error(cut)
    except IndexError:  # no rank like that saves parameters, and curves end there
        return
    penalised = data.with_ridge(SHRINKAGE)
    start, end = (
        penalised.error(
            compose(regress(data.W, shape, data.moments(), cut, ridge=SHRINKAGE, sweeps=sweeps))
        )
        for sweeps in (0, 8)
    )
    if structure.sliced(shape):
        assert start == pytest.approx(error**2, abs=5 * JITTERED)
    assert start <= error**2 + JITTERED
    assert end <= start + JITTERED


def test_errors_fall_as_ranks_grow() -> None:
    found = spectra(linear(samples(kernel=(2, 3), f=7)))
    for curve in found.curves:
        assert curve.relative_error[0] == 1.0
        assert (np.diff(curve.relative_error) <= 0).all()
        assert curve.relative_error[-1] < 1.0


def test_squares_of_errors_of_several_projections_add_up() -> None:
    found = spectra(linear(samples(kernel=(2, 3), f=7)))
    assert found.error_norm is ErrorNorm.FROBENIUS
    cut = Cut(num_slices=1, rank=2, scheme=Scheme.TUCKER2, rank_out=3)
    squares = found.curve(1, Scheme.DECODE).relative_error[2] ** 2
    squares += found.curve(1).relative_error[3] ** 2
    assert found.relative_error(cut) == pytest.approx(np.sqrt(squares))


def test_a_frontier_on_data_holds_the_best_of_all_schemes() -> None:
    """Against all cuts one by one, Tucker-2 with every pair of ranks that its core can use."""
    data = linear(samples(kernel=(2, 3), f=8, c=4))
    found, shape = spectra(data), data.shape
    cuts = [
        Cut(num_slices=curve.num_slices, rank=rank, scheme=curve.scheme)
        for curve in found.curves
        for rank in range(1, len(curve.relative_error))
    ]
    cuts += [
        Cut(num_slices=1, rank=rank, scheme=Scheme.TUCKER2, rank_out=rank_out)
        for rank in range(1, len(found.curve(1, Scheme.DECODE).relative_error))
        for rank_out in range(1, len(found.curve(1).relative_error))
        if rank_out <= rank * shape.kernel_size
    ]
    points = {(shape.num_parameters, 0.0)}
    points |= {
        (n, found.relative_error(cut))
        for cut in cuts
        if (n := cut.num_parameters(shape)) < shape.num_parameters
    }
    best: list[tuple[int, float]] = []
    for parameters, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((parameters, error))
    chosen = frontier("layer", found, FREE)
    assert chosen.cost.tolist() == [parameters for parameters, _ in best]
    np.testing.assert_allclose(chosen.error, [error for _, error in best], rtol=1e-12)


@every_scheme
@pytest.mark.parametrize("kind", ["dead channels", "few samples", "no inputs", "no weight"])
def test_deficient_data_gives_finite_factors(scheme: Scheme, kind: str) -> None:
    data = linear(samples(kernel=(2, 3)))
    x, W = data.x.copy(), data.W.copy()
    if kind == "dead channels":
        x[:, :6] = 0.0
    elif kind == "few samples":
        x = x[:3]
    elif kind == "no inputs":
        x[:] = 0.0
    else:
        W[:] = 0.0
    bad = Data(shape=data.shape, W=W, x=x, y=x @ W.T)
    for curve in spectra(bad).curves:
        assert np.isfinite(curve.relative_error).all()
    for cut in some_cuts(bad.shape, scheme):
        factors = regress(W, bad.shape, bad.moments(), cut, ridge=1e-4, sweeps=3)
        assert all(np.isfinite(part).all() for part in factors.parts)
        assert factors.cut == cut


@every_scheme
def test_factors_on_data_are_balanced(scheme: Scheme) -> None:
    """Of Tucker-2, the slices of the core have norms of the same size as what they multiply."""
    data = samples(kernel=(2, 3), f=7)
    rank_out = 3 if scheme is Scheme.TUCKER2 else 0
    cut = Cut(num_slices=1, rank=2, scheme=scheme, rank_out=rank_out)
    factors = regress(data.W, data.shape, data.moments(), cut, ridge=1e-2, sweeps=3)
    inner, outer = np.linalg.norm(factors.V, axis=2)[0], np.linalg.norm(factors.U, axis=1)[0]
    if factors.core is None:
        np.testing.assert_allclose(inner, outer, rtol=ROUNDING)
    else:
        core = (factors.core * outer[:, None, None, None] * inner[:, None, None]) ** 2
        np.testing.assert_allclose(core.sum(axis=(1, 2, 3)), outer**4)
        np.testing.assert_allclose(core.sum(axis=(0, 2, 3)), inner**4)


@every_scheme
def test_a_wide_layer_has_one_slice_of_the_first_scheme(scheme: Scheme) -> None:
    """Its outputs stand for its inputs, and these have neither slices nor a kernel."""
    shape = LayerShape(out_features=4, in_channels=700, kernel=(3, 3))
    assert is_wide(shape)
    outputs = white_moments(np.eye(4))
    counts = (2,) if scheme is Scheme.ENCODE else (1,)
    with pytest.raises(ValueError, match="wide layer"):
        joint_spectra(np.eye(4), shape, outputs, {scheme: counts})
    found = joint_spectra(np.eye(4), shape, outputs, {Scheme.ENCODE: (1,)})
    assert [curve.scheme for curve in found.curves] == [Scheme.ENCODE]


def test_white_noise_measures_the_weight() -> None:
    """Errors of outputs are those of the weight then: the folds are the same for all schemes."""
    data = samples(kernel=(2, 3), f=7)
    white = white_moments(data.W)
    for scheme in (s for s in distinct(data.shape, Scheme) if s.structure.sliced(data.shape)):
        cut = Cut(num_slices=1, rank=2, scheme=scheme)
        found, best = (
            squared_error(compose(factors), white)
            for factors in (
                regress(data.W, data.shape, white, cut, ridge=1e-6, sweeps=5),
                factorize(data.W, data.shape, cut),
            )
        )
        assert found == pytest.approx(best, abs=JITTERED)
