"""The smallest model within a limit, measured on data that the fit did not use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.errors import DataError, LimitError, UsageError
from alds_onnx.evaluate.scores import halves
from alds_onnx.results import LimitData, LimitKind, LimitResult
from alds_onnx.search.bisection import STEP
from alds_onnx.settings import Settings, Step
from alds_onnx.steps import prepare
from alds_onnx.steps.data import Data, count_samples
from alds_onnx.steps.survey import Survey
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
    """The chosen fraction is the largest that was measured to stay within the limit.

    Where others were refused on the samples that nothing was chosen by, it is the last one that was
    measured there.
    """
    found, budget = limit_result(result), result.plan.budget
    held = [trial for trial in found.trials if trial.value <= found.limit]
    refused = [trial.removed for trial in found.refused]
    best = max((t for t in held if t.removed not in refused), key=lambda trial: trial.removed)
    assert budget is not None
    if found.checked:
        best = found.checked[-1]
        assert found.chosen == next(t.value for t in held if t.removed == best.removed)
        assert all(removed > best.removed for removed in refused)
    assert found.reached == best.value <= found.limit
    assert budget.removed == best.removed <= result.plan.removed
    failed = [t.removed for t in found.trials if t.value > found.limit]
    if not refused:
        assert len(found.trials) <= 8
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


def by_turns(runs: list[Feed]) -> tuple[tuple[Feed, ...], tuple[Feed, ...]]:
    return tuple(runs[::2]), tuple(runs[1::2])


def split(monkeypatch: pytest.MonkeyPatch, check: list[Feed] | None = None) -> None:
    """Split the data by run: 3 of 5 are fitted to, and `check` or every fifth one is the check."""

    def load(survey: Survey, settings: Settings) -> Data:
        runs = list(settings.calibration)
        return Data(
            halves=by_turns([run for i, run in enumerate(runs) if i % 5 < 3]),
            choose=tuple(runs[3::5]),
            check=tuple(runs[4::5] if check is None else check),
            num_samples=count_samples(runs),
        )

    monkeypatch.setattr(prepare, "load_data", load)


def test_an_error_with_data_is_confirmed_on_what_nothing_was_chosen_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split(monkeypatch)
    model, data = gentle(), feeds("dense", count=15)
    result = compress(max_error=0.1, calibration=data)
    check_consistency(result)
    found = limit_result(result)
    assert (found.data, found.samples, found.chosen_samples) == (LimitData.HELD_OUT, 96, 96)
    expected = relative_error(model, result.model, data[4::5])
    assert found.reached == pytest.approx(expected, rel=ROUNDING)
    expected = relative_error(model, result.model, data[3::5])
    assert found.chosen == pytest.approx(expected, rel=ROUNDING)
    assert result.report.verification is not None
    assert result.report.verification.samples == 96
    assert result.report.verification.output_error == pytest.approx(found.reached, rel=ROUNDING)


def test_a_limit_that_is_broken_on_the_check_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """White noise as the check, which no fit to correlated inputs can foresee."""
    model, data = gentle(), feeds("dense", count=10)
    noise = [{"x": normal(32, 24, seed=i)} for i in (50, 51)]
    split(monkeypatch, check=noise)
    result = compress(max_error=0.1, calibration=data)
    check_consistency(result)
    found = limit_result(result)
    assert found.refused
    assert found.refused[0].removed == max(t.removed for t in found.trials if t.value <= 0.1)
    reached = relative_error(model, result.model, noise)
    assert found.reached == pytest.approx(reached, rel=ROUNDING)
    assert found.reached <= 0.1 < found.refused[-1].value


def test_a_limit_out_of_reach_on_the_check_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch, check=[{"x": np.full((4, 24), np.nan, np.float32)}])
    with pytest.raises(UsageError, match="not finite in the original"):
        compress(max_error=0.3, calibration=feeds("dense", count=10))
    split(monkeypatch, check=[{"x": normal(32, 24)}])
    with pytest.raises(LimitError, match=r"smallest output error was 0\.\d+, with 0\.5%"):
        compress(max_error=1e-3, calibration=[{"x": np.zeros((32, 24), np.float32)}] * 10)


def test_the_check_does_not_change_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    data, found = feeds("dense", count=10), []
    for check in (None, [{"x": normal(32, 24)}]):
        split(monkeypatch, check=check)
        found.append(limit_result(compress(max_error=0.1, calibration=data, dry_run=True)))
    first, second = found
    assert first.trials == second.trials[: len(first.trials)]
    assert len(second.checked) > len(first.checked)


@pytest.mark.parametrize("missing", ["choose", "check"])
def test_too_few_runs_to_hold_some_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, one = feeds("dense", count=4), tuple(feeds("dense", count=1, seed=9))
    parts = {"choose": one, "check": one, missing: ()}
    data = Data(halves=by_turns(runs), num_samples=160, **parts)
    monkeypatch.setattr(prepare, "load_data", lambda survey, settings: data)
    result = compress(max_error=0.1, calibration=runs)
    found = limit_result(result)
    assert (found.data, found.samples, found.checked) == (LimitData.FITTED, 128, ())
    expected = "measured on the 128 samples that the factors were fitted to: there are too few"
    assert any(expected in warning for warning in result.report.warnings)


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


def lost(model: ModelProto, data: dict[str, Array], numbers: Array) -> float:
    """The points of top-1 that a model loses on some of the labelled samples."""
    (y,) = run(model, {"x": data["x"][numbers]})
    return float(100 * (y.argmax(axis=1) != data["labels"][numbers]).mean())


@pytest.mark.parametrize("limit", [4, 10])
def test_a_drop_of_top_1_holds_on_both_halves(limit: float) -> None:
    """One half chooses, and the report is of the other."""
    data = labelled()
    result = compress(max_drop=limit, evaluate=data, seed=3)
    check_consistency(result)
    found, score = limit_result(result), result.report.scores[0]
    assert (found.kind, found.data) == (LimitKind.MAX_DROP, LimitData.LABELLED)
    assert (found.samples, found.chosen_samples, score.samples) == (100, 100, 100)
    check, choose = halves(data["labels"], 3)
    assert found.reached == score.drop == pytest.approx(lost(result.model, data, check))
    assert found.chosen == pytest.approx(lost(result.model, data, choose))
    assert 0 <= found.reached <= limit
    assert found.chosen is not None
    assert found.chosen <= limit
    assert score.held_out is True
    assert found.stderr == score.drop_stderr
    share = found.reached / 100
    assert score.drop_stderr == pytest.approx(max(1.0, 100 * (share * (1 - share) / 99) ** 0.5))


def test_a_drop_that_is_broken_on_the_other_half_is_not_kept() -> None:
    """The half that chooses is of sure cases, the other one of all kinds."""
    pool = normal(4000, 24)
    (y,) = run(gentle(), {"x": pool})
    margin = np.diff(np.sort(y, axis=1)[:, -2:], axis=1)[:, 0]
    common = np.argsort(-np.bincount(y.argmax(axis=1)))[:3]
    labels = common[np.arange(120) % 3]
    check, choose = halves(labels, 0)
    x = np.empty((120, 24), np.float32)
    for kind in common:
        members = np.flatnonzero(y.argmax(axis=1) == kind)
        ordered = pool[members[np.argsort(margin[members])]]
        others, sure = check[labels[check] == kind], choose[labels[choose] == kind]
        x[others], x[sure] = (
            ordered[:: len(ordered) // len(others)][: len(others)],
            ordered[-len(sure) :],
        )
    data = {"x": x, "labels": labels}
    result = compress(max_drop=5, evaluate=data)
    check_consistency(result)
    found = limit_result(result)
    assert found.refused
    assert found.reached == pytest.approx(lost(result.model, data, check))
    assert found.reached <= 5 < found.refused[-1].value


def test_few_labelled_samples_are_not_split() -> None:
    data = {name: array[:7] for name, array in labelled().items()}
    result = compress(max_drop=20, evaluate=data)
    check_consistency(result)
    found = limit_result(result)
    assert (found.samples, found.chosen_samples, found.checked) == (7, None, ())
    assert result.report.scores[0].held_out is False
    expected = "all 7 labelled samples chose the model that they score"
    assert any(expected in warning for warning in result.report.warnings)
    data = {name: array[:8] for name, array in labelled().items()}
    result = compress(max_drop=20, evaluate=data)
    assert limit_result(result).samples == 4
    assert not any(" chose the model" in warning for warning in result.report.warnings)


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
