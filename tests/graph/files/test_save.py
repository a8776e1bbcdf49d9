"""A model file is written whole or not at all, with its data beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from alds_onnx.errors import InputError, ModelError, UsageError
from alds_onnx.graph.files import external, save
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.files.save import check_output, write_bytes, write_model
from alds_onnx.graph.rewrite import rewrite
from alds_onnx.graph.tensors import read_array
from tests.graph.builders import (
    assert_close,
    assert_rest_equal,
    normal,
    parse,
    replacements_of,
    run,
)

FEEDS = {"x": normal(3, 8, seed=1)}


def inline_model(seed: int = 0) -> ModelProto:
    return parse(
        "g (float[3, 8] x) => (float[3, 12] y) { h = MatMul(x, W) y = Gemm(h, V, B) }",
        {
            "W": normal(8, 12, seed=seed),
            "V": normal(12, 12, seed=seed),
            "B": normal(12, seed=seed),
        },
    )


def save_external(folder: Path, seed: int = 0, names: str = "WVB", name: str = "in.onnx") -> Path:
    """A model with the weights `names` in one file w.bin, in odd places."""
    model = inline_model(seed)
    blob = b"odd"
    for tensor in model.graph.initializer:
        if tensor.name in names:
            entries = {"location": "w.bin", "offset": str(len(blob))}
            entries["length"] = str(len(tensor.raw_data))
            blob += tensor.raw_data + b"gap"
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(blob)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_file(path: Path) -> list[np.ndarray]:
    return list(ort.InferenceSession(str(path)).run(None, FEEDS))


def test_bytes(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_bytes(b"one", target)
    write_bytes(b"two", target)
    assert target.read_bytes() == b"two"
    assert files(tmp_path) == ["a.json"]


def test_model_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    write_model(inline_model(), target, tmp_path)
    assert onnx.load(target) == inline_model()
    assert files(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_of_the_old_file_stay(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    target.chmod(mode)
    write_model(inline_model(), target, tmp_path)
    assert stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_of_a_new_file_follow_the_mask(mask: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        write_model(inline_model(), tmp_path / "out.onnx", tmp_path)
        assert os.umask(mask) == mask
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.onnx").stat().st_mode) == 0o666 & ~mask


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    (tmp_path / "real.onnx").write_bytes(b"old")
    write_model(inline_model(), tmp_path / "link.onnx", tmp_path)
    assert (tmp_path / "link.onnx").is_symlink()
    assert onnx.load(tmp_path / "real.onnx") == inline_model()


def test_external_data_is_copied_beside_the_target(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    source, target = save_external(tmp_path / "in"), tmp_path / "out" / "out.onnx"
    before = {p.name: p.read_bytes() for p in (tmp_path / "in").iterdir()}
    loaded = load_model(source)
    write_model(loaded.model, target, loaded.folder, source)
    assert {p.name: p.read_bytes() for p in (tmp_path / "in").iterdir()} == before
    name, data = files(tmp_path / "out")
    assert name == "out.onnx"
    written = onnx.load(target, load_external_data=False)
    end = 0
    for tensor in written.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == data
        assert int(entries["offset"]) == end + -end % 64
        end = int(entries["offset"]) + int(entries["length"])
    assert end == (tmp_path / "out" / data).stat().st_size
    assert onnx.load(target) == inline_model_loaded()
    assert_close(run_file(target), run(inline_model(), FEEDS))


def inline_model_loaded() -> ModelProto:
    """As onnx gives a model back whose external data it has read."""
    model = inline_model()
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    return model


def test_a_rewritten_model_with_external_data(tmp_path: Path) -> None:
    source, target = save_external(tmp_path), tmp_path / "out.onnx"
    loaded = load_model(source)
    replacements = replacements_of(loaded.model, 2, None, tmp_path)
    actual = rewrite(loaded.model, replacements)
    assert_rest_equal(loaded.model, actual, {"W", "V", "h", "y"})
    write_model(actual, target, loaded.folder, source)
    load_model(target)
    assert_close(run_file(target), run(inline_model(), FEEDS))


def test_second_write_leaves_no_old_data(tmp_path: Path) -> None:
    target = tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    names = set()
    for seed in (0, 1, 1):
        source = save_external(tmp_path, seed)
        write_model(load_model(source).model, target, tmp_path, source)
        _, data = files(target.parent)
        names.add(data)
        assert_close(run_file(target), run(inline_model(seed), FEEDS))
    assert len(names) == 2
    write_model(inline_model(), target, tmp_path)
    assert files(target.parent) == ["out.onnx"]


def test_data_of_other_models_stays(tmp_path: Path) -> None:
    """Of a model that was moved away, and of one whose name begins alike."""
    source = save_external(tmp_path)
    target = tmp_path / "out.onnx"
    write_model(load_model(source).model, target, tmp_path, source)
    moved = target.rename(tmp_path / "moved.onnx")
    other = save_external(tmp_path, seed=1)
    write_model(load_model(other).model, target, tmp_path, other)
    assert_close(run_file(moved), run(inline_model(), FEEDS))
    assert_close(run_file(target), run(inline_model(1), FEEDS))


@pytest.mark.parametrize("names", ["WVB", "W"])
def test_data_of_the_source_stays(names: str, tmp_path: Path) -> None:
    """Even where an earlier run wrote it for the target's name: a copy of an old output."""
    target, source = tmp_path / "out.onnx", tmp_path / "copy.onnx"
    first = load_model(save_external(tmp_path, names=names))
    write_model(first.model, target, tmp_path)
    source.write_bytes(target.read_bytes())
    loaded = load_model(source)
    actual = rewrite(loaded.model, replacements_of(loaded.model, 1, None, tmp_path))
    write_model(actual, target, loaded.folder, source)
    assert_close(run_file(source), run(inline_model(), FEEDS))
    assert_close(run_file(target), run(inline_model(), FEEDS))


def test_data_elsewhere_stays(tmp_path: Path) -> None:
    """A file that an old output names, of the right name but in another folder, is not ours."""
    target, other = tmp_path / "out.onnx", tmp_path / "elsewhere" / f"out.onnx.{'0' * 16}.data"
    other.parent.mkdir()
    other.write_bytes(bytes(4000))
    old = inline_model()
    for location in (str(other), f"elsewhere/{other.name}"):
        tensor = old.graph.initializer[0]
        tensor.ClearField("external_data")
        tensor.external_data.add(key="location", value=location)
        target.write_bytes(old.SerializeToString())
        write_model(inline_model(), target, tmp_path)
        assert other.is_file()


def broken(*args: object) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_failed_write_leaves_the_old_file(
    function: str, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_external(tmp_path, names="WVB" if external else "")
    target = tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    target.write_bytes(b"old")
    model = load_model(source).model
    monkeypatch.setattr(os, function, broken)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_model(model, target, tmp_path, source)
    assert target.read_bytes() == b"old"
    assert files(target.parent) == ["out.onnx"]


@pytest.mark.parametrize("seed", [0, 1], ids=["same data", "other data"])
@pytest.mark.parametrize("error", [broken, interrupted])
def test_failed_model_file_takes_its_data_along(
    error: object, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data file is complete when the model file fails; the old pair stays as it was."""
    target = tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    source = save_external(tmp_path)
    write_model(load_model(source).model, target, tmp_path, source)
    before = files(target.parent)
    source = save_external(tmp_path, seed)
    monkeypatch.setattr(save, "write_bytes", error)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_model(load_model(source).model, target, tmp_path, source)
    assert files(target.parent) == before
    assert_close(run_file(target), run(inline_model(), FEEDS))


def test_data_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = save_external(tmp_path), tmp_path / "out.onnx"
    model = load_model(source).model
    external_data = external.external_data

    def shrink(tensor: TensorProto, folder: Path) -> object:
        found = external_data(tensor, folder)
        if tensor.name == "B":  # the last one: all places have been found
            (tmp_path / "w.bin").write_bytes(b"")
        return found

    monkeypatch.setattr(external, "external_data", shrink)
    with pytest.raises(ModelError, match=r"'w\.bin' became shorter"):
        write_model(model, target, tmp_path)
    assert files(tmp_path) == ["in.onnx", "w.bin"]


def test_old_data_that_cannot_be_removed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.onnx"
    write_model(load_model(save_external(tmp_path)).model, target, tmp_path)
    monkeypatch.setattr(Path, "unlink", broken)
    write_model(inline_model(), target, tmp_path)
    assert onnx.load(target) == inline_model()


def test_same_model_same_bytes(tmp_path: Path) -> None:
    source = save_external(tmp_path)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(load_model(source).model, tmp_path / name / "out.onnx", tmp_path)
        written.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_targets_that_are_fine(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"model")
    for target in (tmp_path / "new.onnx", tmp_path / "missing" / ".." / "new.onnx"):
        check_output(target, source)
        check_output(target, None)
    (tmp_path / "old.onnx").write_bytes(b"old")
    check_output(tmp_path / "old.onnx", source)
    check_output(tmp_path / "old.onnx", tmp_path / "no such source")


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"model")
    (tmp_path / "link.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    os.mkfifo(tmp_path / "pipe")
    refused = {
        "in.onnx": "is the input",
        "link.onnx": "is the input",
        "hard.onnx": "is the input",
        ".": "is a directory",
        "pipe": "not a regular file",
        "missing/out.onnx": "there is no folder",
        "in.onnx/out.onnx": "there is no folder",
        "a" * 300: "File name too long",
    }
    for name, reason in refused.items():
        with pytest.raises(UsageError, match=reason) as caught:
            check_output(tmp_path / name, source)
        assert "\n" not in str(caught.value)


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="no permission"):
        check_output(tmp_path / "out.onnx", None)


def test_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write_model(inline_model(), tmp_path / "gone" / "out.onnx", tmp_path)


def test_external_data_of_constants_and_sparse_tensors_moves_too(tmp_path: Path) -> None:
    source = save_external(tmp_path, names="")
    model = onnx.load(source)
    values = numpy_helper.from_array(normal(2), "s")
    sparse = onnx.helper.make_sparse_tensor(
        values, numpy_helper.from_array(np.array([0, 3]), "i"), [8]
    )
    constant = onnx.helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(normal(5))
    )
    model.graph.node.append(constant)
    model.graph.sparse_initializer.append(sparse)
    tensors = [model.graph.node[-1].attribute[0].t, model.graph.sparse_initializer[0].values]
    (tmp_path / "w.bin").write_bytes(b"".join(tensor.raw_data for tensor in tensors))
    for tensor, offset in zip(tensors, ("0", "20"), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset)):
            tensor.external_data.add(key=key, value=value)
    target = tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    write_model(model, target, tmp_path)
    _, data = files(target.parent)
    written = onnx.load(target, load_external_data=False)
    moved = [written.graph.node[-1].attribute[0].t, written.graph.sparse_initializer[0].values]
    for before, after in zip(tensors, moved, strict=True):
        assert read_array(after, target.parent).tobytes() == read_array(before, tmp_path).tobytes()
    assert {p.name: p for p in target.parent.iterdir()}[data] in save._data_files(target)


@pytest.mark.parametrize("auto", [False, True], ids=["asked for", "too large"])
def test_large_initializers_move_out(
    auto: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W is inside as float_data, V as raw_data; the bias of 48 bytes stays."""
    model = parse(
        "g (float[3, 8] x) => (float[3, 40] y) { h = MatMul(x, W) y = Gemm(h, V, B) }",
        {"W": normal(8, 40), "V": normal(40, 40), "B": normal(40)},
    )
    model.graph.initializer[0].float_data.extend(normal(8, 40).ravel())
    model.graph.initializer[0].ClearField("raw_data")
    expected = run(model, FEEDS)
    if auto:
        monkeypatch.setattr(save, "_LARGEST_INLINE", 1000)
    target = tmp_path / "out.onnx"
    write_model(model, target, tmp_path, external=not auto)
    written = onnx.load(target, load_external_data=False)
    kinds = {tensor.name: tensor.data_location for tensor in written.graph.initializer}
    outside, inside = TensorProto.EXTERNAL, TensorProto.DEFAULT
    assert kinds == {"W": outside, "V": outside, "B": inside}
    assert not written.graph.initializer[0].float_data
    assert len(files(tmp_path)) == 2
    load_model(target)
    assert_close(run_file(target), expected)
    write_model(model, target, tmp_path)
    assert len(files(tmp_path)) == (2 if auto else 1)


def test_shared_bytes_are_written_once(tmp_path: Path) -> None:
    """W, and V in the middle of it: the union of both, and both right."""
    (tmp_path / "out").mkdir()
    numbers = normal(300)
    (tmp_path / "w.bin").write_bytes(numbers.tobytes())
    model = parse("g (float[3, 8] x) => (float[3, 8] y) { y = Relu(x) }")
    for name, offset, count in (("W", 0, 200), ("V", 400, 200), ("W2", 0, 200)):
        tensor = model.graph.initializer.add(name=name, dims=[count], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", str(offset)), ("custom", "kept")):
            tensor.external_data.add(key=key, value=value)
    target = tmp_path / "out" / "out.onnx"
    write_model(model, target, tmp_path)
    _, data = files(target.parent)
    assert (target.parent / data).stat().st_size == 1200
    written = onnx.load(target, load_external_data=False)
    for tensor, start in zip(written.graph.initializer, (0, 100, 0), strict=True):
        np.testing.assert_array_equal(
            read_array(tensor, target.parent), numbers[start : start + 200]
        )
        assert ("custom", "kept") in [(e.key, e.value) for e in tensor.external_data]
