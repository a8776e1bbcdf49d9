"""Error curves that are fitted to one half of the samples and judged on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import FloatArray, LayerShape, Scheme, Spectra
from alds_onnx.decompose import regression
from alds_onnx.decompose.regression import (
    Halves,
    Moments,
    crossed_spectra,
    joint_spectra,
    predicted_moments,
    uncertainty,
)

# Sums in float64 of numbers of similar size.
ROUNDING = 1e-12
# What a ridge of 1e-4, relative to the mean power of an input, may change in a squared error.
RIDGE = 1e-2

ENCODE = {Scheme.ENCODE: (1, 2)}


def moments(x: FloatArray, y: FloatArray, *, centred: bool = False) -> Moments:
    """The moments of inputs (t, n) and outputs (t, f), as definitions say."""
    means = x.mean(axis=0), y.mean(axis=0)
    if not centred:
        means = np.zeros(x.shape[1]), np.zeros(y.shape[1])
    x, y = x - means[0], y - means[1]
    inputs = x.T @ x / len(x)
    return Moments(
        inputs=inputs,
        cross=y.T @ x / len(x),
        power=float((y**2).sum() / len(x)),
        input_mean=means[0],
        output_mean=means[1],
        uncertainty=uncertainty(inputs, len(x)),
        count=len(x),
    )


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    for name in ("inputs", "cross", "power", "input_mean", "output_mean", "uncertainty"):
        wanted = getattr(expected, name)
        scale = float(np.abs(wanted).max()) or 1.0
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-10 * scale)


def pairs(count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Inputs of five numbers, whose mean drifts; outputs that are not linear in them."""
    generator = np.random.default_rng([seed, count])
    x = generator.standard_normal((count, 5)) * [1, 2, 3, 0.1, 1] + np.arange(count)[:, None] / 30
    return x, np.tanh(x[:, :3]) + 0.1 * generator.standard_normal((count, 3))


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    seed=st.integers(0, 20),
    centred=st.booleans(),
)
def test_added_moments_are_those_of_all_samples(
    counts: list[int], seed: int, centred: bool
) -> None:
    """In any order, and whichever are added first."""
    x, y = pairs(sum(counts), seed)
    ends = np.cumsum(counts)[:-1]
    first, *rest = (
        moments(a, b, centred=centred)
        for a, b in zip(np.split(x, ends), np.split(y, ends), strict=True)
    )
    assert_same(sum(rest, first), moments(x, y, centred=centred))
    assert_same(sum([first, *rest[:-1]], rest[-1]), moments(x, y, centred=centred))


def test_both_halves_together_are_all_samples() -> None:
    """Where there is one half, it is all."""
    x, y = pairs(50, 0)
    first, second = moments(x[:20], y[:20], centred=True), moments(x[20:], y[20:], centred=True)
    assert_same(Halves(first=first, second=second).both, moments(x, y, centred=True))
    assert Halves(first=first, second=first).both is first


class Layer:
    """A layer of full rank, and inputs of a known distribution for it."""

    def __init__(self, f: int, c: int, kernel: tuple[int, ...] = (), decay: float = 0.0) -> None:
        self.shape = LayerShape(out_features=f, in_channels=c, kernel=kernel)
        n = self.shape.num_columns
        generator = np.random.default_rng([f, n])
        self.W = generator.standard_normal((f, n))
        self.mix = generator.standard_normal((n, n)) * np.exp(-decay * np.arange(n))
        self.truth = predicted_moments(self.W, self._inputs(self.mix @ self.mix.T, 0))

    def _inputs(self, C: FloatArray, count: int) -> Moments:
        f, n = self.W.shape
        own = uncertainty(C, count) if count else 0.0
        nothing = np.zeros((f, n)), np.zeros(n), np.zeros(f)
        return Moments(
            inputs=C,
            cross=nothing[0],
            power=0.0,
            input_mean=nothing[1],
            output_mean=nothing[2],
            uncertainty=own,
            count=count,
        )

    def seen(self, count: int, seed: int) -> Moments:
        """The moments of so many samples."""
        generator = np.random.default_rng([seed, count])
        x = generator.standard_normal((count, len(self.mix))) @ self.mix.T
        return predicted_moments(self.W, self._inputs(x.T @ x / count, count))

    def halves(self, count: int, seed: int = 0) -> Halves:
        return Halves(first=self.seen(count, 2 * seed), second=self.seen(count, 2 * seed + 1))

    def curves(self, fitted: Moments, judge: Moments | None = None) -> Spectra:
        return joint_spectra(self.W, self.shape, fitted, ENCODE, judge)

    def crossed(self, halves: Halves) -> Spectra:
        return crossed_spectra(self.W, self.shape, halves, ENCODE)


def squared(spectra: Spectra, curve: int = 0) -> FloatArray:
    return np.asarray(spectra.curves[curve].relative_error) ** 2


def layers() -> list[Layer]:
    return [Layer(10, 12), Layer(24, 16, decay=0.1), Layer(8, 4, kernel=(3,), decay=0.2)]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: str(layer.W.shape))
def test_with_plenty_of_data_the_curves_are_the_true_ones(layer: Layer) -> None:
    found = crossed_spectra(layer.W, layer.shape, layer.halves(20_000), counts_of(layer))
    expected = joint_spectra(layer.W, layer.shape, layer.truth, counts_of(layer))
    assert found.norm == pytest.approx(expected.norm, rel=0.02)
    assert found.schemes == expected.schemes
    for one, other in zip(found.curves, expected.curves, strict=True):
        assert (one.scheme, one.num_slices) == (other.scheme, other.num_slices)
        np.testing.assert_allclose(
            one.relative_error**2, other.relative_error**2, rtol=0.02, atol=RIDGE / 10
        )


def counts_of(layer: Layer) -> dict[Scheme, tuple[int, ...]]:
    return {scheme: (1, 2) for scheme in Scheme if layer.shape.kernel or scheme is Scheme.ENCODE}


@pytest.mark.parametrize("count", [24, 60, 200])
def test_curves_say_what_others_of_the_distribution_would_lose(count: int) -> None:
    """On average: the error of what is fitted to one half, in the true moments."""
    layer = Layer(24, 16, decay=0.1)
    found, true = [], []
    for seed in range(20):
        halves = layer.halves(count, seed)
        found.append(squared(layer.crossed(halves)))
        true += [squared(layer.curves(one, layer.truth)) for one in (halves.first, halves.second)]
    np.testing.assert_allclose(np.mean(found, axis=0), np.mean(true, axis=0), rtol=0.1, atol=RIDGE)


FEW = [(64, 48, 8), (64, 48, 24), (40, 60, 16), (60, 40, 20)]


@pytest.mark.parametrize(("f", "c", "count"), FEW, ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("shrunk", [False, True], ids=["as seen", "shrunk"])
def test_few_samples_do_not_make_a_full_rank_look_low(
    f: int, c: int, count: int, decay: float, shrunk: bool
) -> None:
    """So many directions as samples explain these without an error, and others badly.

    No factors do better on the distribution than the best ones for it, at any rank; nor do they
    look so where moments are not shrunk for having seen few samples.
    """
    layer = Layer(f, c, decay=decay)
    halves = layer.halves(count)
    if not shrunk:
        halves = Halves(
            first=replace(halves.first, uncertainty=0.0),
            second=replace(halves.second, uncertainty=0.0),
        )
        assert squared(layer.curves(halves.first))[count] < RIDGE, "it would, on these samples"
    best, found = squared(layer.curves(layer.truth)), squared(layer.crossed(halves))
    x = np.linalg.eigvalsh(layer.W @ halves.first.inputs @ layer.W.T)[::-1]
    assert x[count:].sum() <= ROUNDING * x.sum(), "nothing is left of these samples"
    assert best[count] > 0.02, "which the distribution has"
    assert found[count] > 0.9 * best[count]
    assert (found[1:] > 0.85 * best[1:] - RIDGE / 10).all()


@given(
    few=st.integers(1, 40),
    many=st.integers(1, 40),
    seed=st.integers(0, 30),
    kernel=st.sampled_from([(), (3,)]),
)
def test_errors_are_fractions_that_fall_with_rank(
    few: int, many: int, seed: int, kernel: tuple[int, ...]
) -> None:
    """From halves of any size: 1 without a rank, never more, and never rising."""
    layer = Layer(8, 6, kernel=kernel, decay=0.1)
    halves = Halves(first=layer.seen(few, seed), second=layer.seen(many, seed + 1))
    for curve in crossed_spectra(layer.W, layer.shape, halves, counts_of(layer)).curves:
        error = curve.relative_error
        assert error[0] == 1.0
        assert (error >= 0).all()
        assert (np.diff(error) <= 0).all()
        assert not error.flags.writeable


def test_the_halves_play_the_same_part() -> None:
    layer = Layer(10, 12)
    halves = Halves(first=layer.seen(30, 0), second=layer.seen(50, 1))
    other = Halves(first=halves.second, second=halves.first)
    found, expected = layer.crossed(halves), layer.crossed(other)
    assert found.norm == pytest.approx(expected.norm, rel=ROUNDING)
    for one, two in zip(found.curves, expected.curves, strict=True):
        np.testing.assert_allclose(one.relative_error, two.relative_error, rtol=ROUNDING)


def test_a_single_half_judges_itself() -> None:
    layer = Layer(10, 12)
    one = layer.seen(30, 0)
    found, expected = layer.crossed(Halves(first=one, second=one)), layer.curves(one)
    assert found.norm == expected.norm
    for curve, other in zip(found.curves, expected.curves, strict=True):
        np.testing.assert_array_equal(curve.relative_error, other.relative_error)


def test_halves_of_the_same_samples_say_nearly_the_same() -> None:
    """Two objects with the same numbers: only the ridge of the judge is another one."""
    layer = Layer(10, 12)
    found = layer.crossed(Halves(first=layer.seen(3000, 0), second=layer.seen(3000, 0)))
    expected = layer.curves(layer.seen(3000, 0))
    np.testing.assert_allclose(squared(found), squared(expected), rtol=0, atol=RIDGE)


def test_a_wide_layer_is_judged_on_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of a wide layer stand for its inputs, and the identity for its weight."""
    monkeypatch.setattr(regression, "_WIDE", 100)
    shape = LayerShape(out_features=20, in_channels=200)
    assert regression.is_wide(shape)
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((20, 20)) * np.exp(-0.05 * np.arange(20))

    def outputs(count: int) -> Moments:
        x = generator.standard_normal((count, 20)) @ mix.T
        return replace(moments(x, x), uncertainty=0.0)

    halves = Halves(first=outputs(8), second=outputs(8))
    wanted = {Scheme.ENCODE: (1,)}
    found = crossed_spectra(np.eye(20), shape, halves, wanted)
    fitted = joint_spectra(np.eye(20), shape, halves.first, wanted)
    (error,), (own,) = (
        [curve.relative_error for curve in spectra.curves] for spectra in (found, fitted)
    )
    assert own[8] ** 2 < RIDGE
    assert error[8] ** 2 > 0.1
    with pytest.raises(ValueError, match="nothing else"):
        crossed_spectra(np.eye(20), shape, halves, {Scheme.ENCODE: (1, 2)})


def test_dead_inputs_of_a_half_do_no_harm() -> None:
    """One half sees nothing but zeros: what it is judged by is the other one."""
    layer = Layer(10, 12)
    silent = predicted_moments(layer.W, layer._inputs(np.zeros((12, 12)), 5))
    for halves in ((silent, layer.seen(30, 0)), (layer.seen(30, 0), silent), (silent, silent)):
        found = layer.crossed(Halves(first=halves[0], second=halves[1]))
        for curve in found.curves:
            assert np.isfinite(curve.relative_error).all()
            assert (curve.relative_error <= 1).all()
