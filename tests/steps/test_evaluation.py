"""Scores before and after agree with an independent computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.errors import AldsError, DataError, UsageError
from alds_onnx.evaluate.scores import Run
from tests.graph.builders import Array, normal, parse, run

CR = 0.5
COUNT = 70  # two runs of 32 samples, and one of 6


def model(batch: str = "N", outputs: str = "float[N,9] y", rest: str = "") -> ModelProto:
    text = (
        f"m (float[{batch},24] x) => ({outputs}) {{ h = MatMul(x, w1) y = MatMul(h, w2) {rest} }}"
    )
    return parse(text, {"w1": normal(24, 32), "w2": normal(32, 9)})


def labelled(count: int = COUNT) -> dict[str, Array]:
    """Make labels that the model mostly gets right."""
    x = normal(count, 24)
    (y,) = run(model(), {"x": x})
    labels = y.argmax(axis=1)
    labels[::7] = (labels[::7] + 1) % 9
    return {"x": x, "labels": labels.astype(np.int64)}


def compress(evaluate: Any, m: ModelProto | None = None, **options: Any) -> alds_onnx.Result:
    return alds_onnx.compress(
        model() if m is None else m, **({"cr": CR, "threads": 1} | options), evaluate=evaluate
    )


def place(k: int, scores: Array, labels: Array) -> Array:
    """Which samples have their label among the k highest scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.asarray((order[:, :k] == labels[:, None]).any(axis=1))


def top(k: int, scores: Array, labels: Array) -> float:
    return float(place(k, scores, labels).mean())


@pytest.mark.parametrize("threads", [1, 2])
def test_top_1_and_top_5(threads: int) -> None:
    data = labelled()
    result = compress(data, threads=threads)
    (before,), (after,) = (run(m, {"x": data["x"]}) for m in (model(), result.model))
    assert [score.name for score in result.report.scores] == ["top-1", "top-5"]
    for k, score in zip((1, 5), result.report.scores, strict=True):
        assert score.before == top(k, before, data["labels"])
        assert score.after == top(k, after, data["labels"])
        assert (score.samples, score.output, score.held_out) == (COUNT, "y", True)
        right = [place(k, scores, data["labels"]) for scores in (before, after)]
        lost = right[0].astype(float) - right[1]
        noise = max(1 / COUNT, (lost.var(ddof=1) / COUNT) ** 0.5)
        assert score.drop_stderr == pytest.approx(100 * noise)
        assert score.drop == pytest.approx(100 * lost.mean())
    assert result.report.scores[0].before > 0.8


def test_a_file_is_the_same_as_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **labelled(), other=np.zeros(3))
    assert compress(tmp_path / "data.npz").report.scores == compress(labelled()).report.scores


@pytest.mark.parametrize("batch", [1, 8, 100])
def test_every_sample_counts_where_the_batch_is_fixed(batch: int) -> None:
    m = model(str(batch), f"float[{batch},9] y")
    assert compress(labelled(), m).report.scores == compress(labelled()).report.scores


@pytest.mark.parametrize("batch", [8, 100])
def test_halves_of_samples_are_scored_where_the_batch_is_fixed(batch: int) -> None:
    m = model(str(batch), f"float[{batch},9] y")
    fixed, free = (compress(labelled(), one, cr=None, max_drop=60.0).report for one in (m, model()))
    assert fixed.scores == free.scores
    assert fixed.scores[0].samples == COUNT // 2
    assert fixed.limit_result == free.limit_result


def test_of_several_outputs_the_first_is_taken_and_the_user_told() -> None:
    rest = "i = ArgMax<axis = 1>(y) z = Neg(y)"
    m = model(outputs="int64[N,1] i, float[N,9] y, float[N,9] z", rest=rest)
    found = compress(labelled(), m).report
    assert {score.output for score in found.scores} == {"y"}
    assert any("'y'; these look like scores too: 'z'" in warning for warning in found.warnings)
    assert not any("fitted too" in w for w in compress(labelled()).report.warnings)


def test_top_5_only_where_it_says_something() -> None:
    m = parse("m (float[N,24] x) => (float[N,5] y) { y = MatMul(x, w) }", {"w": normal(24, 5)})
    data = {"x": normal(8, 24), "labels": np.zeros(8, np.uint8)}
    assert [score.name for score in compress(data, m).report.scores] == ["top-1"]


def test_a_dry_run_scores_nothing() -> None:
    assert compress(labelled(), dry_run=True).report.scores == ()


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no labels": (lambda d: {"x": d["x"]}, "has no array 'labels'"),
    "no input": (lambda d: {"labels": d["labels"]}, "has no array for input 'x'"),
    "too few": (lambda d: d | {"labels": d["labels"][:-1]}, "69 labels, but 70 samples"),
    "none": (lambda d: {name: array[:0] for name, array in d.items()}, "has no samples"),
    "too high": (lambda d: d | {"labels": d["labels"] + 1}, "a label is 9, but the model has 9"),
    "negative": (lambda d: d | {"labels": d["labels"] - 1}, "a label is -1"),
    "huge": (lambda d: d | {"labels": np.full(COUNT, 2**64 - 1, np.uint64)}, "a label is 1844"),
    "floating": (lambda d: d | {"labels": d["labels"] * 1.0}, "must be integers of shape"),
    "one-hot": (lambda d: d | {"labels": np.eye(9, dtype=int)[d["labels"]]}, "of shape (samples,)"),
    "shape": (lambda d: d | {"x": d["x"][:, 1:]}, "wants shape"),
    "type": (lambda d: d | {"x": d["x"].astype(str)}, "wants float32"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("in_file", [False, True])
def test_data_that_does_not_fit_is_refused(kind: str, in_file: bool, tmp_path: Path) -> None:
    change, message = BAD[kind]
    data = change(labelled())
    np.savez(tmp_path / "data.npz", **data)
    refused(message, tmp_path / "data.npz" if in_file else data)


def refused(message: str, evaluate: Any, m: ModelProto | None = None) -> None:
    with pytest.raises(AldsError) as caught:
        compress(evaluate, m)
    assert caught.value.exit_code == 2
    assert message in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    refused("does not exist", tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    refused("is not an .npz", tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", labelled()["x"])
    refused("is one array", tmp_path / "one.npy")
    objects = np.array([{}] * COUNT, dtype=object)
    np.savez(tmp_path / "pickled.npz", x=labelled()["x"], labels=objects)
    refused("plain arrays", tmp_path / "pickled.npz")


def test_a_model_without_scores_is_refused() -> None:
    m = model(outputs="int64[N,1] i", rest="i = ArgMax<axis = 1>(y)")
    refused("no output has floating-point scores of shape (32, classes)", labelled(), m)


def negative_error(run_model: Run) -> float:
    """A scoring function: the distance of the outputs from the labels."""
    data = labelled()
    (y,) = run_model({"x": data["x"]})
    return -float(np.square(y - np.eye(9)[data["labels"]]).mean())


def test_a_function_scores_both_models() -> None:
    result = compress(negative_error)
    (score,) = result.report.scores
    assert (score.name, score.samples) == ("negative_error", None)
    assert (score.drop_stderr, score.held_out) == (None, None)
    assert score.before == negative_error(lambda feeds: run(model(), dict(feeds)))
    assert score.after == negative_error(lambda feeds: run(result.model, dict(feeds)))


def test_a_function_that_gives_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="must return a number"):
        compress(lambda run_model: None)
    with pytest.raises(UsageError, match="must be a finite number"):
        compress(lambda run_model: float("nan"))


def test_a_function_that_feeds_nonsense_is_told_so() -> None:
    with pytest.raises(DataError, match="cannot be scored"):
        compress(lambda run_model: float(run_model({"z": np.zeros(1)})[0].mean()))


def test_what_a_function_raises_comes_through() -> None:
    def broken(run_model: Run) -> float:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        compress(broken)
