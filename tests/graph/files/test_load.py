"""Files that are no models, and external data that cannot be trusted: one line each."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from alds_onnx.errors import ModelError
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.files import load, save
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.tensors import (
    external_data,
    make_tensor,
    num_bytes,
    read_array,
    stored,
    type_name,
)
from tests.graph.builders import normal, parse


def small_model() -> ModelProto:
    return parse("g (float[3, 8] x) => (float[3, 12] y) { y = MatMul(x, W) }",
                 {"W": normal(8, 12)})  # fmt: skip


def refusal(path: object) -> str:
    """The message with which a path is refused; it is one line."""
    with pytest.raises(ModelError) as caught:
        load_model(path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path)
    loaded = load_model(path)
    assert loaded.model == small_model()
    assert (loaded.folder, loaded.path, loaded.name) == (tmp_path, path, "m.onnx")
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_model(str(path)).sha256 == loaded.sha256


def test_an_object() -> None:
    model = small_model()
    loaded = load_model(model)
    assert loaded.model is model
    assert (loaded.path, loaded.name, loaded.folder) == (None, "model", Path.cwd())
    assert loaded.sha256 == load_model(small_model()).sha256


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"1")
    return buffer.getvalue()


BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is not a model\n" * 9, "not an ONNX model"),
    "truncated": (small_model().SerializeToString()[:-40], "truncated"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(30), "gzip archive"),
    "zip": (zipped(), "zip archive"),
    "ORT format": (b"\x28\x00\x00\x00ORTM" + bytes(40), "onnxruntime's own format"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "HTML": (b"<!DOCTYPE html><html>", "HTML"),
    "noise": (bytes(range(255, 0, -1)), "not an ONNX model"),
    "another message": (b"\x9a\x06\x03abc", "not an ONNX model"),
    "no nodes": (ModelProto(ir_version=8).SerializeToString(), "breaks the rules of ONNX"),
    **{
        f"pickle {protocol}": (pickle.dumps({"a": 1}, protocol), "Python pickle")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_no_models(name: str, tmp_path: Path) -> None:
    content, reason = BYTES[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = refusal(path)
    assert reason in message
    assert str(path) in message


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.onnx")
    assert "is a directory" in refusal(tmp_path)
    assert "not a regular file" in refusal("/dev/null")
    assert "cannot be read" in refusal(tmp_path / ("a" * 300))


def test_files_over_the_limit_of_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_LARGEST_MESSAGE", 100)
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path)
    assert "over 2 GiB" in refusal(path)


def test_objects_over_the_limit_of_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge:
        def SerializeToString(self, deterministic: bool) -> bytes:
            raise save.EncodeError("Failed to serialize proto")

    with pytest.raises(ModelError, match="over 2 GiB"):
        save.serialize(Huge())  # type: ignore[arg-type]


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda m: m.graph.node[0].ClearField("op_type"), "op_type"),
    (lambda m: m.graph.node[0].input.__setitem__(1, "nothing"), "nothing"),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, 9), "breaks the rules"),
    (lambda m: m.ClearField("opset_import"), "opset"),
])  # fmt: skip
def test_models_that_break_the_rules(damage: Callable[[ModelProto], None], reason: str) -> None:
    model = small_model()
    damage(model)
    message = refusal(model)
    assert reason in message
    assert len(message) < 400


@pytest.mark.parametrize(("numbers", "element_type"), [
    ({"raw_data": bytes(25)}, TensorProto.FLOAT), ({"float_data": [0.0] * 7}, TensorProto.FLOAT),
    ({"int32_data": [0] * 7}, TensorProto.FLOAT16), ({"raw_data": bytes(4)}, TensorProto.INT4),
    ({"float_data": [0.0] * 13}, TensorProto.COMPLEX64),
])  # fmt: skip
def test_more_numbers_than_the_shape(numbers: dict[str, Any], element_type: int) -> None:
    model = small_model()
    tensor = TensorProto(name="b", dims=[2, 3], data_type=element_type, **numbers)
    model.graph.initializer.append(tensor)
    assert "tensor 'b' has more numbers than its shape [2, 3]" in refusal(model)
    for name, values in numbers.items():
        tensor = model.graph.initializer[1]
        tensor.ClearField(name)
        tensor.MergeFrom(TensorProto(**{name: values[:-1]}))
    load_model(model)


def test_long_messages_are_cut() -> None:
    model = small_model()
    model.graph.node[0].input[1] = "n" * 1000
    assert refusal(model).endswith("...")


def test_other_errors_of_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object) -> None:
        raise RuntimeError("line 1\nline 2")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    assert refusal(small_model()) == "the model cannot be checked: line 1 line 2"


def external_model(folder: Path, **entries: str) -> Path:
    """A model whose weight lies in w.bin, four bytes into it, unless `entries` say otherwise."""
    model = small_model()
    (tensor,) = model.graph.initializer
    (folder / "w.bin").write_bytes(b"head" + tensor.raw_data + b"tail")
    point(tensor, {"location": "w.bin", "offset": "4", "length": "384", **entries})
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def point(tensor: TensorProto, entries: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        if value != "-":
            tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("entries", [
    {}, {"length": "-"}, {"location": "./w.bin"}, {"location": "sub/../w.bin"},
    {"offset": "0"}, {"offset": "-"}, {"offset": "8", "checksum": "abc"},
])  # fmt: skip
def test_external_data(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    loaded = load_model(external_model(tmp_path, **entries))
    (tensor,) = loaded.model.graph.initializer
    found = external_data(tensor, loaded.folder)
    content = (tmp_path / "w.bin").read_bytes()[found.offset : found.offset + found.length]
    assert read_array(tensor, loaded.folder).tobytes() == content
    assert read_array(tensor, loaded.folder).shape == (8, 12)


BAD: dict[str, tuple[dict[str, str], str]] = {
    "absolute": ({"location": "/etc/hostname"}, "absolute location"),
    "drive": ({"location": "C:w.bin"}, "absolute location"),
    "share": ({"location": "\\\\server\\w.bin"}, "absolute location"),
    "traversal": ({"location": "../w.bin"}, "outside the model's folder"),
    "hidden traversal": ({"location": "a/../../w.bin"}, "outside the model's folder"),
    "missing": ({"location": "v.bin"}, "no file 'v.bin'"),
    "the folder": ({"location": "."}, "no file '.'"),
    "no location": ({"location": "-"}, "has no location"),
    "empty location": ({"location": ""}, "has no location"),
    "short": ({"offset": "9"}, "truncated"),
    "far": ({"offset": str(2**52)}, "truncated"),
    "length": ({"length": "100"}, "length of 100 bytes, its shape needs 384"),
    "huge length": ({"length": str(2**52)}, "its shape needs 384"),
    "negative offset": ({"offset": "-1"}, "'-1', not a number of bytes"),
    "offset of letters": ({"offset": "abc"}, "'abc', not a number of bytes"),
    "other digits": ({"offset": "٣"}, "not a number of bytes"),
    "many digits": ({"offset": "9" * 5000}, "not a number of bytes"),
    "no length": ({"length": ""}, "'', not a number of bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_external_data_that_is_refused(name: str, tmp_path: Path) -> None:
    entries, reason = BAD[name]
    assert reason in refusal(external_model(tmp_path, **entries))


def test_colons_in_names_are_no_drives(tmp_path: Path) -> None:
    path = external_model(tmp_path, location="weights:0.bin")
    os.rename(tmp_path / "w.bin", tmp_path / "weights:0.bin")
    assert load_model(path).model.graph.initializer[0].name == "W"


@pytest.mark.parametrize("dims", [[-8, -12], [8, -12]])
def test_negative_sizes(dims: list[int], tmp_path: Path) -> None:
    path = external_model(tmp_path, length="-")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = dims
    path.write_bytes(model.SerializeToString())
    assert "negative size" in refusal(path)
    model = small_model()
    model.graph.initializer[0].dims[:] = dims
    assert "negative size" in refusal(model)


def test_unknown_element_type(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].data_type = 999
    path.write_bytes(model.SerializeToString())
    assert "element type 999" in refusal(path)
    assert type_name(999) == "type 999"


def test_broken_inline_data_is_one_error() -> None:
    tensor = make_tensor("W", normal(3, 4, dtype="float64"), TensorProto.FLOAT)
    tensor.raw_data = tensor.raw_data[:-2]
    with pytest.raises(ModelError, match="'W' cannot be read"):
        read_array(tensor, Path())


def test_external_tensor_without_entries(tmp_path: Path) -> None:
    tensor = TensorProto(name="W", dims=[0, 4], data_type=TensorProto.FLOAT)
    (tmp_path / "w.bin").write_bytes(b"")
    point(tensor, {"location": "w.bin"})
    assert read_array(tensor, tmp_path).shape == (0, 4)


@pytest.mark.parametrize(("element_type", "expected"), [
    (TensorProto.FLOAT, 60), (TensorProto.BFLOAT16, 30), (TensorProto.BOOL, 15),
    (TensorProto.INT4, 8), (TensorProto.UINT4, 8), (TensorProto.FLOAT4E2M1, 8),
    (TensorProto.INT2, 4), (TensorProto.FLOAT8E5M2, 15),
])  # fmt: skip
def test_num_bytes(element_type: int, expected: int) -> None:
    assert num_bytes(TensorProto(dims=[3, 5], data_type=element_type)) == expected


@pytest.mark.parametrize(
    "element_type",
    [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16],
)
def test_tensors_come_back_as_stored(element_type: int) -> None:
    array = normal(3, 4, dtype="float64") * 1e-9  # subnormal in half precision
    tensor = make_tensor("W", array.T, element_type)
    back = np.asarray(read_array(tensor, Path()), np.float64)
    np.testing.assert_array_equal(back, stored(array.T, element_type).astype(np.float64))


def linked(folder: Path, data: str = "../../blobs/h2") -> Path:
    """The layout of the Hugging Face cache: model and data are links into the folder of blobs."""
    snapshot, blobs = folder / "hub" / "snapshots" / "r", folder / "hub" / "blobs"
    for each in (snapshot, blobs):
        each.mkdir(parents=True)
    path = external_model(blobs)
    path.rename(blobs / "h1")
    (blobs / "w.bin").rename(blobs / "h2")
    (snapshot / "m.onnx").symlink_to("../../blobs/h1")
    (snapshot / "w.bin").symlink_to(data)
    return snapshot / "m.onnx"


def test_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    loaded = load_model(linked(tmp_path))
    (tensor,) = loaded.model.graph.initializer
    np.testing.assert_array_equal(read_array(tensor, loaded.folder), normal(8, 12))
    session = Session(loaded.model, loaded.folder, Execution(threads=1))
    x = normal(3, 8)
    np.testing.assert_allclose(session.run({"x": x})[0], x @ normal(8, 12), rtol=1e-4, atol=1e-5)


def test_links_that_lead_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1000))
    assert "symbolic link out of the model's folder" in refusal(linked(tmp_path, str(secret)))


def test_a_link_of_a_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for each in (inside, outside):
        each.mkdir()
    path = external_model(inside, location="sub/w.bin")
    (inside / "w.bin").rename(outside / "w.bin")
    (inside / "sub").symlink_to(outside)
    assert "symbolic link out of" in refusal(path)


def test_data_of_a_plain_model_in_a_linked_blob_is_refused(tmp_path: Path) -> None:
    path = linked(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert "symbolic link out of" in refusal(path)


def test_links_within_the_folder_and_hard_links(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "blob")
    (tmp_path / "w.bin").symlink_to("blob")
    through_link = read_array(load_model(path).model.graph.initializer[0], tmp_path)
    (tmp_path / "w.bin").unlink()
    os.link(tmp_path / "blob", tmp_path / "w.bin")
    through_hard_link = read_array(load_model(path).model.graph.initializer[0], tmp_path)
    np.testing.assert_array_equal(through_link, through_hard_link)
    assert through_link.tobytes() in (tmp_path / "blob").read_bytes()


def test_numbers_inside_and_outside(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].raw_data = bytes(384)
    path.write_bytes(model.SerializeToString())
    assert "in the model file as well" in refusal(path)


def test_the_rest_of_a_model_with_external_data_is_checked(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].input[0] = "nothing"
    path.write_bytes(model.SerializeToString())
    assert "breaks the rules of ONNX" in refusal(path)
