"""merge(): end-to-end laws, and its messages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from rich.console import Console

import alds_onnx
from alds_onnx.cuts import Scheme
from alds_onnx.errors import UsageError, VerificationError
from alds_onnx.graph import merge as joining
from alds_onnx.graph.files import external
from alds_onnx.report.console import print_merge
from alds_onnx.report.json import merge_to_json
from alds_onnx.results import Status
from alds_onnx.values import Decision
from tests.conftest import DIGITS
from tests.graph.builders import normal, parse, run

# Two roundings of float32 weights (6e-8 each), through 20 layers.
_ROUNDING = 1e-5


@pytest.fixture(scope="module")
def half() -> alds_onnx.Result:
    return alds_onnx.compress(DIGITS, cr=0.5, threads=1, dry_run=True)


@pytest.fixture(scope="module")
def dense(half: alds_onnx.Result) -> alds_onnx.MergeResult:
    return alds_onnx.merge(half.model, threads=1)


def test_the_merged_model_computes_what_the_compressed_one_does(
    half: alds_onnx.Result, dense: alds_onnx.MergeResult
) -> None:
    image = np.abs(normal(3, 1, 28, 28)) * 80
    (expected,), (actual,) = (run(m, {"image": image}) for m in (half.model, dense.model))
    assert np.linalg.norm(actual - expected) <= _ROUNDING * np.linalg.norm(expected)
    report = dense.report
    assert report.verification is not None
    assert report.verification.status is Status.PASSED
    assert (report.warnings, report.left) == ((), ())


def test_the_merged_model_has_the_layers_of_the_original(
    half: alds_onnx.Result, dense: alds_onnx.MergeResult
) -> None:
    original = onnx.load(DIGITS)
    assert list(dense.model.graph.node) == list(original.graph.node)
    sizes = [{t.name: tuple(t.dims) for t in m.graph.initializer} for m in (original, dense.model)]
    assert sizes[0] == sizes[1]
    cut = {row.name: row for row in half.plan.layers if row.cut}
    assert {row.name: row.cut for row in dense.report.merged} == {n: r.cut for n, r in cut.items()}
    for row in dense.report.merged:
        assert row.parameters_before == cut[row.name].parameters_after
        assert row.parameters_after == cut[row.name].parameters_before
    assert dense.report.parameters_before == half.plan.parameters_after
    assert dense.report.parameters_after == half.plan.parameters


def tensors(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_merged_and_compressed_by_the_same_plan_gives_the_same_model(
    half: alds_onnx.Result, dense: alds_onnx.MergeResult
) -> None:
    """Factors are unique up to the sign of a rank where its singular value is; the product is."""
    plan = dataclasses.replace(half.plan, sha256="")
    again = alds_onnx.compress(dense.model, plan=plan, threads=1, dry_run=True)
    assert list(again.model.graph.node) == list(half.model.graph.node)
    first, second = tensors(half.model), tensors(again.model)
    assert first.keys() == second.keys()
    for name, array in first.items():
        if "coder" not in name:
            np.testing.assert_array_equal(second[name], array)
        else:  # singular vectors turn by rounding over the gap to the next singular value
            difference = np.abs(np.abs(second[name]) - np.abs(array)).max()
            assert difference <= 100 * _ROUNDING * np.abs(array).max(), name
    for row in half.plan.layers:
        (error,) = (r.error for r in again.plan.layers if r.name == row.name)
        assert (error is None) == (row.decision is not Decision.DECOMPOSE)
        assert error is None or error.spectral <= _ROUNDING  # nothing is lost the second time
    twice = alds_onnx.merge(again.model, threads=1, dry_run=True)
    for name, array in tensors(dense.model).items():
        change = np.linalg.norm(tensors(twice.model)[name] - array)
        assert change <= _ROUNDING * np.linalg.norm(array)


@pytest.mark.parametrize("scheme", [s for s in Scheme if s is not Scheme.ENCODE], ids=str)
def test_every_scheme_there_and_back_and_there(scheme: Scheme) -> None:
    """Run and compared at each step; the same plan finds nothing more to lose."""
    half = alds_onnx.compress(DIGITS, cr=0.5, schemes=[scheme], threads=1, dry_run=True)
    dense = alds_onnx.merge(half.model, threads=1)
    assert dense.report.left == ()
    assert dense.report.verification is not None
    assert dense.report.verification.status is Status.PASSED
    assert list(dense.model.graph.node) == list(onnx.load(DIGITS).graph.node)
    cuts = {row.name: row.cut for row in half.plan.layers if row.cut}
    assert {row.name: row.cut for row in dense.report.merged} == cuts
    assert scheme in {cut.scheme for cut in cuts.values()}
    plan = dataclasses.replace(half.plan, sha256="")
    again = alds_onnx.compress(dense.model, plan=plan, threads=1, dry_run=True)
    assert list(again.model.graph.node) == list(half.model.graph.node)
    first, second = tensors(half.model), tensors(again.model)
    assert {n: a.shape for n, a in first.items()} == {n: a.shape for n, a in second.items()}
    errors = [row.error for row in again.plan.layers if row.error is not None]
    assert len(errors) == len(cuts)
    assert all(error.spectral <= _ROUNDING for error in errors)


def test_the_table_has_the_schemes_and_both_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    model = parse(
        "g (float[1, 8, 9, 9] x) => (float[1, 12, a, b] y) { [conv] y = Conv(x, W) }",
        {"W": normal(12, 8, 3, 3)},
    )
    for scheme, expected in ((Scheme.TUCKER2, "tucker2 1 "), (Scheme.ENCODE, "12x8x3x3 ")):
        half = alds_onnx.compress(model, cr=0.5, schemes=[scheme], threads=1, dry_run=True)
        merged = alds_onnx.merge(half.model, threads=1, dry_run=True)
        print_merge(Console(width=200), merged.report)
        text = " ".join(capsys.readouterr().out.split())
        (cut,) = (row.cut for row in half.plan.layers if row.cut)
        assert expected in text
        assert (f"{cut.rank}, {cut.rank_out}" in text) == ("scheme" in text) == bool(cut.rank_out)


def test_a_model_without_pairs_is_unchanged_and_says_so() -> None:
    model = parse(
        "g (float[3, 8] x) => (float[3, 12] y) { y = MatMul(x, W) }", {"W": normal(8, 12)}
    )
    result = alds_onnx.merge(model, threads=1)
    assert result.model == model
    (warning,) = result.report.warnings
    assert "no pair" in warning
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED


def small() -> ModelProto:
    model = parse(
        "g (float[3, 32] x) => (float[3, 48] y) { [a] h = MatMul(x, V) [b] y = MatMul(h, W) }",
        {"V": normal(32, 32), "W": normal(32, 48)},
    )
    return alds_onnx.compress(model, cr=0.5, threads=1, dry_run=True).model


def test_what_is_left_alone_is_told_with_the_reason() -> None:
    model = small()
    assert {row.name for row in alds_onnx.merge(model, threads=1).report.merged} == {"a", "b"}
    value = onnx.helper.make_tensor_value_info("b/encoded", onnx.TensorProto.FLOAT, [3, None])
    model.graph.output.append(value)
    result = alds_onnx.merge(model, threads=1, dry_run=True)
    assert [row.name for row in result.report.merged] == ["a"]
    assert [row.name for row in result.report.left] == ["b"]
    assert result.report.warnings == (f"'b' stays as it is: {result.report.left[0].reason}",)
    assert merge_to_json(result.report)["left"][0]["name"] == "b"


def test_a_wrong_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = joining.compose
    monkeypatch.setattr(joining, "compose", lambda factors: 1.01 * right(factors))
    with pytest.raises(VerificationError, match="nothing was written: outputs differ"):
        alds_onnx.merge(small(), threads=1)


def test_an_output_that_is_all_rounding_is_no_reason_to_fail() -> None:
    """A detector that detects nothing: its sigmoids are smaller than the rounding error of 1."""
    model = small()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e-3), "tiny"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    for op, inputs, output in (
        ("Mul", ["y", "tiny"], "m"),
        ("Add", ["m", "one"], "a"),
        ("Sub", ["a", "m"], "b"),
        ("Sub", ["b", "one"], "s"),
    ):
        model.graph.node.append(onnx.helper.make_node(op, inputs, [output]))
    model.graph.output[0].name = "s"
    result = alds_onnx.merge(model, threads=1)
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED


def test_a_wrong_layer_is_found_where_the_output_is_all_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e-12), "tiny"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["y", "tiny"], ["m"]))
    model.graph.output[0].name = "m"
    assert len(alds_onnx.merge(model, threads=1).report.merged) == 2
    right = joining.compose
    monkeypatch.setattr(joining, "compose", lambda factors: 1.01 * right(factors))
    with pytest.raises(VerificationError, match="outputs differ"):
        alds_onnx.merge(model, threads=1)


def test_a_model_that_does_not_run_is_not_validated() -> None:
    model = small()
    model.graph.node.add(op_type="Unheard", domain="of", input=["y"], output=["z"])
    model.opset_import.add(domain="of", version=1)
    result = alds_onnx.merge(model, threads=1)
    assert len(result.report.merged) == 2
    assert result.report.verification is not None
    assert result.report.verification.status is Status.NOT_VALIDATED
    assert any(warning.startswith("not validated:") for warning in result.report.warnings)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="--threads is 0"):
        alds_onnx.merge(small(), threads=0)
    with pytest.raises(UsageError, match="--seed is -1"):
        alds_onnx.merge(small(), seed=-1)


@pytest.mark.parametrize("large", [False, True])
def test_external_data_is_copied_to_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """The new weights of a large model lie in a temporary file until then."""
    if large:
        monkeypatch.setattr(external, "LARGE_MODEL", 1)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(small(), source, save_as_external_data=True, location="numbers", size_threshold=0)
    before = source.read_bytes(), (tmp_path / "numbers").read_bytes()
    result = alds_onnx.merge(source, threads=1)
    assert (result.spill is not None) == large
    result.save(target, external_data=True)
    assert (source.read_bytes(), (tmp_path / "numbers").read_bytes()) == before
    (tmp_path / "numbers").unlink()
    assert {tuple(t.dims) for t in onnx.load(target).graph.initializer} == {(32, 32), (32, 48)}
    assert [p for p in tmp_path.iterdir() if p.name.startswith("out.onnx.")]
