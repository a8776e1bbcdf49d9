"""Calibration data is split the same whatever it comes as, and what is checked is in no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import alds_onnx
from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.split import Split, split
from alds_onnx.graph.files.load import load_model
from alds_onnx.results import Status, Verification
from alds_onnx.settings import Settings
from alds_onnx.steps import data as data_step
from alds_onnx.steps.data import Data, count_samples, load_data
from alds_onnx.steps.survey import make_survey
from alds_onnx.values import Objective
from tests.graph.builders import Array, normal, parse, run
from tests.steps.nets import CR, feeds, models, relative_error

# The same sums in another order.
ROUNDING = 1e-5


def samples(count: int = 96, seed: int = 0) -> Array:
    """Correlated inputs of five kinds."""
    mix, centres = normal(4, 24, seed=99), normal(5, 24, seed=98)
    chosen = np.random.default_rng(seed).integers(0, 5, count)
    return normal(count, 4, seed=seed) @ mix + 2 * centres[chosen]


def compress(data: Any, **options: Any) -> alds_onnx.Result:
    settings: dict[str, Any] = {"cr": CR, "threads": 1} | options
    return alds_onnx.compress(models()["dense"], calibration=data, **settings)


def load(data: Any, model: ModelProto | None = None, **options: Any) -> Data:
    """The split of the data."""
    known: dict[str, Any] = {"cr": CR} | options
    settings = Settings(**known, calibration=data, threads=1)
    survey = make_survey(load_model(model or models()["dense"]), settings)
    found = load_data(survey, settings)
    assert found is not None
    return found


def rows(part: Sequence[Feed], name: str = "x") -> Array:
    """The samples of a part."""
    return np.concatenate([feed[name] for feed in part]) if part else np.zeros((0, 24), np.float32)


def parts_of(data: Data) -> list[Array]:
    kinds = [kind.feeds for kind in data.left_out]
    return [rows(part) for part in (*data.halves, data.choose, data.check, *kinds)]


def verification(result: alds_onnx.Result) -> Verification:
    assert result.report.verification is not None
    return result.report.verification


class Reader:
    """A reader with the interface of onnxruntime.quantization.CalibrationDataReader."""

    def __init__(self, given: Sequence[Feed]) -> None:
        self.feeds = iter(given)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def batches(x: Array, size: int) -> list[Feed]:
    return [{"x": x[i : i + size]} for i in range(0, len(x), size)]


def archive(x: Array, folder: Path) -> Path:
    np.savez(folder / "all.npz", x=x, labels=np.zeros(len(x)))
    return folder / "all.npz"


def array(x: Array, folder: Path) -> Path:
    np.save(folder / "all.npy", x)
    return folder / "all.npy"


def folder_of_files(x: Array, folder: Path) -> Path:
    for number, feed in enumerate(batches(x, 25)):
        np.savez(folder / f"{number:03}.npz", **feed)
    return folder


def once(x: Array, folder: Path) -> Iterator[Feed]:
    yield from batches(x, 7)


FORMS: dict[str, Callable[[Array, Path], Any]] = {
    "npz": archive,
    "npy": array,
    "folder": folder_of_files,
    "list": lambda x, folder: batches(x, 32),
    "single samples": lambda x, folder: batches(x, 1),
    "one batch": lambda x, folder: [{"x": x}],
    "generator": once,
    "reader": lambda x, folder: Reader(batches(x, 10)),
    "doubles": lambda x, folder: batches(x.astype(np.float64), 32),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limited", [False, True], ids=["ratio", "limit"])
def test_the_same_samples_are_split_the_same_whatever_they_come_as(
    form: str, limited: bool, tmp_path: Path
) -> None:
    x = samples()
    options: dict[str, Any] = {"cr": None, "max_error": 0.1} if limited else {}
    found, expected = (load(data, **options) for data in (FORMS[form](x, tmp_path), batches(x, 96)))
    for part, other in zip(parts_of(found), parts_of(expected), strict=True):
        assert np.array_equal(part, other)
    assert found.apart == expected.apart
    examples = [[kind.example for kind in data.left_out] for data in (found, expected)]
    assert examples[0] == examples[1]
    assert found.num_samples == 96
    together = np.concatenate([rows(found.fit), rows(found.choose), rows(found.check)])
    assert np.array_equal(np.unique(together, axis=0), np.unique(x, axis=0))
    assert len(together) == 96
    assert bool(found.choose) == limited


@pytest.fixture(scope="module")
def plain() -> bytes:
    """The model from one batch."""
    return compress([{"x": samples()}], dry_run=True).model.SerializeToString()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_samples_give_the_same_bytes(form: str, plain: bytes, tmp_path: Path) -> None:
    data = FORMS[form](samples(), tmp_path)
    assert compress(data, dry_run=True).model.SerializeToString() == plain


def test_another_seed_checks_other_samples() -> None:
    first, second = (rows(load(batches(samples(), 32), seed=seed).check) for seed in (0, 1))
    assert not np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


def changed(x: Array, numbers: Array) -> Array:
    """Other values for some samples: inputs of quite another kind."""
    result = x.copy()
    result[numbers] = 3 * normal(len(numbers), 24, seed=5) - 1
    return result


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """The split of the first call, which all calls get after it."""
    kept: list[Split] = []

    def first_split(*args: Any, **options: Any) -> Split:
        kept.extend([split(*args, **options)] if not kept else [])
        return kept[0]

    monkeypatch.setattr(data_step, "split", first_split)
    return kept


def factors(result: alds_onnx.Result) -> bytes:
    return bytes(result.model.SerializeToString())


@pytest.mark.parametrize(
    "options",
    [{}, {"seed": 3}, {"objective": Objective.MAX_OUTPUT_ERROR}, {"cr_macs": 0.3}],
    ids=str,
)
def test_nothing_in_the_model_comes_from_the_samples_that_are_checked(
    options: dict[str, Any], parts: list[Split]
) -> None:
    """Other values there give the same model, and other numbers in the report."""
    x = samples()
    before = compress([{"x": x}], **options)
    after = compress([{"x": changed(x, parts[0].check)}], **options)
    assert factors(before) == factors(after)
    assert before.plan == after.plan
    first, second = verification(before), verification(after)
    assert first.output_error != second.output_error
    assert first.samples == second.samples == len(parts[0].check)
    assert first.learning is not None
    assert second.learning is not None
    assert first.learning.measured[0] != second.learning.measured[0]
    assert first.left_out is not None
    assert second.left_out is not None
    assert first.left_out.output_error != second.left_out.output_error


@pytest.mark.parametrize("part", [0, 1])
def test_both_halves_of_the_others_are_in_the_model(part: int, parts: list[Split]) -> None:
    x = samples()
    before = compress([{"x": x}], dry_run=True)
    after = compress([{"x": changed(x, parts[0].halves[part])}], dry_run=True)
    assert factors(before) != factors(after)


def test_a_plan_is_fitted_to_what_is_not_checked(parts: list[Split]) -> None:
    x = samples()
    plan = compress([{"x": x}], dry_run=True).plan
    other = changed(x, parts[0].check)
    first, second = (compress([{"x": data}], plan=plan, cr=None) for data in (x, other))
    assert factors(first) == factors(second)
    assert verification(first).output_error != verification(second).output_error


def test_all_models_of_a_sweep_are_fitted_to_what_is_not_checked(parts: list[Split]) -> None:
    x = samples()
    model, ratios = models()["dense"], [0.2, 0.5]
    first = list(alds_onnx.sweep(model, ratios, calibration=[{"x": x}], threads=1))
    other = [{"x": changed(x, parts[0].check)}]
    second = list(alds_onnx.sweep(model, ratios, calibration=other, threads=1))
    assert list(map(factors, first)) == list(map(factors, second))
    errors = [
        (verification(a).output_error, verification(b).output_error)
        for a, b in zip(first, second, strict=True)
    ]
    assert all(a != b for a, b in errors)


def gentle() -> ModelProto:
    """A weight with falling singular values, so that errors grow slowly with compression."""
    u, _, vh = np.linalg.svd(normal(24, 32), full_matrices=False)
    weight = np.asarray((u * 0.75 ** np.arange(24)) @ vh, np.float32)
    text = "m (float[N,24] x) => (float[N,32] y) { h = MatMul(x, w) y = Relu(h) }"
    return parse(text, {"w": weight})


def test_trials_of_a_limit_do_not_see_what_is_checked(parts: list[Split]) -> None:
    """What is checked decides only whether a trial is refused."""
    x = samples()
    settings: dict[str, Any] = {"max_error": 0.1, "threads": 1, "dry_run": True}
    first = alds_onnx.compress(gentle(), calibration=[{"x": x}], **settings).report.limit_result
    other = [{"x": changed(x, parts[0].check)}]
    second = alds_onnx.compress(gentle(), calibration=other, **settings).report.limit_result
    assert first is not None
    assert second is not None
    assert len(parts[0].choose)
    common = len(min(first.trials, second.trials, key=len))
    assert first.trials[:common] == second.trials[:common]
    assert first.checked[0].removed == second.checked[0].removed
    assert first.checked[0].value != second.checked[0].value


@pytest.mark.parametrize("kind", ["dense", "conv", "branch"])
def test_the_report_is_of_the_samples_that_are_checked(kind: str) -> None:
    """Computed again from the two models and these samples."""
    model, data = models()[kind], feeds(kind, count=4)
    held = load(data, model)
    result = alds_onnx.compress(model, cr=CR, calibration=data, threads=1)
    checks = verification(result)
    assert checks.held_out
    assert checks.samples == count_samples(held.check) == 32
    error = relative_error(model, result.model, list(held.check))
    assert checks.output_error == pytest.approx(error, rel=ROUNDING)
    x = rows(held.check).reshape(-1, *data[0]["x"].shape[1:])
    (before,), (after,) = run(model, {"x": x}), run(result.model, {"x": x})
    same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    assert checks.fidelity[0].top1_agreement == pytest.approx(same)
    assert checks.left_out is not None
    kinds = [kind.feeds for kind in held.left_out]
    assert checks.left_out.samples == sum(map(count_samples, kinds)) > 0
    assert checks.left_out.kinds == len(kinds)
    assert checks.learning is not None
    half, whole = checks.learning.measured
    assert whole.output_error == checks.output_error
    assert (half.samples, whole.samples) == (
        count_samples(held.halves[0]),
        count_samples(held.fit),
    )


def test_kinds_left_out_are_not_in_the_other_fit(parts: list[Split]) -> None:
    """Their runs are the last of each half, and there are none of them in the rest."""
    x = samples(200)
    found = load([{"x": x}])
    kinds = {row.tobytes(): kind for row, kind in zip(x, parts[0].kinds, strict=True)}
    apart = {row for row, kind in kinds.items() if kind in parts[0].apart}
    for half, count in zip(found.halves, found.apart, strict=True):
        assert count
        assert {row.tobytes() for row in rows(half[len(half) - count :])} <= apart
        assert not {row.tobytes() for row in rows(half[: len(half) - count])} & apart
    checked = {row.tobytes() for row in rows(found.check)} & apart
    for one in found.left_out:
        own = {row.tobytes() for row in rows(one.feeds)}
        assert own <= checked
        assert {kinds[row] for row in own} == {kinds[x[one.example].tobytes()]}
        checked -= own
    assert not checked


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("size", [1, 32])
def test_samples_that_are_not_finite_are_counted_and_not_checked(value: float, size: int) -> None:
    x = samples()
    spoilt = np.arange(3, 96, 7)
    x[spoilt, 5] = value
    for seed in range(3):
        found = load(batches(x, size), seed=seed)
        assert found.num_spoilt == len(spoilt)
        assert np.isfinite(rows(found.check)).all()
        assert np.isfinite(rows(found.choose)).all()
        assert len(rows(found.fit)) + len(rows(found.check)) == 96
        assert len(rows(found.check)) == 32, "of the others, as many as if all were good"


def test_samples_with_outputs_that_are_not_finite_are_not_checked() -> None:
    """Finite inputs whose outputs overflow cannot be compared either."""
    x = samples()
    spoilt = np.arange(3, 96, 7)
    x[spoilt] = 3e38
    found = load([{"x": x}])
    assert found.num_spoilt == len(spoilt)
    assert (rows(found.check) < 1e38).all()
    assert len(rows(found.check)) == 32


def test_outputs_that_are_hardly_ever_finite_are_meant_so() -> None:
    """What most samples have, such as scores of masked classes, is no reason to set one aside."""
    x = samples()
    x[:90] = 3e38
    found = load([{"x": x}])
    assert found.num_spoilt == 0
    assert (rows(found.check) > 1e38).any()


def test_samples_that_are_not_finite_decide_nothing_else() -> None:
    """Whether they have NaN or infinity, the others are split as if they were not there."""
    x = samples()
    bad = np.full((4, 24), np.nan, np.float32)
    alone, among = load([{"x": x}]), load([{"x": np.concatenate([x[:50], bad, x[50:]])}])
    assert np.array_equal(rows(alone.check), rows(among.check))
    assert np.array_equal(rows(alone.halves[1]), rows(among.halves[1]))


def test_if_no_sample_is_finite_nothing_is_checked() -> None:
    found = load([{"x": np.full((40, 24), np.nan, np.float32)}])
    assert not found.check
    assert (found.num_spoilt, len(rows(found.halves[0]))) == (40, 40)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (2, 1, 2))]
)
def test_few_samples_are_said_to_be_few(count: int, expected: tuple[int, int, int]) -> None:
    data = [{"x": samples(count)}]
    found = load(data)
    assert tuple(len(rows(part)) for part in (*found.halves, found.check)) == expected
    result = compress(data)
    checks = verification(result)
    assert checks.held_out == (count > 1)
    assert checks.samples == max(1, expected[2])
    assert checks.left_out is None
    assert any(f"only {count} calibration" in warning for warning in result.report.warnings)
    assert result.plan.removed >= CR


def test_samples_that_see_each_other_are_checked_in_whole_runs() -> None:
    """Each sample less the mean of its run: runs are fitted to or checked, whole."""
    text = """m (float[N,24] x) => (float[N,9] y) {
        m = ReduceMean<axes=[0], keepdims=1>(x) d = Sub(x, m) y = MatMul(d, w)
    }"""
    model = parse(text, {"w": normal(24, 9)})
    data = batches(samples(), 8)
    found = load(data, model)
    given = {feed["x"].tobytes() for feed in data}
    together = [feed["x"].tobytes() for feed in (*found.fit, *found.check)]
    assert sorted(together) == sorted(given)
    assert count_samples(found.check) == 32
    result = alds_onnx.compress(model, cr=CR, calibration=data, threads=1)
    error = relative_error(model, result.model, list(found.check))
    assert verification(result).output_error == pytest.approx(error, rel=ROUNDING)
    assert verification(result).held_out


def test_a_batch_that_is_declared_free_and_is_not_can_be_checked() -> None:
    """A Reshape wants runs of four samples, as those of the data are."""
    text = "m (float[N,24] x) => (float[N,K] y) { h = MatMul(x, w) y = Reshape(h, s) }"
    model = parse(text, {"w": normal(24, 20), "s": np.array([4, 20])})
    result = alds_onnx.compress(model, cr=CR, calibration=batches(samples(), 4), threads=1)
    checks = verification(result)
    assert checks.status is Status.PASSED
    assert (checks.samples, checks.input_shapes) == (32, (("x", (4, 24)),))


def test_kinds_are_left_out_where_every_weight_can_be_fitted_without_them() -> None:
    """The inputs of a shared weight are summed over all samples, those of kinds apart too."""
    for kind, is_known in (("dense", True), ("shared", False)):
        result = alds_onnx.compress(models()[kind], cr=CR, calibration=feeds(kind), threads=1)
        assert any(row.cut for row in result.plan.layers)
        assert (verification(result).left_out is not None) == is_known
