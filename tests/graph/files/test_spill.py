"""Numbers of large models in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import alds_onnx
from alds_onnx.errors import InputError
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.files import external
from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.rewrite import rewrite, with_composed_weights
from alds_onnx.graph.tensors import external_data, read_array
from alds_onnx.results import Status
from tests.graph.builders import assert_close, normal, parse, replacements_of, run

MODEL = "g (float[N, 24] x) => (float[N, 16] y) { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }"
FEEDS = {"x": normal(3, 24)}


def model() -> ModelProto:
    return parse(MODEL, {"w": normal(24, 32), "v": normal(32, 16)})


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "LARGE_MODEL", 1000)
    monkeypatch.setattr("alds_onnx.evaluate.sessions.LARGE_MODEL", 1000)


def test_numbers_come_back() -> None:
    spill = Spill()
    arrays = [normal(5, 7, seed=i).astype(t) for i, t in enumerate(("f4", "f8", "f2"))]
    tensors = [numpy_helper.from_array(array, f"t{i}") for i, array in enumerate(arrays)]
    for tensor in tensors:
        spill.move(tensor)
        assert not tensor.raw_data
    for tensor, array in zip(tensors, arrays, strict=True):
        np.testing.assert_array_equal(read_array(tensor, Path()), array)


def test_the_file_goes_with_its_owner() -> None:
    spill, tensor = Spill(), numpy_helper.from_array(normal(4, 4), "t")
    spill.move(tensor)
    path = external_data(tensor, Path()).path
    assert path.is_file()
    del spill
    assert not path.parent.exists()


def test_no_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    spill, full = Spill(), Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no device that is always full")
    monkeypatch.setattr(spill, "_path", full)
    with pytest.raises(InputError, match=r"No space left.*TMPDIR"):
        spill.move(numpy_helper.from_array(normal(400, 400), "t"))


@pytest.mark.parametrize("make", [rewrite, with_composed_weights])
def test_models_compute_the_same(make: Callable[..., ModelProto], tmp_path: Path) -> None:
    replacements, spill = replacements_of(model(), 2, 3), Spill()
    expected = run(make(model(), replacements), FEEDS)
    spilled = make(model(), replacements, spill)
    new = [t for t in spilled.graph.initializer if t.name not in "wv"]
    assert new
    assert all(t.data_location == TensorProto.EXTERNAL for t in new)
    assert_close(Session(spilled, tmp_path, Execution(threads=1)).run(FEEDS), expected)


def test_a_large_model_end_to_end(tmp_path: Path, small_is_large: None) -> None:
    source, target, plain = (tmp_path / name for name in ("in.onnx", "out.onnx", "plain.onnx"))
    big = model()
    alds_onnx.compress(big, cr=0.4).save(plain)
    external_file = tmp_path / "in.data"
    content = b"".join(t.raw_data for t in big.graph.initializer)
    external_file.write_bytes(content)
    offset = 0
    for tensor in big.graph.initializer:
        length = len(tensor.raw_data)
        external.point(tensor, "in.data", offset, length)
        offset += length
    source.write_bytes(big.SerializeToString())
    result = alds_onnx.compress(source, cr=0.4)
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED
    assert all(t.data_location == TensorProto.EXTERNAL for t in result.model.graph.initializer)
    result.save(target)
    folder = Path(external_data(result.model.graph.initializer[0], Path()).path).parent
    del result
    assert not folder.exists()
    assert str(tempfile.gettempdir()) not in target.read_bytes().decode("latin1")
    assert_close(*(onnxruntime.InferenceSession(p).run(None, FEEDS) for p in (target, plain)))
    assert external_file.read_bytes() == content
