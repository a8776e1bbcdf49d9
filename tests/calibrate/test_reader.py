"""Calibration data in every form is read, or refused with a reason."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from alds_onnx.calibrate.reader import ModelInput, model_inputs, read_feeds
from alds_onnx.errors import DataError

Array = npt.NDArray[Any]

_BATCH = 32


def model(*inputs: str) -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({", ".join(inputs)}) => (float[1] y) {{ }}'
    return onnx.parser.parse_model(text)


X = model_inputs(model("float[N, 3] x"))
XZ = model_inputs(model("float[N, 3] x", "int64[N] z"))


def numbers(count: int, width: int = 3) -> Array:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def feeds(data: Any, inputs: tuple[ModelInput, ...] = X) -> list[dict[str, Array]]:
    return [dict(feed) for feed in read_feeds(data, inputs)]


def refusal(data: Any, inputs: tuple[ModelInput, ...] = X) -> str:
    with pytest.raises(DataError) as caught:
        feeds(data, inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def joined(found: list[dict[str, Array]], name: str = "x") -> Array:
    return np.concatenate([feed[name] for feed in found])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("count", [1, _BATCH, _BATCH + 1, 100])
def test_npz(save: Any, count: int, tmp_path: Path) -> None:
    """Arrays by input name, cut along the first axis; others are ignored."""
    path = tmp_path / "data.npz"
    save(path, x=numbers(count), z=np.arange(count), labels=np.zeros(count - 1), text="a")
    found = feeds(path, XZ)
    assert [set(feed) for feed in found] == [{"x", "z"}] * -(-count // _BATCH)
    assert max(len(feed["x"]) for feed in found) <= _BATCH
    np.testing.assert_array_equal(joined(found), numbers(count))
    np.testing.assert_array_equal(joined(found, "z"), np.arange(count))
    assert feeds(str(path), XZ)[0]["x"].dtype == np.float32


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("count", [7, 8, 9])
def test_fixed_batch_size(batch: int, count: int, tmp_path: Path) -> None:
    """Only whole batches can be run; what is left over is left out."""
    np.savez(tmp_path / "data.npz", x=numbers(count))
    found = feeds(tmp_path / "data.npz", model_inputs(model(f"float[{batch}, 3] x")))
    assert {feed["x"].shape for feed in found} == {(batch, 3)}
    np.testing.assert_array_equal(joined(found), numbers(count // batch * batch))


def test_npy_for_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", numbers(40))
    np.testing.assert_array_equal(joined(feeds(tmp_path / "data.npy")), numbers(40))
    assert "one array, but the model has inputs x, z: use an .npz" in refusal(
        tmp_path / "data.npy", XZ
    )


def test_folder(tmp_path: Path) -> None:
    """Both kinds of file are read in the order of their names; other files are ignored."""
    np.savez(tmp_path / "b.npz", x=numbers(40)[2:])
    np.save(tmp_path / "a.npy", numbers(2))
    (tmp_path / "readme.txt").write_text("no data")
    np.testing.assert_array_equal(joined(feeds(tmp_path)), numbers(40))


def test_iterable() -> None:
    given = [{"x": numbers(2), "label": 1}, {"x": numbers(5)}]
    for data in (given, iter(given), (feed for feed in given)):
        found = feeds(data)
        assert [list(feed) for feed in found] == [["x"], ["x"]]
        np.testing.assert_array_equal(found[1]["x"], numbers(5))


class Reader:
    """As onnxruntime.quantization.CalibrationDataReader; also an iterator, as that one is."""

    def __init__(self, count: int) -> None:
        self.left = count

    def get_next(self) -> dict[str, Array] | None:
        self.left -= 1
        return {"x": numbers(self.left + 1)} if self.left >= 0 else None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        raise AssertionError("get_next is what the protocol asks for")


def test_data_reader() -> None:
    assert [len(feed["x"]) for feed in feeds(Reader(3))] == [3, 2, 1]


def test_feeds_come_one_by_one() -> None:
    """A reader of many images must not be read to its end first."""

    def endless() -> Iterator[dict[str, Array]]:
        while True:
            yield {"x": numbers(1)}

    found = read_feeds(endless(), X)
    assert next(found)["x"].shape == (1, 3)


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=numbers(0))
    np.savez(tmp_path / "few.npz", x=numbers(3))
    few = model_inputs(model("float[4, 3] x"))
    for data, inputs in ((tmp_path / "data.npz", X), (tmp_path / "few.npz", few), ([], X),
                         (Reader(0), X)):  # fmt: skip
        assert "no samples" in refusal(data, inputs)


def test_samples_without_an_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.float32(1))
    assert "no samples" in refusal(tmp_path / "data.npz")
    np.savez(tmp_path / "data.npz", x=np.float32(1), z=np.arange(3))
    assert "differ in their number of samples" in refusal(tmp_path / "data.npz", XZ)


def test_missing_files_and_inputs(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert "does not exist" in refusal(path)
    assert "has no .npz or .npy file" in refusal(tmp_path)
    np.savez(path, X=numbers(3), z=np.arange(3))
    assert refusal(path, XZ) == f"'{path}' has no array for input 'x'"
    assert "has no array for input 'x'" in refusal([{"z": np.arange(3)}])


def test_unequal_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=numbers(3), z=np.arange(4))
    assert "differ in their number of samples: {'x': 3, 'z': 4}" in refusal(
        tmp_path / "data.npz", XZ
    )


@pytest.mark.parametrize("array", [
    numbers(2, 4), numbers(2)[0], numbers(2)[None], np.zeros((), np.float32),
])  # fmt: skip
def test_wrong_shapes(array: Array) -> None:
    message = refusal([{"x": array}])
    assert f"input 'x' wants shape ['?', 3], not {list(array.shape)}" in message


def test_shapes_from_a_file_name_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=numbers(2, 4))
    assert str(tmp_path / "data.npz") in refusal(tmp_path / "data.npz")


@pytest.mark.parametrize(("kind", "given", "fits"), [
    ("float", "float32", True), ("float", "float64", True), ("float", "float16", True),
    ("float", "uint8", True), ("float", "int64", True), ("float", "bool", True),
    ("float16", "float32", True), ("double", "float32", True),
    ("int64", "int32", True), ("int32", "int64", True), ("int64", "bool", True),
    ("int64", "float32", False), ("bool", "int64", False), ("float", "complex64", False),
    ("float", "U1", False), ("string", "U1", True), ("bool", "bool", True),
])  # fmt: skip
def test_casts(kind: str, given: str, fits: bool) -> None:
    """Casts that keep the kind of number are allowed."""
    inputs = model_inputs(model(f"{kind}[N] x"))
    array = np.array(["1", "0"] if given == "U1" else [1, 0]).astype(given)
    if not fits:
        assert f"wants {inputs[0].dtype}, not {array.dtype}" in refusal([{"x": array}], inputs)
        return
    (feed,) = feeds([{"x": array}], inputs)
    assert feed["x"].dtype == inputs[0].dtype
    assert feed["x"].tolist() == array.astype(feed["x"].dtype).tolist()


def test_lists_are_arrays() -> None:
    (feed,) = feeds([{"x": [[1.0, 2.0, 3.0]]}])
    assert feed["x"].dtype == np.float32


@pytest.mark.parametrize("entry", ["x", numbers(2), [numbers(2)], 3])
def test_feeds_that_are_no_mappings(entry: object) -> None:
    """Among them what iterating over one feed, in place of a list of feeds, gives."""
    assert "must give {input name: array}" in refusal([entry])
    assert "not str" in refusal({"x": numbers(2)})


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    """Loading them would run code of the file."""
    array = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "data.npz", x=array)
    np.save(tmp_path / "data.npy", array)
    for name in ("data.npz", "data.npy"):
        message = refusal(tmp_path / name)
        assert "not an .npz or .npy file of plain arrays" in message
        assert "allow_pickle=False" in message


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x", b"plain bytes")
    assert "'x' is not an array" in refusal(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00"])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    assert "not an .npz or .npy file" in refusal(tmp_path / "data.npz")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*:SyntaxWarning")
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_damaged_files_raise_nothing_else(save: Any, tmp_path: Path) -> None:
    """zipfile, zlib and tokenize raise errors of their own."""
    path = tmp_path / "data.npz"
    generator = random.Random(0)
    with path.open("wb") as file:
        save(file, **({"arr": numbers(90)} if save is np.save else {"x": numbers(90)}))
    whole = path.read_bytes()
    refused = 0
    for _ in range(100):
        length = generator.choice([len(whole), generator.randrange(len(whole))])
        damaged = bytearray(whole[:length])
        for _ in range(2):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            feeds(path)
        except DataError:
            refused += 1
    assert refused > 20


def test_inputs_of_a_model() -> None:
    """Without the ones that have an initializer, which need not be given."""
    found = model("float[N, 3] x", "int64[2] i", "float[3] W", "string s")
    found.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "W"))
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    found.graph.input.append(ValueInfoProto(name="q", type=sequence))
    unknown = found.graph.input.add(name="u")
    unknown.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert model_inputs(found) == (
        ModelInput(name="x", dtype=np.dtype(np.float32), dims=(None, 3)),
        ModelInput(name="i", dtype=np.dtype(np.int64), dims=(2,)),
        ModelInput(name="s", dtype=np.dtype(object), dims=()),
        ModelInput(name="q", dtype=None, dims=None),
        ModelInput(name="u", dtype=np.dtype(np.float16), dims=None),
    )


def test_inputs_of_unknown_rank_and_type_take_anything() -> None:
    anything = (ModelInput(name="x", dtype=None, dims=None),)
    array = np.array([[1, 2]], np.int8)
    assert feeds([{"x": array}], anything)[0]["x"] is array


def test_inputs_without_a_type() -> None:
    found = model()
    found.graph.input.add(name="x").type.tensor_type.elem_type = 0
    with pytest.raises(DataError, match="'x' has UNDEFINED"):
        model_inputs(found)


def test_several_fixed_batches_are_one(tmp_path: Path) -> None:
    inputs = model_inputs(model("float[2, 3] x", "int64[N] z"))
    np.savez(tmp_path / "data.npz", x=numbers(4), z=np.arange(4))
    assert [feed["z"].tolist() for feed in feeds(tmp_path / "data.npz", inputs)] == [[0, 1], [2, 3]]
