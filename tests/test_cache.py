"""A cached result equals the computed one, and is used only for the same inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import alds_onnx
from alds_onnx.cache import Cache
from alds_onnx.cli import run
from alds_onnx.cuts import ErrorNorm, LayerShape, Scheme
from alds_onnx.decompose.regression import joint_spectra, white_moments
from alds_onnx.errors import UsageError
from alds_onnx.runtimes import Runtime
from alds_onnx.steps.metrics import observe, weights
from alds_onnx.steps.metrics.kept import remembered_spectra
from tests.graph.builders import normal
from tests.steps.nets import feeds, models

WORK = ("input_sums", "crossed_spectra", "measure")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything fail that the cache should save."""

    def failing(*_: object) -> None:
        raise AssertionError("computed again")

    for name in WORK:
        monkeypatch.setattr(observe, name, failing)
    monkeypatch.setattr(weights, "spectra_of_schemes", failing)


@pytest.mark.parametrize("kind", ["dense", "conv", "shared", "branch"])
@pytest.mark.parametrize("data", [False, True])
def test_a_second_run_starts_at_the_search_and_ends_the_same(
    kind: str, data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calibration = models()[kind], feeds(kind) if data else None
    options: dict[str, Any] = {"calibration": calibration, "threads": 1, "dry_run": True}
    alds_onnx.compress(model, cr=0.3, cache=tmp_path, **options)
    plain = alds_onnx.compress(model, cr=0.4, **options)
    with monkeypatch.context() as patch:
        forbid(patch)
        again = alds_onnx.compress(model, cr=0.4, cache=tmp_path, **options)
    assert again.model.SerializeToString() == plain.model.SerializeToString()
    assert again.plan.layers == plain.plan.layers


def test_schemes_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, schemes = models()["conv"], tuple(alds_onnx.Scheme)
    options: dict[str, Any] = {"schemes": schemes, "threads": 1, "dry_run": True}
    plain = alds_onnx.compress(model, cr=0.4, cache=tmp_path, **options)
    forbid(monkeypatch)
    again = alds_onnx.compress(model, cr=0.4, cache=tmp_path, **options)
    assert again.plan.layers == plain.plan.layers


@pytest.mark.parametrize("change", ["weight", "data", "seed", "layers"])
def test_other_inputs_are_computed_anew(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, options = models()["dense"], feeds("dense"), {"seed": 0, "exclude": ()}
    alds_onnx.compress(model, cr=0.3, calibration=data, cache=tmp_path, threads=1, dry_run=True)
    if change == "weight":
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(normal(24, 32, seed=7), model.graph.initializer[0].name)
        )
    elif change == "data":
        data[0]["x"] = data[0]["x"] + np.float32(1e-6)
    elif change == "seed":
        options["seed"] = 1
    else:
        options["exclude"] = ("h",)
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="computed again"):
        alds_onnx.compress(
            model,
            cr=0.3,
            calibration=data,
            cache=tmp_path,
            threads=1,
            dry_run=True,
            **options,  # type: ignore[arg-type]
        )


def test_what_cannot_be_read_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = models()["dense"]
    options: dict[str, Any] = {"cr": 0.3, "threads": 1, "dry_run": True, "cache": tmp_path}
    plain = alds_onnx.compress(model, **options)
    entries = sorted(tmp_path.glob("*.npz"))
    assert len(entries) == 2
    entries[0].write_bytes(b"")
    entries[1].write_bytes(entries[1].read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        again = alds_onnx.compress(model, **options)
    assert again.plan.layers == plain.plan.layers
    assert caplog.text.count("made again") == 2
    assert sorted(tmp_path.glob("*")) == entries


def test_arrays_values_and_kinds_tell_entries_apart(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path)
    keys: list[tuple[object, ...]] = [
        ("a", 1),
        ("a", "1"),
        ("b", 1),
        ("a", np.zeros(2)),
        ("a", np.zeros((2, 1))),
        ("a", np.zeros(2, np.float32)),
        ("a", b"1"),
        ("a", (1,), 2),
        ("a", (1, 2)),
    ]
    for number, (kind, *parts) in enumerate(keys):
        cache.arrays(lambda n=number: {"n": np.array(n)}, str(kind), *parts)
    for number, (kind, *parts) in enumerate(keys):
        found = cache.arrays(lambda: pytest.fail("not kept"), str(kind), *parts)
        assert int(found["n"]) == number


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UsageError, match="--cache"):
        alds_onnx.compress(models()["dense"], cr=0.3, cache=taken / "folder")
    source = tmp_path / "in.onnx"
    onnx.save(models()["dense"], source)
    assert run([str(source), "--cr=0.3", "--dry-run", f"--cache={taken}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_error_curves_come_back_as_they_were(tmp_path: Path) -> None:
    shape = LayerShape(out_features=8, in_channels=8, kernel=(3,))
    W = normal(8, shape.num_columns).astype(np.float64)
    counts: dict[Scheme, tuple[int, ...]] = {Scheme.ENCODE: (1, 2), Scheme.TUCKER2: ()}
    wanted = joint_spectra(W, shape, white_moments(W), counts)
    for _ in range(2):
        found = remembered_spectra(Cache(folder=tmp_path), shape, lambda: wanted, "curves")
        assert (found.norm, found.schemes) == (wanted.norm, wanted.schemes)
        assert found.error_norm is ErrorNorm.FROBENIUS
        for curve, other in zip(found.curves, wanted.curves, strict=True):
            assert (curve.scheme, curve.num_slices) == (other.scheme, other.num_slices)
            np.testing.assert_array_equal(curve.relative_error, other.relative_error)


def test_what_one_scheme_measured_is_not_taken_for_another(tmp_path: Path) -> None:
    """Both have curves of one slice; a layer is probed by the first scheme that may be chosen."""
    options: dict[str, Any] = {"calibration": feeds("conv"), "threads": 1, "dry_run": True}
    options |= {"cr": 0.4, "target": Runtime.TFLITE}
    alds_onnx.compress(models()["conv"], cache=tmp_path, schemes=[Scheme.ENCODE], **options)
    cached, plain = (
        alds_onnx.compress(models()["conv"], cache=cache, schemes=[Scheme.DECODE], **options)
        for cache in (tmp_path, None)
    )
    assert cached.model.SerializeToString() == plain.model.SerializeToString()
    assert [row.output_error for row in cached.plan.layers] == [
        row.output_error for row in plain.plan.layers
    ]
