"""Standard errors obey the laws of those that a textbook gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from alds_onnx.evaluate.bootstrap import agreement_stderr, relative_stderr

Array = npt.NDArray[np.float64]

#: The spread of a standard deviation over 1,000 draws is 1 / √2000, or 2.2 %; four times that.
NOISE = 0.09


def known(value: float | None) -> float:
    assert value is not None
    return value


def squares(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Sums of squares of the error and of the output of each sample."""
    generator = np.random.default_rng(seed)
    return generator.gamma(2.0, 0.1, count), generator.gamma(4.0, 1.0, count)


def repeated(array: Array, times: int) -> Array:
    """Repeat what was measured, so that only the number of samples changes."""
    return np.tile(array, times)


def test_the_error_of_a_mean_is_that_of_the_textbook() -> None:
    """With outputs of norm 1, the square of the relative error is the mean of the samples."""
    noise = squares(400)[0]
    found = known(relative_stderr(noise, np.ones(400)))
    textbook = noise.std(ddof=1) / 400**0.5
    # d√m = dm / 2√m.
    assert found == pytest.approx(textbook / (2 * noise.mean() ** 0.5), rel=NOISE)


def test_the_error_of_a_ratio_is_that_of_its_linear_terms() -> None:
    noise, signal = squares(400)
    ratio = noise.sum() / signal.sum()
    textbook = (noise - ratio * signal).std(ddof=1) / 400**0.5 / signal.mean()
    found = known(relative_stderr(noise, signal))
    assert found == pytest.approx(textbook / (2 * ratio**0.5), rel=NOISE)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_few_samples_are_not_taken_to_be_too_certain(count: int) -> None:
    noise = squares(count, seed=count)[0] + 10
    found = known(relative_stderr(noise, np.ones(count)))
    textbook = noise.std(ddof=1) / count**0.5 / (2 * noise.mean() ** 0.5)
    assert found == pytest.approx(textbook, rel=NOISE)


def test_errors_fall_with_the_root_of_the_number_of_samples() -> None:
    noise, signal = squares(100)
    rows = np.ones(100)
    agreeing = (np.arange(100) % 5 > 0).astype(np.float64)
    once = relative_stderr(noise, signal), agreement_stderr(agreeing, rows)
    many = (
        relative_stderr(repeated(noise, 16), repeated(signal, 16)),
        agreement_stderr(repeated(agreeing, 16), repeated(rows, 16)),
    )
    for first, second in zip(once, many, strict=True):
        assert known(first) / known(second) == pytest.approx(4, rel=1.5 * NOISE)


def test_the_spread_is_that_of_other_samples() -> None:
    """What the standard error promises: how far the numbers of other samples are apart."""
    ratios, found = [], []
    for seed in range(200):
        noise, signal = squares(50, seed)
        ratios.append((noise.sum() / signal.sum()) ** 0.5)
        found.append(known(relative_stderr(noise, signal)))
    # The spread of 200 numbers is known to 5 %.
    assert float(np.mean(found)) == pytest.approx(float(np.std(ratios)), rel=0.15)


@pytest.mark.parametrize("agreeing", [0, 1, 20, 39, 40])
def test_an_agreement_has_at_least_the_error_of_the_rule_of_succession(agreeing: int) -> None:
    same = (np.arange(40) < agreeing).astype(np.float64)
    p = (agreeing + 1) / 42
    floor = (p * (1 - p) / 40) ** 0.5
    found = known(agreement_stderr(same, np.ones(40)))
    assert floor <= found * (1 + 1e-12)
    assert found == pytest.approx(floor, rel=NOISE)


def test_samples_that_all_agree_are_no_proof() -> None:
    errors = [known(agreement_stderr(np.ones(n), np.ones(n))) for n in (2, 10, 100, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0
    # The true agreement may well be less by about one in n.
    assert all(0.5 / n < error < 2 / n for n, error in zip((10, 100), errors[1:3], strict=True))


def test_rows_of_a_sample_that_agree_together_say_less_than_independent_ones() -> None:
    generator = np.random.default_rng(3)
    rows = np.full(200, 25.0)
    independent = generator.binomial(25, 0.8, 200).astype(np.float64)
    together = 25.0 * generator.binomial(1, 0.8, 200)
    apart, clustered = (known(agreement_stderr(a, rows)) for a in (independent, together))
    assert apart == pytest.approx((0.8 * 0.2 / 5000) ** 0.5, rel=0.5)
    assert clustered == pytest.approx((0.8 * 0.2 / 200) ** 0.5, rel=0.2)
    assert clustered > 3 * apart


def test_samples_without_rows_do_not_count() -> None:
    agreeing, rows = np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4)
    padded = np.append(agreeing, [0.0, 0.0]), np.append(rows, [0.0, 0.0])
    assert agreement_stderr(*padded) == agreement_stderr(agreeing, rows)
    assert agreement_stderr(np.zeros(3), np.array([0.0, 2.0, 0.0])) is None


def test_one_sample_says_nothing_about_others() -> None:
    one = np.ones(1)
    assert relative_stderr(one, one) is relative_stderr(0 * one, one) is None
    assert agreement_stderr(one, one) is None


def test_a_signal_in_one_sample_only_is_not_enough() -> None:
    """Some draws have no signal at all."""
    assert relative_stderr(np.ones(3), np.array([1.0, 0.0, 0.0])) is None
    assert relative_stderr(np.zeros(3), np.array([1.0, 0.0, 0.0])) == 0


def test_the_same_samples_give_the_same() -> None:
    noise, signal = squares(77)
    assert relative_stderr(noise, signal) == relative_stderr(noise.copy(), signal.copy())
    agreeing, rows = np.floor(4 * noise / noise.max()), np.full(77, 4.0)
    assert agreement_stderr(agreeing, rows) == agreement_stderr(agreeing, rows)


def test_many_samples_are_drawn_a_few_times_at_once() -> None:
    """Eight at a time here; each is one of all samples."""
    noise = squares(1 << 16)[0]
    found = known(relative_stderr(noise, np.ones(1 << 16)))
    textbook = noise.std() / (1 << 8) / (2 * noise.mean() ** 0.5)
    assert found == pytest.approx(textbook, rel=NOISE)
