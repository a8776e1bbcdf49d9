"""A correct rewrite passes; a wrong one fails, however small its effect on the output."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from alds_onnx.evaluate import verify as module
from alds_onnx.evaluate.samples import Kind, Samples
from alds_onnx.evaluate.sessions import Execution, Outputs, Session
from alds_onnx.evaluate.verify import TOLERANCES, Candidates, verify
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from alds_onnx.results import Latency, Status, Verification
from tests.graph.builders import Array, normal, parse, replacements_of

ONE = Execution(threads=1)
TOLERANCE = TOLERANCES[TensorProto.FLOAT]


@pytest.fixture(autouse=True)
def _no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes a second, and has its own tests."""
    time = Latency(median_ms=2.0, low_ms=1.0, high_ms=3.0, runs=5)
    monkeypatch.setattr(module, "measure", lambda *args: (time, replace(time, median_ms=1.0)))


def two_layers(middle: str = "a = Relu(h)", scale: float = 1.0) -> ModelProto:
    return parse(
        f"g (float[3, 8] x) => (float[3, 12] y) {{ h = MatMul(x, W) {middle} r = MatMul(a, V) "
        "s = Mul(r, c) y = Add(s, k) }",
        {
            "W": normal(8, 12),
            "V": normal(12, 12),
            "c": np.float32(scale),
            "k": normal(12, seed=3),
        },
    )


def candidates(model: ModelProto, layers: tuple[str, ...] = ("h", "r")) -> Candidates:
    replacements = replacements_of(model, 2, 2)
    return Candidates(
        original=model,
        compressed=rewrite(model, replacements),
        composed=with_composed_weights(model, replacements),
        layers=layers,
        folder=Path(),
        kept=lambda: with_composed_weights(model, replacements),
    )


def kind(feeds: Sequence[dict[str, Array]], example: int = 0) -> Kind:
    return Kind(example=example, feeds=tuple(feeds))


def check(models: Candidates, tolerance: float = TOLERANCE, runs: int = 2) -> Verification:
    feeds: tuple[dict[str, Array], ...] = tuple({"x": normal(3, 8, seed=i)} for i in range(runs))
    return verify(models, Samples(feeds=feeds, random=True), ONE, tolerance)


def perturbed(models: Candidates, tensor: str, factor: float) -> Candidates:
    """Make a compressed model with a wrong factor."""
    compressed = ModelProto()
    compressed.CopyFrom(models.compressed)
    (found,) = [t for t in compressed.graph.initializer if t.name == tensor]
    wrong = numpy_helper.to_array(found) * np.float32(factor)
    found.CopyFrom(numpy_helper.from_array(wrong, tensor))
    return replace(models, compressed=compressed)


def test_right_rewrite_passes() -> None:
    found = check(candidates(two_layers()))
    assert found.status is Status.PASSED
    assert found.reason == ""
    assert found.difference is not None
    assert 0 <= found.difference <= TOLERANCE == found.tolerance
    assert (found.samples, found.random_inputs, found.threads) == (6, True, 1)
    assert found.input_shapes == (("x", (3, 8)),)
    assert found.latency_ratio == 0.5
    assert [output.name for output in found.fidelity] == ["y"]


def test_fidelity_is_against_the_original() -> None:
    """The cost of rank 2, and not the rounding of the rewrite."""
    found = check(candidates(two_layers()))
    assert found.fidelity[0].relative_l2 > 0.1


@pytest.mark.parametrize("factor", [1.01, 0.0, -1.0, float("nan")])
@pytest.mark.parametrize("tensor", ["W/encoder", "W/decoder", "V/encoder", "V/decoder"])
def test_wrong_factor_fails(tensor: str, factor: float) -> None:
    found = check(perturbed(candidates(two_layers()), tensor, factor))
    assert found.status is Status.FAILED
    assert "outputs differ by" in found.reason


@pytest.mark.parametrize("tensor", ["W/encoder", "V/decoder"])
def test_wrong_layer_fails_though_the_output_hides_it(tensor: str) -> None:
    model = two_layers(scale=1e-9)
    right = candidates(model)
    assert check(right).status is Status.PASSED
    wrong = perturbed(right, tensor, 1.01)
    assert check(wrong).status is Status.FAILED
    assert check(replace(wrong, layers=())).status is Status.PASSED  # what the outputs alone say


def test_wrong_output_fails_though_no_layer_is_in_the_main_graph() -> None:
    wrong = perturbed(candidates(two_layers(), layers=()), "V/decoder", 1.01)
    assert check(wrong).status is Status.FAILED


def test_every_sample_counts() -> None:
    """A factor that matters for the second sample only: inputs of the first are zero."""
    wrong = perturbed(candidates(two_layers(), layers=()), "W/encoder", 1.01)
    feeds = ({"x": np.zeros((3, 8), np.float32)}, {"x": normal(3, 8)})
    for count, status in ((1, Status.PASSED), (2, Status.FAILED)):
        samples = Samples(feeds=feeds[:count], random=False)
        found = verify(wrong, samples, ONE, TOLERANCE)
        assert found.status is status
        assert not found.random_inputs


def inputs(count: int, *, size: int = 3, seed: int = 0) -> tuple[dict[str, Array], ...]:
    return tuple({"x": normal(size, 8, seed=seed + i)} for i in range(count))


def test_fidelity_is_of_all_runs_and_exactness_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = candidates(two_layers(), layers=())
    runs: Counter[Session] = Counter()
    original = Session.run

    def counted(self: Session, *args: Any) -> Outputs:
        runs[self] += 1
        return original(self, *args)

    monkeypatch.setattr(Session, "run", counted)
    others = inputs(3, seed=99)
    samples = Samples(feeds=inputs(40), random=False, left_out=(kind(others[:2]), kind(others[2:])))
    found = verify(models, samples, ONE, TOLERANCE)
    assert found.samples == 120
    # The original runs the first one twice: does it repeat itself?
    assert sorted(runs.values()) == [3, 16, 40, 44]
    few = verify(models, replace(samples, feeds=samples.feeds[:16]), ONE, TOLERANCE)
    assert few.difference == found.difference
    assert few.fidelity != found.fidelity


def test_errors_have_standard_errors_that_fall_with_the_samples() -> None:
    models = candidates(two_layers(), layers=())
    few, many = (
        verify(models, Samples(feeds=inputs(n), random=False), ONE, TOLERANCE) for n in (10, 40)
    )
    first, second = (found.fidelity[0].relative_l2_stderr for found in (few, many))
    assert first is not None
    assert second is not None
    assert 0 < second < first


def test_kinds_left_out_are_measured_apart() -> None:
    models = candidates(two_layers(), layers=())
    kept, others = inputs(5), inputs(4, size=3, seed=77)
    left_out = (kind(others[:1], example=5), kind(others[1:], example=9))
    samples = Samples(feeds=kept, random=False, held_out=True, left_out=left_out)
    found = verify(models, samples, ONE, TOLERANCE)
    assert found.held_out
    assert found.left_out is not None
    assert (found.left_out.kinds, found.left_out.samples) == (2, 12)
    alone, first, second = (
        verify(models, Samples(feeds=part, random=False), ONE, TOLERANCE)
        for part in (others, others[:1], others[1:])
    )
    for one, other in zip(found.left_out.fidelity, alone.fidelity, strict=True):
        assert one.relative_l2 == pytest.approx(other.relative_l2, rel=1e-6)
        assert one.relative_l2_stderr >= other.relative_l2_stderr, "kinds differ more than samples"
    worst = max((first.output_error, 5, 3), (second.output_error, 9, 9))
    assert found.left_out.worst is not None
    assert found.left_out.worst.output_error == pytest.approx(worst[0], rel=1e-6)
    assert (found.left_out.worst.example, found.left_out.worst.samples) == worst[1:]
    assert (alone.held_out, alone.left_out) == (False, None)
    plain = verify(models, Samples(feeds=kept, random=False), ONE, TOLERANCE)
    assert found.fidelity == plain.fidelity


def test_a_large_model_gives_the_same_with_one_session_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = candidates(two_layers())
    samples = Samples(feeds=inputs(20), random=False, left_out=(kind(inputs(3, seed=9)),))
    both = verify(models, samples, ONE, TOLERANCE)
    monkeypatch.setattr(module, "is_large", lambda model: True)
    opened: set[int] = set()
    most = 0
    make = Session.__init__

    def counted(self: Session, *args: Any) -> None:
        nonlocal most
        make(self, *args)
        opened.add(id(self))
        weakref.finalize(self, opened.discard, id(self))
        most = max(most, len(opened))

    monkeypatch.setattr(Session, "__init__", counted)
    one = verify(models, samples, ONE, TOLERANCE)
    assert most == 1
    assert one.latency_before is None
    assert one == replace(both, latency_before=None, latency_after=None)


def test_an_original_that_fails_on_a_later_run_is_not_validated() -> None:
    model = parse("g (float[N, 8] x) => (float[N, 8] y) { s = MatMul(x, W) y = Add(s, k) }",
                  {"W": normal(8, 8), "k": normal(3, 8)})  # fmt: skip
    models = candidates(model, layers=())
    feeds = (*inputs(2), *inputs(1, size=2))
    for samples in (
        Samples(feeds=feeds, random=False),
        Samples(feeds=feeds[:2], random=False, left_out=(kind(feeds[2:]),)),
    ):
        found = verify(models, samples, ONE, TOLERANCE)
        assert found.status is Status.NOT_VALIDATED
        assert found.reason.startswith("the original: onnxruntime")


def test_an_output_that_is_not_finite_in_a_late_run_is_noted() -> None:
    feeds = list(inputs(20))
    feeds[19] = {"x": np.full((3, 8), np.inf, np.float32)}
    models = candidates(two_layers(), layers=())
    found = verify(models, Samples(feeds=tuple(feeds), random=False), ONE, TOLERANCE)
    assert found.fidelity[0].note == "not finite in the original"
    # The first runs can still tell a wrong rewrite.
    wrong = perturbed(models, "W/encoder", 1.01)
    found = verify(wrong, Samples(feeds=tuple(feeds), random=False), ONE, TOLERANCE)
    assert found.status is Status.FAILED


def test_original_that_does_not_load() -> None:
    models = candidates(two_layers())
    broken = parse("g (float[3, 8] x) => (float[3, 8] y) { y = com.No(x) }", imports=', "com" : 1')
    found = check(replace(models, original=broken))
    assert found.status is Status.NOT_VALIDATED
    assert found.reason.startswith("the original: onnxruntime")


def test_compressed_model_that_does_not_load() -> None:
    broken = parse("g (float[3, 8] x) => (float[3, 8] y) { y = com.No(x) }", imports=', "com" : 1')
    found = check(replace(candidates(two_layers()), compressed=broken))
    assert found.status is Status.FAILED
    assert found.reason.startswith("the compressed model: onnxruntime")


def test_compressed_model_that_does_not_run() -> None:
    models = candidates(two_layers())
    other = parse("g (float[3, 9] x) => (float[3, 9] y) { y = Relu(x) }")
    assert check(replace(models, compressed=other)).status is Status.FAILED


NOISE = "n = RandomNormalLike(h) m = Add(h, n) a = Relu(m)"


@pytest.mark.parametrize("layers", [("h", "r"), ("h",), ()])
def test_random_operators_are_noted_not_blamed(layers: tuple[str, ...]) -> None:
    """Downstream of noise nothing can be compared: neither the output nor the second layer."""
    found = check(candidates(two_layers(NOISE), layers))
    assert found.status is Status.PASSED
    assert found.fidelity[0].note == "differs from run to run of the original"


def test_layers_before_a_random_operator_are_checked() -> None:
    models = candidates(two_layers(NOISE))
    assert check(perturbed(models, "W/encoder", 1.01)).status is Status.FAILED


def test_rounding_from_run_to_run_is_no_random_operator() -> None:
    """Reductions on a GPU differ in the last digits, and are still compared."""
    noise = "n = RandomNormalLike(h) e = Mul(n, tiny) m = Add(h, e) a = Relu(m)"
    model = two_layers(noise)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e-7), "tiny"))
    models = candidates(model)
    found = check(models)
    assert found.status is Status.PASSED
    assert found.fidelity[0].note == ""
    assert check(perturbed(models, "V/decoder", 1.01)).status is Status.FAILED


def test_layer_that_is_an_output_already() -> None:
    model = parse("g (float[3, 8] x) => (float[3, 12] h) { h = MatMul(x, W) }",
                  {"W": normal(8, 12)})  # fmt: skip
    assert check(candidates(model, ("h",))).status is Status.PASSED


def test_scalar_inputs_are_one_sample() -> None:
    model = parse("g (float x) => (float y) { y = Relu(x) }")
    models = Candidates(original=model, compressed=model, composed=model, layers=(), folder=Path())
    feeds = ({"x": np.array(1.0, np.float32)},)
    assert verify(models, Samples(feeds=feeds, random=False), ONE, 0.0).samples == 1


def test_tolerances_grow_with_the_roundoff() -> None:
    kinds = (TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    assert list(TOLERANCES.values()) == sorted(TOLERANCES[kind] for kind in kinds)
    assert max(TOLERANCES.values()) < 1  # a wrong rewrite is off by about 1


def test_layers_that_overflow_in_the_original_are_not_compared() -> None:
    """Whether a sum overflows depends on its order; Min brings the output back into range."""
    model = two_layers("t = Min(h, top) a = Max(t, bottom)")
    for tensor in model.graph.initializer:
        if tensor.name == "W":
            tensor.CopyFrom(numpy_helper.from_array(normal(8, 12) * np.float32(1.2e38), "W"))
    for name, value in (("top", 1.0), ("bottom", -1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    found = check(candidates(model))
    assert found.status is Status.PASSED
    (output,) = found.fidelity
    assert not output.note
