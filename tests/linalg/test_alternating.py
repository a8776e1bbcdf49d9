"""Alternating least squares against explicit samples and systems that are solved another way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.linalg.alternating import Blocks, first_encoders, joint_errors, mean_moments
from alds_onnx.linalg.arrays import FloatArray
from alds_onnx.linalg.least_squares import Problem, inverse, shrunk

# The decoder is solved with 1e-9 on the diagonal of its Gram matrix, whose columns may be nearly
# dependent.
JITTERED = 1e-6
# A sum of two quantities in float64 that are solved to about ten digits.
ROUNDING = 1e-8
# Conjugate gradients on a few dozen unknowns, until their residual is as small as it gets.
SOLVED = 1e-7


@dataclass(frozen=True)
class Samples:
    """Inputs (t, n), n = taps·slices·m, and outputs (t, f) that no product of factors explains."""

    x: FloatArray
    y: FloatArray

    def problem(self) -> Problem:
        x, y = self.x, self.y
        C, B = x.T @ x / len(x), y.T @ x / len(x)
        W = np.linalg.lstsq(x, y, rcond=None)[0].T
        return Problem(C=C, B=B, power=float((y**2).sum() / len(x)), W=W)

    def left(self, A: FloatArray) -> float:
        """Squared error of y ≈ A x, relative to y."""
        return float(((self.y - self.x @ A.T) ** 2).sum() / (self.y**2).sum())


def samples(n: int, f: int = 5, seed: int = 0) -> Samples:
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((n, n)) * np.logspace(0, -1, n)
    x = generator.standard_normal((20 * n, n)) @ mix.T
    y = x @ generator.standard_normal((n, f))
    y += 0.5 * np.sqrt((y**2).mean()) * np.tanh(x[:, :1] + generator.standard_normal(f))
    return Samples(x=x, y=y)


SHARED = [(2, 1, 6, 2), (3, 1, 4, 2), (3, 2, 4, 2), (4, 3, 2, 1), (3, 2, 3, 3)]
shared = pytest.mark.parametrize(("taps", "num_slices", "m", "rank"), SHARED, ids=str)


def placed(E: FloatArray, taps: int) -> FloatArray:
    """Rows of the encoders at every tap: the matrix that makes codes (taps, slices, rank)."""
    k, j, m = E.shape
    Z = np.zeros((taps * k * j, taps * k * m))
    for place in range(taps * k):
        Z[place * j : (place + 1) * j, place * m : (place + 1) * m] = E[place % k]
    return Z


def composed(blocks: Blocks) -> FloatArray:
    """The map (f, n)."""
    return np.hstack(list(blocks.D)) @ placed(blocks.E, blocks.taps)


def started(data: Samples, taps: int, num_slices: int, rank: int, sweeps: int = 0) -> Blocks:
    blocks = Blocks(data.problem(), num_slices=num_slices, rank=rank, taps=taps)
    blocks.solve(sweeps)
    return blocks


def preconditioners(blocks: Blocks) -> FloatArray:
    means = mean_moments(blocks.C, blocks.taps, len(blocks.E))
    return np.stack([inverse(C) for C in means])


@shared
def test_the_decoder_is_least_squares_on_the_codes(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    data = samples(taps * num_slices * m)
    blocks = started(data, taps, num_slices, rank)
    codes = data.x @ placed(blocks.E, taps).T
    best = np.linalg.lstsq(codes, data.y, rcond=None)[0].T
    left = data.left(best @ placed(blocks.E, taps))
    assert data.left(composed(blocks)) == pytest.approx(left, abs=JITTERED)
    assert 1 - blocks.explained / blocks.power == pytest.approx(left, abs=JITTERED)


@shared
def test_the_encoder_is_least_squares_on_the_explicit_design(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    """y = Σ_ti D_ti E_i x_ti is linear in the entries of E: one column of a matrix for each."""
    data = samples(taps * num_slices * m)
    blocks = started(data, taps, num_slices, rank)
    blocks._orthonormalize()
    x = data.x.reshape(len(data.x), taps, num_slices, m)
    D = blocks.D.reshape(taps, num_slices, -1, rank)
    design = np.einsum("tifr,stim->sfirm", D, x).reshape(data.y.size, -1)
    best = np.linalg.lstsq(design, data.y.ravel(), rcond=None)[0]
    found = blocks.encoded(preconditioners(blocks), steps=200).ravel()
    left = ((data.y.ravel() - design @ best) ** 2).sum()
    assert ((data.y.ravel() - design @ found) ** 2).sum() == pytest.approx(left, rel=ROUNDING)
    size = np.abs(design @ best).max()
    np.testing.assert_allclose(design @ found, design @ best, rtol=0, atol=SOLVED * size)


@shared
def test_each_step_towards_the_best_encoder_lowers_the_error(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    data = samples(taps * num_slices * m)
    errors = []
    for steps in range(6):
        blocks = started(data, taps, num_slices, rank)
        blocks._orthonormalize()
        blocks.E = blocks.encoded(preconditioners(blocks), steps)
        errors.append(data.left(composed(blocks)))
    assert (np.diff(errors) <= ROUNDING).all(), errors
    assert errors[-1] < errors[0] or rank == m


@given(case=st.sampled_from(SHARED), seed=st.integers(0, 50), reduced=st.booleans())
def test_sweeps_over_shared_encoders_never_raise_the_error(
    case: tuple[int, int, int, int], seed: int, reduced: bool
) -> None:
    taps, num_slices, m, rank = case
    data = samples(taps * num_slices * m, seed=seed)
    errors = []
    for sweeps in (0, 1, 2, 5, 20):
        size = {"num_slices": num_slices, "rank": rank, "taps": taps}
        problem = data.problem()
        blocks = Blocks(problem, **size, rank_out=2 if reduced else 0)
        blocks.solve(sweeps)
        errors.append(data.left(composed(blocks)))
    assert (np.diff(errors) <= JITTERED).all(), errors


@shared
def test_sweeps_over_shared_encoders_lower_the_error(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    data = samples(taps * num_slices * m)
    before, after = (
        data.left(composed(started(data, taps, num_slices, rank, sweeps))) for sweeps in (0, 20)
    )
    assert after < before or rank == m


@pytest.mark.parametrize("rank_out", [1, 2, 3, 5])
def test_reduced_decoders_are_an_svd_of_whitened_codes(rank_out: int) -> None:
    taps, m, rank = 3, 4, 2
    data = samples(taps * m)
    blocks = Blocks(data.problem(), num_slices=1, rank=rank, taps=taps, rank_out=rank_out)
    blocks.solve(0)
    codes = data.x @ placed(blocks.E, taps).T
    U, _, _ = np.linalg.svd(codes, full_matrices=False)  # whitened samples
    fitted = U @ (U.T @ data.y)
    left, s, right = np.linalg.svd(fitted, full_matrices=False)
    wanted = (left[:, :rank_out] * s[:rank_out]) @ right[:rank_out]
    outer, inner = blocks.factored()
    assert outer.shape == (data.y.shape[1], rank_out)
    found = codes @ (outer @ inner).T
    np.testing.assert_allclose(found, wanted, rtol=0, atol=JITTERED * np.abs(wanted).max())


def test_a_core_with_more_rows_than_codes_is_padded_with_zeros() -> None:
    data = samples(8, f=7)
    blocks = Blocks(data.problem(), num_slices=1, rank=1, taps=2, rank_out=6)
    blocks.solve(3)
    outer, inner = blocks.factored()
    assert (outer.shape, inner.shape) == ((7, 6), (6, 2))
    assert not outer[:, 2:].any()


def sliced(data: Samples) -> Blocks:
    """Four slices of rank 2 at one tap, encoders as they begin."""
    problem = Blocks(data.problem(), num_slices=4, rank=2)
    problem.solve(0)
    return problem


def inverses(blocks: Blocks) -> list[FloatArray]:
    return [np.linalg.inv(blocks.C[b, b]) for b in blocks.blocks]


@pytest.mark.parametrize("place", range(4))
def test_each_encoder_of_a_sweep_sees_what_the_others_are_by_then(place: int) -> None:
    """It is the best one for them: the gradient is zero there."""
    blocks = sliced(samples(12))
    old = blocks._orthonormalize()
    new = blocks._encoded(inverses(blocks))
    blocks.E = np.concatenate([new[: place + 1], old[place + 1 :]])
    block = blocks.blocks[place]
    gradient = blocks.D[place].T @ (blocks.B - composed(blocks) @ blocks.C)[:, block]
    size = np.abs(blocks.D[place].T @ blocks.B).max()
    assert np.abs(gradient).max() <= JITTERED * size


def test_a_sweep_that_loses_is_the_last_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples(12)
    wanted = sliced(data)
    calls = []

    def losing(self: Blocks, *_: object) -> float:
        calls.append(self)
        self.D, self.E, self.explained = 0 * self.D, 0 * self.E, 0.0
        return 0.0

    monkeypatch.setattr(Blocks, "_sweep", losing)
    blocks = Blocks(data.problem(), num_slices=4, rank=2)
    blocks.solve(5)
    assert len(calls) == 1
    np.testing.assert_array_equal(blocks.D, wanted.D)
    np.testing.assert_array_equal(blocks.E, wanted.E)


@pytest.mark.parametrize("taps", [1, 2])
def test_strides_that_went_too_far_are_taken_back(taps: int) -> None:
    """Whatever the stride is: the error does not rise, and the next one is shorter."""
    data = samples(12)
    blocks = sliced(data) if taps == 1 else started(data, taps, 2, 2)
    before = blocks.explained
    assert blocks._sweep([*preconditioners(blocks)], 1e4) == 5e3
    assert blocks.explained >= before


@dataclass(frozen=True)
class Seen:
    """Inputs (t, n) that a layer W (f, n) sees."""

    x: FloatArray
    W: FloatArray

    @property
    def C(self) -> FloatArray:
        return np.asarray(self.x.T @ self.x / len(self.x))

    def problem(self) -> Problem:
        B = self.W @ self.C
        return Problem(C=self.C, B=B, power=float(np.vdot(B, self.W)), W=self.W)


def two_sets(n: int, few: int, f: int = 7, seed: int = 0) -> tuple[Seen, Seen]:
    """A few samples, and 400 others of the same distribution, for the same layer."""
    generator = np.random.default_rng([seed, n, few])
    mix = generator.standard_normal((n, n)) * np.logspace(0, -1, n)
    W = generator.standard_normal((f, n))
    first, second = (generator.standard_normal((count, n)) @ mix.T for count in (few, 400))
    return Seen(first, W), Seen(second, W)


CURVES = [(1, 1, 12, 6), (1, 2, 6, 6), (1, 3, 4, 4), (2, 1, 6, 5), (3, 2, 4, 4), (4, 3, 2, 2)]
curves = pytest.mark.parametrize(("taps", "num_slices", "m", "rank"), CURVES, ids=str)


def errors_of(
    problem: Problem, judge: FloatArray, taps: int, num_slices: int, rank: int
) -> FloatArray:
    return joint_errors(problem, judge, num_slices=num_slices, rank=rank, taps=taps)


def explicit_errors(fitted: Seen, judge: Seen, taps: int, num_slices: int, rank: int) -> FloatArray:
    """At every rank, least squares on the codes of the one set; the error on the other set."""
    E = first_encoders(fitted.W, fitted.C, num_slices=num_slices, rank=rank, taps=taps)
    errors, wanted = [1.0], judge.x @ judge.W.T
    for j in range(1, rank + 1):
        Z = placed(E[:, :j], taps)
        decoder = np.linalg.lstsq(fitted.x @ Z.T, fitted.x @ fitted.W.T, rcond=None)[0].T
        left = wanted - judge.x @ (decoder @ Z).T
        errors.append(float(np.linalg.norm(left) / np.linalg.norm(wanted)))
    return np.minimum.accumulate(np.minimum(errors, 1.0))


@curves
def test_joint_errors_are_those_of_explicit_samples(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    """Of the samples that were fitted to, and of others."""
    fitted, judge = two_sets(taps * num_slices * m, few=3 * taps * num_slices * m)
    problem = fitted.problem()
    for other, moments in ((fitted, problem.C), (judge, judge.C)):
        found = errors_of(problem, moments, taps, num_slices, rank)
        expected = explicit_errors(fitted, other, taps, num_slices, rank)
        # Squared errors are differences of numbers near 1 that are known to about nine digits.
        np.testing.assert_allclose(found**2, expected**2, rtol=1e-4, atol=10 * JITTERED)


@curves
def test_a_judge_that_saw_the_same_says_the_same(
    taps: int, num_slices: int, m: int, rank: int
) -> None:
    """Its moments are other numbers in memory, and go another way."""
    problem = two_sets(taps * num_slices * m, few=200)[0].problem()
    own, judged = (
        errors_of(problem, judge, taps, num_slices, rank) for judge in (problem.C, problem.C.copy())
    )
    np.testing.assert_allclose(judged**2, own**2, rtol=0, atol=JITTERED)


@curves
def test_errors_on_other_samples_are_larger(taps: int, num_slices: int, m: int, rank: int) -> None:
    """On average over sets of samples, and at every rank at which there is an error."""
    n, own, others = taps * num_slices * m, [], []
    for seed in range(12):
        fitted, judge = two_sets(n, few=n + 4, seed=seed)
        problem = fitted.problem()
        own.append(errors_of(problem, problem.C, taps, num_slices, rank) ** 2)
        others.append(errors_of(problem, judge.C, taps, num_slices, rank) ** 2)
    inside, outside = np.mean(own, axis=0), np.mean(others, axis=0)
    counted = np.flatnonzero(inside > 1e-3)[1:]  # without rank 0, where both are 1
    assert len(counted)
    assert (outside > 1.05 * inside)[counted].all(), (inside, outside)


@given(
    case=st.sampled_from(CURVES),
    seed=st.integers(0, 50),
    few=st.integers(1, 60),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_errors_never_rise_with_rank_and_begin_at_all(
    case: tuple[int, int, int, int], seed: int, few: int, ridge: float
) -> None:
    """Also with fewer samples than inputs."""
    taps, num_slices, m, rank = case
    fitted, judge = two_sets(taps * num_slices * m, few=few, seed=seed)
    C = shrunk(fitted.C, ridge)
    B = fitted.W @ C
    problem = Problem(C=C, B=B, power=float(np.vdot(B, fitted.W)), W=fitted.W)
    for moments in (C, judge.C):
        found = errors_of(problem, moments, taps, num_slices, rank)
        assert found.shape == (rank + 1,)
        assert found[0] == 1.0
        assert (np.diff(found) <= 0).all()
        assert found[-1] >= 0


def test_with_all_codes_nothing_is_lost_on_any_samples() -> None:
    fitted, judge = two_sets(12, few=40)
    problem = fitted.problem()
    for moments in (problem.C, judge.C):
        assert errors_of(problem, moments, 1, 1, 7)[-1] ** 2 <= 10 * JITTERED
        assert errors_of(problem, moments, 1, 3, 4)[-1] ** 2 <= 10 * JITTERED


def test_where_nothing_comes_out_nothing_is_lost() -> None:
    """In what was fitted to, or in what judges; without a rank all is lost."""
    problem = two_sets(12, few=40)[0].problem()
    nothing = np.zeros((12, 12))
    silent = Problem(C=problem.C, B=0 * problem.B, power=0.0, W=0 * problem.W)
    assert not errors_of(problem, nothing, 1, 2, 3).any()
    assert not errors_of(silent, problem.C.copy(), 1, 2, 3).any()
    assert errors_of(problem, problem.C.copy(), 1, 2, 0).tolist() == [1.0]
