"""The smallest model within a limit, measured on data that the fit did not use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.errors import DataError, LimitError, UsageError
from alds_onnx.limits import LimitData, LimitKind, LimitResult
from alds_onnx.search.bisection import STEP
from alds_onnx.settings import Step
from tests.graph.builders import Array, normal, parse, run
from tests.steps.nets import DENSE, feeds, models, relative_error

#: The same sums in another order.
ROUNDING = 1e-5


def gentle() -> ModelProto:
    """Weights with falling singular values, so that errors grow slowly with compression."""

    def weight(rows: int, columns: int) -> Array:
        u, _, vh = np.linalg.svd(normal(rows, columns), full_matrices=False)
        return np.asarray((u * 0.75 ** np.arange(u.shape[1])) @ vh, np.float32)

    return parse(DENSE, {"w1": weight(24, 32), "b1": normal(32), "w2": weight(32, 16)})


def compress(m: ModelProto | None = None, **options: Any) -> alds_onnx.Result:
    return alds_onnx.compress(gentle() if m is None else m, **({"threads": 1} | options))


def limit_result(result: alds_onnx.Result) -> LimitResult:
    assert result.report.limit_result is not None
    return result.report.limit_result


def check_consistency(result: alds_onnx.Result) -> None:
    """The chosen fraction is the largest that was measured to stay within the limit."""
    found, budget = limit_result(result), result.plan.budget
    held = [trial for trial in found.trials if trial.value <= found.limit]
    best = max(held, key=lambda trial: trial.removed)
    assert found.reached == best.value <= found.limit
    assert budget is not None
    assert budget.removed == best.removed <= result.plan.removed
    assert len(found.trials) <= 8
    failed = [t.removed for t in found.trials if t.value > found.limit]
    assert not failed or min(failed) - best.removed < STEP * 1.001


@pytest.mark.parametrize("limit", [0.1, 0.3])
def test_an_error_without_data_is_measured_on_random_inputs(limit: float) -> None:
    result = compress(max_error=limit)
    check_consistency(result)
    found, verification = limit_result(result), result.report.verification
    assert (found.kind, found.data) == (LimitKind.MAX_ERROR, LimitData.RANDOM)
    assert verification is not None
    fidelity = max(output.relative_l2 for output in verification.fidelity)
    assert found.reached == pytest.approx(fidelity, rel=ROUNDING)
    # The same ratio, asked for directly, gives the same model.
    assert result.plan.budget is not None
    again = compress(cr=result.plan.budget.removed)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_an_error_with_data_is_measured_on_what_was_held_out() -> None:
    model, data = gentle(), feeds("dense", count=10)
    result = compress(max_error=0.1, calibration=data)
    check_consistency(result)
    found = limit_result(result)
    assert (found.data, found.samples) == (LimitData.HELD_OUT, 64)
    expected = relative_error(model, result.model, data[4::5])
    assert found.reached == pytest.approx(expected, rel=ROUNDING)
    # What was held out had no part in the fit: other numbers there, same model.
    removed = result.plan.budget.removed if result.plan.budget else 0.0
    kept = [feed for i, feed in enumerate(data) if i % 5 != 4]
    again = compress(cr=removed, calibration=kept, dry_run=True)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    assert result.report.verification is not None
    assert result.report.verification.samples == 64


def test_too_few_runs_to_hold_some_out() -> None:
    result = compress(max_error=0.1, calibration=feeds("dense", count=4))
    assert limit_result(result).data is LimitData.FITTED
    assert any("4 runs are too few" in warning for warning in result.report.warnings)


def test_same_bytes_on_any_number_of_threads() -> None:
    model = models()["conv"]
    first, second = (
        compress(model, max_error=0.3, threads=threads, dry_run=True) for threads in (1, 2)
    )
    assert first.report.limit_result == second.report.limit_result
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_a_limit_out_of_reach_is_an_error_that_says_what_was_reached() -> None:
    with pytest.raises(LimitError, match=r"smallest output error was 0\.\d+, with 0\.5%") as caught:
        compress(max_error=1e-6)
    assert caught.value.exit_code == 1
    numbers = iter([1.0])
    with pytest.raises(LimitError, match="smallest drop was nan"):
        compress(max_drop=1.0, evaluate=lambda run_model: next(numbers, float("nan")))


def labelled() -> dict[str, Array]:
    x = normal(200, 24)
    (y,) = run(gentle(), {"x": x})
    return {"x": x, "labels": y.argmax(axis=1)}


def test_a_drop_of_top_1() -> None:
    data = labelled()
    result = compress(max_drop=10, evaluate=data)
    check_consistency(result)
    found = limit_result(result)
    assert (found.kind, found.data, found.samples) == (
        LimitKind.MAX_DROP,
        LimitData.LABELLED,
        200,
    )
    (y,) = run(result.model, {"x": data["x"]})
    wrong = int((y.argmax(axis=1) != data["labels"]).sum())
    assert found.reached == wrong / 2 == result.report.scores[0].drop
    assert 0 < found.reached <= 10


def test_a_drop_of_a_function_in_its_own_units() -> None:
    """A function that counts its calls: the original first, then each attempt once."""
    calls = []

    def falling(run_model: Any) -> float:
        calls.append(run_model({"x": normal(2, 24)}))
        return 100.0 - 3 * (len(calls) > 3)

    result = compress(max_drop=2.5, evaluate=falling)
    check_consistency(result)
    found = limit_result(result)
    assert [trial.value for trial in found.trials[:3]] == [0.0, 0.0, 3.0]
    assert (found.data, found.samples, found.reached) == (LimitData.FUNCTION, None, 0.0)
    assert len(calls) == 1 + len(found.trials)


def test_no_drop_at_all_may_be_asked_for() -> None:
    result = compress(max_drop=0, evaluate=lambda run_model: 1.0)
    assert limit_result(result).reached == 0.0
    assert result.plan.removed > 0.8, "nothing was ever lost: as far as the ranks go"


def test_a_dry_run_searches_but_checks_nothing() -> None:
    result = compress(max_drop=10, evaluate=labelled(), dry_run=True)
    check_consistency(result)
    assert result.report.verification is None
    assert result.report.scores[0].drop == limit_result(result).reached


def test_the_progress_counts_the_attempts() -> None:
    seen: list[tuple[Step, int, int]] = []
    result = compress(
        max_error=0.3, progress=lambda step, done, total: seen.append((step, done, total))
    )
    attempts = [(done, total) for step, done, total in seen if step is Step.ATTEMPT]
    trials = len(limit_result(result).trials)
    assert attempts == [(i, attempts[0][1]) for i in range(1, trials + 1)]
    assert trials <= attempts[0][1] <= 8
    steps = [step for step, _, _ in seen]
    assert steps.count(Step.MEASURE) >= trials
    assert dict(result.report.seconds)["measure"] > 0


def test_outputs_that_cannot_be_compared() -> None:
    text = "m (float[N,24] x) => (int64[N,1] i) { y = MatMul(x, w) i = ArgMax<axis = 1>(y) }"
    m = parse(text, {"w": normal(24, 32)})
    with pytest.raises(UsageError, match=r"'i' \(of type int64\); use --max-drop"):
        compress(m, max_error=0.1)


def test_a_model_that_does_not_run() -> None:
    text = "m (float[N,24] x) => (float[N,32] y) { h = MatMul(x, w) y = odd.Op(h) }"
    m = parse(text, {"w": normal(24, 32)}, imports=', "odd" : 1')
    with pytest.raises(DataError, match="--max-error cannot be measured"):
        compress(m, max_error=0.1)


def test_a_model_without_layers_stays_whole() -> None:
    result = compress(parse("m (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), max_error=0.1)
    assert limit_result(result).trials == ()
    assert result.plan.budget is None
    assert any("unchanged" in warning for warning in result.report.warnings)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="give one of"):
        compress(cr=0.5, max_error=0.1)
    with pytest.raises(UsageError, match="--evaluate"):
        compress(max_drop=1.0)
    assert np.isfinite(STEP)
