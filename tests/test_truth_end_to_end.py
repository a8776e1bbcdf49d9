"""What is reported is what fresh samples show, for a classifier with more classes than samples.

The distribution of the inputs is known, so that there are as many fresh samples as wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.split import Split, split
from alds_onnx.results import LimitData, OutputFidelity, Verification
from alds_onnx.steps import data as data_step
from tests.graph.builders import Array, normal, parse, run

INPUTS, HIDDEN, CLASSES = 128, 192, 300
# Of so many samples, two thirds are fitted to, and the others checked.
SAMPLES, FITTED, CHECKED = 96, 64, 32
# Of so many, twice as many are fitted to.
MORE = 171
RATIOS, SEEDS = (0.1, 0.4), (0, 1)
# A normal number is further off in 3 of 1,000 cases.
SURE = 3.0
# The same sums in another order.
ROUNDING = 1e-5

CLASSIFIER = f"""m (float[N,{INPUTS}] x) => (float[N,{CLASSES}] y) {{
    h = Gemm(x, w1, b1) a = Relu(h) y = Gemm(a, w2, b2)
}}"""


def classifier() -> ModelProto:
    """Random weights of full rank."""
    weights = {"w1": normal(INPUTS, HIDDEN), "w2": normal(HIDDEN, CLASSES)}
    scaled = {name: weight / len(weight) ** 0.5 for name, weight in weights.items()}
    biases = {"b1": normal(HIDDEN) / 4, "b2": normal(CLASSES) / 8}
    return parse(CLASSIFIER, scaled | biases)


def fresh() -> Array:
    """Samples that nothing else draws."""
    return draw(2000, 100)


def draw(count: int, seed: int) -> Array:
    """Correlated inputs: a few directions have most of the power, and none has nothing."""
    mix = normal(INPUTS, INPUTS, seed=7) * np.exp(-0.04 * np.arange(INPUTS))[:, None] / 3
    generator = np.random.default_rng([seed, count])
    return np.asarray(generator.standard_normal((count, INPUTS)) @ mix, np.float32)


@dataclass(frozen=True)
class Number:
    """A number and its standard error."""

    value: float
    stderr: float

    def is_near(self, other: Number) -> bool:
        return abs(self.value - other.value) <= SURE * math.hypot(self.stderr, other.stderr)


def truth(model: ModelProto, result: alds_onnx.Result, x: Array) -> tuple[Number, Number]:
    """The output error and the share of the same top-1; standard errors of blocks of samples."""
    (y,), (z,) = run(model, {"x": x}), run(result.model, {"x": x})
    noise, signal = ((y - z) ** 2).sum(axis=1), (y**2).sum(axis=1)
    same = (y.argmax(axis=1) == z.argmax(axis=1)).astype(float)
    blocks = zip(np.split(noise, 20), np.split(signal, 20), strict=True)
    errors = [math.sqrt(a.sum() / b.sum()) for a, b in blocks]
    return (
        Number(math.sqrt(noise.sum() / signal.sum()), float(np.std(errors, ddof=1) / 20**0.5)),
        Number(float(same.mean()), float(same.std() / len(same) ** 0.5)),
    )


def verification(result: alds_onnx.Result) -> Verification:
    assert result.report.verification is not None
    return result.report.verification


def reported(found: OutputFidelity) -> tuple[Number, Number]:
    assert found.relative_l2_stderr is not None
    assert found.top1_agreement is not None
    assert found.top1_agreement_stderr is not None
    return (
        Number(found.relative_l2, found.relative_l2_stderr),
        Number(found.top1_agreement, found.top1_agreement_stderr),
    )


def compress(seed: int, **options: Any) -> alds_onnx.Result:
    settings: dict[str, Any] = {"threads": 1} | options
    data = [{"x": draw(SAMPLES, seed)}]
    return alds_onnx.compress(classifier(), calibration=data, **settings)


@pytest.fixture(scope="module")
def results() -> list[alds_onnx.Result]:
    """At two ratios, from two sets of samples."""
    return [compress(seed, cr=cr) for cr in RATIOS for seed in SEEDS]


def test_what_is_reported_is_what_fresh_samples_show(results: list[alds_onnx.Result]) -> None:
    model, x = classifier(), fresh()
    for result in results:
        checks = verification(result)
        assert checks.held_out
        assert checks.samples == CHECKED
        for said, true in zip(reported(checks.fidelity[0]), truth(model, result, x), strict=True):
            assert said.stderr < 0.1
            assert said.is_near(true), (said, true)


def test_the_learning_curve_falls(results: list[alds_onnx.Result]) -> None:
    """With half of the samples the same ranks do worse; the curve goes on from there."""
    for result in results:
        curve = verification(result).learning
        assert curve is not None
        half, whole = curve.measured
        assert (half.samples, whole.samples) == (FITTED / 2, FITTED)
        assert half.output_error > whole.output_error > curve.expected.output_error > 0


def test_twice_as_many_samples_do_as_was_expected(results: list[alds_onnx.Result]) -> None:
    """Factors of the same ranks for others of the distribution, on fresh samples."""
    model = classifier()
    for result in results:
        curve = verification(result).learning
        assert curve is not None
        more = [{"x": draw(MORE, 50)}]
        again = alds_onnx.compress(model, plan=result.plan, calibration=more, threads=1)
        learnt = verification(again).learning
        assert learnt is not None
        assert learnt.measured[1].samples == curve.expected.samples == 2 * FITTED
        true = error(model, again, fresh())
        assert curve.expected.output_error == pytest.approx(true, rel=0.08)
        assert curve.measured[1].output_error > 1.02 * true


def hidden(x: Array) -> Array:
    """What the classifier layer sees."""
    model = classifier()
    constants = {t.name: np.frombuffer(t.raw_data, np.float32) for t in model.graph.initializer}
    h = x @ constants["w1"].reshape(INPUTS, HIDDEN) + constants["b1"]
    return np.maximum(h, 0)


def test_a_layer_with_more_outputs_than_samples_does_not_look_compressible(
    results: list[alds_onnx.Result],
) -> None:
    """No error in its curve is below that of the best factors for fresh samples.

    Factors of a rank that is the number of samples reproduce these without an error.
    """
    weight = normal(HIDDEN, CLASSES) / HIDDEN**0.5
    outputs = hidden(fresh()) @ weight
    power = np.linalg.svd(outputs - outputs.mean(axis=0), compute_uv=False) ** 2
    best = np.sqrt(1 - np.concatenate([[0], np.cumsum(power)]) / power.sum())
    assert best[FITTED] > 0.2
    for result in results:
        assert result.report.evidence is not None
        (own,) = (one for one in result.report.evidence.weights if one.layers == ("y",))
        for curve in own.curves:
            ranks, errors = np.array(curve.ranks), np.array(curve.errors)
            assert ranks.max() > FITTED
            assert (errors >= 0.9 * best[ranks]).all()


def test_a_layer_with_more_outputs_than_samples_keeps_its_rank(
    results: list[alds_onnx.Result],
) -> None:
    """A small budget needs no rank as small as the number of samples; and the row says its error.

    That of fresh samples is no larger, because the row is about factors for half of the samples.
    """
    for result in results[: len(SEEDS)]:
        first, row = result.plan.layers
        assert first.cut is None, "all that is lost is lost in the classifier layer"
        assert row.cut is not None
        assert row.cut.rank > FITTED
        (y,), (z,) = (run(model, {"x": fresh()}) for model in (classifier(), result.model))
        true = np.linalg.norm(y - z) / np.linalg.norm(y - y.mean(axis=0))
        assert row.local_error is not None
        assert 0.5 * row.local_error < true < row.local_error


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """The splits that are made."""
    made: list[Split] = []

    def noted(*args: Any, **options: Any) -> Split:
        made.append(split(*args, **options))
        return made[-1]

    monkeypatch.setattr(data_step, "split", noted)
    return made


def test_a_limit_reports_the_samples_that_nothing_was_chosen_by(parts: list[Split]) -> None:
    """The error is that of the check, those that chose are said apart; and it is the truth."""
    limit, model = 0.3, small()
    x = draw(SAMPLES, 3)
    result = alds_onnx.compress(model, max_error=limit, calibration=[{"x": x}], threads=1)
    (split_,), found = parts, result.report.limit_result
    assert found is not None
    assert found.data is LimitData.HELD_OUT
    assert (found.samples, found.chosen_samples) == (CHECKED, len(split_.choose))
    assert found.reached == pytest.approx(error(model, result, x[split_.check]), rel=ROUNDING)
    assert found.chosen == pytest.approx(error(model, result, x[split_.choose]), rel=ROUNDING)
    assert found.reached != pytest.approx(found.chosen, rel=100 * ROUNDING)
    assert max(found.reached, found.chosen or 0.0) <= limit
    checks = verification(result)
    assert checks.samples == CHECKED
    assert checks.output_error == pytest.approx(found.reached, rel=ROUNDING)
    said, _ = reported(checks.fidelity[0])
    true, _ = truth(model, result, fresh())
    assert said.is_near(true), (said, true)


def small() -> ModelProto:
    """One layer, so that attempts are fast."""
    text = f"m (float[N,{INPUTS}] x) => (float[N,40] y) {{ h = Gemm(x, w, b) y = Relu(h) }}"
    return parse(text, {"w": normal(INPUTS, 40) / INPUTS**0.5, "b": normal(40) / 4})


def error(model: ModelProto, result: alds_onnx.Result, x: Array) -> float:
    """The output error on these samples."""
    (y,), (z,) = run(model, {"x": x}), run(result.model, {"x": x})
    return float(np.linalg.norm(y - z) / np.linalg.norm(y))
